"""The process that simulates: ``python -m zoo.meteorology.simulation PATH SETTINGS_AS_JSON``; for `simulate` only."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from zoo.meteorology.simulation.model import Model, states
from zoo.meteorology.simulation.pressure_levels import on_pressure_levels
from zoo.meteorology.simulation.settings import HOURS_PER_STATE, Settings

ATTRIBUTES = {
    "u_component_of_wind": ("m s-1", "eastward_wind", "Eastward wind"),
    "v_component_of_wind": ("m s-1", "northward_wind", "Northward wind"),
    "temperature": ("K", "air_temperature", "Temperature"),
    "geopotential": ("m2 s-2", "geopotential", "Geopotential"),
    "mean_sea_level_pressure": ("Pa", "air_pressure_at_mean_sea_level", "Mean sea level pressure"),
}


def write(path: Path, settings: Settings) -> None:
    """Simulate into a NetCDF file, saying ``DONE/TOTAL`` on standard output."""
    import netCDF4

    total = settings.states + settings.spin_up_days * 24 // HOURS_PER_STATE
    print(f"0/{total}", flush=True)  # the first steps take seconds to compile
    model = Model(settings)
    with netCDF4.Dataset(path, "w") as file:
        file.setncatts(settings.attributes())
        file.setncatts({f"version_of_{name}": version(name) for name in ("dinosaur-dycore", "jax", "numpy")})
        coordinates: dict[str, tuple[Any, dict[str, str]]] = {
            "time": (
                HOURS_PER_STATE * np.arange(settings.states),
                {"units": f"hours since {settings.start}", "calendar": "proleptic_gregorian", "standard_name": "time"},
            ),
            "level": (
                np.array(settings.levels, dtype=np.int32),
                {"units": "hPa", "standard_name": "air_pressure", "positive": "down"},
            ),
            "latitude": (model.latitudes, {"units": "degrees_north", "standard_name": "latitude"}),
            "longitude": (model.longitudes, {"units": "degrees_east", "standard_name": "longitude"}),
        }
        for name, (values, attributes) in coordinates.items():
            file.createDimension(name, len(values))
            file.createVariable(name, values.dtype, (name,)).setncatts(attributes)
            file[name][:] = values
        for name, (units, standard, long) in ATTRIBUTES.items():
            dims = tuple(d for d in coordinates if d != "level" or name != "mean_sea_level_pressure")
            variable = file.createVariable(name, "f4", dims, contiguous=True, fill_value=False)
            variable.setncatts({"units": units, "standard_name": standard, "long_name": long})
        kept = 0
        for done, state in enumerate(states(model), start=1):
            if state is not None:
                for name, field in on_pressure_levels(state, settings.levels).items():
                    file[name][kept] = field
                kept += 1
            if done % 4 == 0 or done == total:
                print(f"{done}/{total}", flush=True)  # fails when the process that waits for us is gone


if __name__ == "__main__":
    target = Path(sys.argv[1])
    given = json.loads(sys.argv[2])
    try:
        write(target, Settings(**{**given, "levels": tuple(given["levels"])}))
    except BaseException:
        target.unlink(missing_ok=True)
        raise
