"""The Held-Suarez atmosphere: states of the spectral dynamical core, on layers of a regular grid.

Imported by the process that simulates only: JAX has its own threads, its own use of a GPU and does not fork.
Legend of shapes: `N` layers from the top, `H` x `W` points (latitude from the south x longitude from 0).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import ZooError
from zoo.meteorology.simulation.settings import HOURS_PER_STATE, Settings

Array = NDArray[np.float64]

SURFACE_PRESSURE_PA = 1e5
PERTURBATION_PA = 5e3
"""Of the surface pressure at first, at a place that the seed decides: without it nothing would break the symmetry."""


@dataclasses.dataclass(frozen=True)
class LayerState:
    """One state on layers: `u`, `v` m s-1, `temperature` K, `geopotential` m2 s-2, each (N H W); `pressure` Pa (H W).

    `sigma` (N) is the pressure of a layer's centre over `pressure`, that of the surface.
    """

    sigma: Array
    u: Array
    v: Array
    temperature: Array
    geopotential: Array
    pressure: Array


class Model:
    """The dynamical core with its forcing, set up for `settings`."""

    def __init__(self, settings: Settings) -> None:
        import jax
        import jax.numpy as jnp
        from dinosaur import (
            coordinate_systems,
            held_suarez,
            primitive_equations,
            primitive_equations_states,
            scales,
            sigma_coordinates,
            spherical_harmonic,
            time_integration,
            xarray_utils,
        )

        units = scales.units
        self.settings = settings
        # three points for two wavenumbers: products of two fields are then free of aliasing
        grid = spherical_harmonic.Grid.construct(settings.wavenumber, -(-3 * (settings.wavenumber + 1) // 4))
        coordinates = coordinate_systems.CoordinateSystem(
            grid, sigma_coordinates.SigmaCoordinates.equidistant(settings.layers)
        )
        specs = primitive_equations.PrimitiveEquationsSpecs.from_si()
        first, aux = primitive_equations_states.isothermal_rest_atmosphere(
            coordinates, specs, p0=SURFACE_PRESSURE_PA * units.pascal, p1=PERTURBATION_PA * units.pascal
        )
        reference = aux[xarray_utils.REF_TEMP_KEY]
        orography = grid.to_modal(aux[xarray_utils.OROGRAPHY])
        equation = time_integration.compose_equations(
            [
                primitive_equations.PrimitiveEquations(reference, orography, coordinates, specs),
                held_suarez.HeldSuarezForcing(coordinates, specs, reference),
            ]
        )
        step = specs.nondimensionalize(settings.step_minutes * units.minute)
        diffusion = time_integration.horizontal_diffusion_step_filter(
            grid, step, specs.nondimensionalize(settings.diffusion_hours * units.hour), settings.diffusion_order
        )
        advance = time_integration.step_with_filters(time_integration.imex_rk_sil3(equation, step), [diffusion])
        # the same waves at other points: exact, where interpolation would smooth
        regular = dataclasses.replace(
            grid, longitude_nodes=settings.longitudes, latitude_nodes=settings.latitudes, latitude_spacing="equiangular"
        )

        def fields(state: Any) -> tuple[Any, ...]:
            u, v = spherical_harmonic.vor_div_to_uv_nodal(regular, state.vorticity, state.divergence)
            height = primitive_equations.get_geopotential(
                state.temperature_variation, reference, orography, coordinates.vertical,
                specs.gravity_acceleration, specs.ideal_gas_constant,
            )  # fmt: skip
            temperature = regular.to_nodal(state.temperature_variation) + reference[:, None, None]
            return u, v, temperature, regular.to_nodal(height), jnp.exp(regular.to_nodal(state.log_surface_pressure))

        def unit(value: Any) -> float:
            return float(specs.dimensionalize(1.0, value).magnitude)

        speed = unit(units.m / units.s)
        self._units = speed, speed, unit(units.degK), speed**2, unit(units.pascal)
        self._advance = jax.jit(time_integration.repeated(advance, settings.steps_per_state))
        self._fields = jax.jit(fields)
        self._state = first(rng_key=jax.random.PRNGKey(settings.seed))
        self.sigma = np.asarray(coordinates.vertical.centers, dtype=np.float64)
        longitudes, sines = regular.nodal_axes
        self.latitudes = np.round(np.rad2deg(np.arcsin(np.asarray(sines, dtype=np.float64))), 6)
        self.longitudes = np.round(np.rad2deg(np.asarray(longitudes, dtype=np.float64)), 6)

    def advance(self) -> None:
        """Six hours on."""
        self._state = self._advance(self._state)

    def state(self) -> LayerState:
        """Where the atmosphere is now. Raises `ZooError` where the integration has blown up."""
        found = [
            np.asarray(values, dtype=np.float64).swapaxes(-1, -2) * unit
            for values, unit in zip(self._fields(self._state), self._units, strict=True)
        ]
        if not all(bool(np.isfinite(values).all()) for values in found):
            raise ZooError(
                "simulation: the integration became unstable; give shorter steps (simulation.step_minutes) or more "
                "diffusion (simulation.diffusion_hours)"
            )
        u, v, temperature, geopotential, pressure = found
        return LayerState(self.sigma, u, v, temperature, geopotential, pressure[0])


def states(model: Model) -> Iterator[LayerState | None]:
    """The states that are kept; None for each one of the spin-up."""
    for _ in range(model.settings.spin_up_days * 24 // HOURS_PER_STATE):
        model.advance()
        yield None
    for _ in range(model.settings.states):
        model.advance()
        yield model.state()
