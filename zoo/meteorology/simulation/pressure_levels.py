"""From layers that follow the surface pressure to levels of constant pressure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zoo.meteorology.simulation.model import LayerState

Array = NDArray[np.float64]

DRY_AIR_GAS_CONSTANT = 287.0
"""J kg-1 K-1, as in the dynamical core."""


def on_pressure_levels(state: LayerState, levels_hpa: tuple[int, ...]) -> dict[str, Array]:
    """Fields by ERA5's names, each (levels H W); `mean_sea_level_pressure` (H W) is the surface's: there is no land.

    Wind and temperature are linear in the logarithm of pressure between the centres of layers, and the geopotential
    is what hydrostatic balance makes of such a temperature: quadratic. The same line goes on below the lowest centre.
    """
    log_pressure = np.log(state.sigma)[:, None, None] + np.log(state.pressure)
    found: dict[str, list[Array]] = {
        name: [] for name in ("u_component_of_wind", "v_component_of_wind", "temperature", "geopotential")
    }
    for level in levels_hpa:
        target = np.log(100.0 * level)
        above = np.clip((log_pressure < target).sum(axis=0) - 1, 0, len(state.sigma) - 2)[None]

        def pair(values: Array, above: NDArray[np.intp] = above) -> tuple[Array, Array]:
            return np.take_along_axis(values, above, 0)[0], np.take_along_axis(values, above + 1, 0)[0]

        top, bottom = pair(log_pressure)
        part = (target - top) / (bottom - top)
        for name, values in zip(found, (state.u, state.v, state.temperature, state.geopotential), strict=True):
            upper, lower = pair(values)
            field = upper + (lower - upper) * part
            if name == "geopotential":
                warm, warmer = pair(state.temperature)
                slope = (warmer - warm) / (bottom - top)
                field = field + DRY_AIR_GAS_CONSTANT * slope / 2 * (bottom - target) * (target - top)
            found[name].append(field)
    return {name: np.stack(fields) for name, fields in found.items()} | {"mean_sea_level_pressure": state.pressure}
