"""Small gridded files whose every value says where it belongs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

ROWS, COLUMNS = 4, 8
LATITUDES = np.array([67.5, 22.5, -22.5, -67.5])
LONGITUDES = np.arange(COLUMNS) * 45.0


def dates(count: int, start: str = "2001-01-01", hours: int = 6) -> Any:
    return (np.datetime64(start) + np.arange(count) * np.timedelta64(hours, "h")).astype("datetime64[ns]")


def value(hour: Any, level: Any = 0, latitude: Any = 0, longitude: Any = 0) -> Any:
    """A number that tells time (hours since 2001), level, latitude and longitude (0 to 360) apart."""
    return np.asarray(hour) * 1.0 + np.asarray(level) * 0.001 + np.asarray(latitude) * 10 + np.mod(longitude, 360) * 100


def hours_of(times: Any) -> Any:
    return (np.asarray(times) - np.datetime64("2001-01-01")) / np.timedelta64(1, "h")


def dataset(
    times: Any = None,
    *,
    latitudes: Any = LATITUDES,
    longitudes: Any = LONGITUDES,
    levels: Sequence[float] = (850, 500, 250),
    level_name: str = "level",
    level_unit: str | None = "hPa",
    hpa: float = 1.0,
    order: Sequence[str] = ("time", "level", "latitude", "longitude"),
    rename: dict[str, str] | None = None,
    members: int = 0,
) -> xr.Dataset:
    """Temperature on levels (K) and at 2 m (degrees Celsius less 0), and a land-sea mask without time."""
    times = dates(10) if times is None else times
    hour, level = hours_of(times)[:, None, None, None], np.array(levels, dtype=float)[None, :, None, None]
    latitude, longitude = np.asarray(latitudes)[:, None], np.asarray(longitudes)[None, :]
    upper = value(hour, level, latitude, longitude)
    dims = ["time", "level", "latitude", "longitude"]
    attributes = {} if level_unit is None else {"units": level_unit}
    data = xr.Dataset(
        {
            "t": (dims, upper, {"units": "K"}),
            "t2m": (["time", *dims[2:]], value(hour[:, 0], 0, latitude, longitude) - 273.15, {"units": "degC"}),
            "lsm": (dims[2:], (latitude + 0 * longitude > 0).astype(float), {"units": "(0 - 1)"}),
        },
        {
            "time": times,
            "level": ("level", np.array(levels) * hpa, attributes),
            "latitude": ("latitude", latitudes, {"units": "degrees_north"}),
            "longitude": ("longitude", longitudes, {"units": "degrees_east"}),
        },
    )
    if members:
        spread = xr.DataArray(np.arange(members) * 1e6, dims="number", coords={"number": np.arange(members)})
        data["t"] = (data["t"] + spread).transpose("number", ...).assign_attrs(units="K")
        order = ("number", *order)
    data = data.transpose(*order, missing_dims="ignore")
    return data.rename({"level": level_name, **(rename or {})} if level_name != "level" or rename else {})


def write(path: Path, data: xr.Dataset, **options: Any) -> str:
    if path.suffix == ".zarr":
        data.to_zarr(path, mode="w", **{"zarr_format": 2, "consolidated": True} | options)
    else:
        data.to_netcdf(path, engine="netcdf4", **options)
    return str(path)


def expected(hour: float, level: float, latitudes: Any, longitudes: Any) -> Any:
    """A field of the dataset on any grid, float32."""
    return value(hour, level, np.asarray(latitudes)[:, None], np.asarray(longitudes)[None, :]).astype(np.float32)


def z_files() -> dict[int, str]:
    """Monthly heights that are handed around beside the project, by level in hPa.

    ``$ZOO_SHARED_DATA`` or ``../shared/data`` beside the repository has them. A test that needs them is skipped where
    there is neither, and fails where one of them lacks a file.
    """
    folder = Path(os.environ.get("ZOO_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if "ZOO_SHARED_DATA" not in os.environ and not folder.parent.is_dir():
        pytest.skip(f"there is no {folder}; ZOO_SHARED_DATA may name a folder that has these files")
    found = {level: folder / f"z{level}_monthly.nc" for level in (200, 500)}
    missing = [str(path) for path in found.values() if not path.is_file()]
    assert not missing, f"{', '.join(missing)}: set ZOO_SHARED_DATA to the folder that has these files"
    return {level: str(path) for level, path in found.items()}
