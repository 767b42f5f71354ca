"""Forecasts as a dataset in WeatherBench 2's layout, and how they are read from NetCDF or Zarr.

Dimensions are ``time`` (the start), ``prediction_timedelta`` (the lead time), ``number`` (members, of an ensemble
only), ``level`` (hPa), ``latitude`` and ``longitude``, in this order; names, units and attributes are those of CF.
Legend of shapes: `T` starts, `L` lead times, `M` members, `V` fields, `H` x `W` grid points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from zoo.errors import InputError
from zoo.meteorology.files import open_dataset
from zoo.meteorology.names import field_name, parse_field, variable_named
from zoo.meteorology.verification import MEMBERS
from zoo.places import Place, is_url

DIMENSIONS = ("time", "prediction_timedelta", "number", "level", "latitude", "longitude")
_SECOND = np.timedelta64(1, "s")


def forecast_dataset(
    names: Sequence[str],
    values: npt.NDArray[Any],
    *,
    starts: Sequence[Any] | npt.NDArray[Any],
    lead_hours: Sequence[float],
    latitudes: Sequence[float] | npt.NDArray[Any],
    longitudes: Sequence[float] | npt.NDArray[Any],
    units: Mapping[str, str] | None = None,
    attributes: Mapping[str, str] | None = None,
    members: Sequence[int] | None = None,
) -> xr.Dataset:
    """Forecasts of fields as a dataset: (T L V H W), or (T L M V H W) of an ensemble, in the order of `names`.

    `names` are fields (``geopotential_500``, ``2m_temperature``); those of a variable become one array with dimension
    ``level`` where all variables have the same levels, and stay as they are otherwise. Units are those of the table of
    names, or of `units` by field. `members` are their numbers, from 0 where nothing is said. Raises `InputError` for
    shapes that do not fit, names that are there twice, and fields that have no unit.
    """
    shape = len(starts), len(lead_hours), len(names), len(latitudes), len(longitudes)
    ensemble = values.ndim == 6
    if values.ndim not in (5, 6) or (*values.shape[:2], *values.shape[-3:]) != shape or len(set(names)) < len(names):
        raise InputError(
            f"forecast: values of shape {values.shape} for {shape[0]} starts, {shape[1]} lead times, {len(names)} "
            f"fields ({len(set(names))} different) and {shape[3]} x {shape[4]} points; expected {shape}, or with "
            "members third"
        )
    fields: dict[str, dict[float | None, int]] = {}
    for place, name in enumerate(names):
        variable, level = parse_field(name)
        fields.setdefault(variable, {})[level] = place
    levels = sorted({level for places in fields.values() for level in places if level is not None})
    together = all(None in places or len(places) == len(levels) for places in fields.values())
    dims = ["time", "prediction_timedelta", *(["number"] if ensemble else []), "latitude", "longitude"]
    data: dict[str, Any] = {}
    for variable, places in fields.items():
        attrs = {name: _attributes(variable, name, units or {}) for name in (names[i] for i in places.values())}
        if None not in places and together:
            stacked = np.stack([values[..., places[level], :, :] for level in levels], axis=-3)
            data[variable] = ([*dims[:-2], "level", *dims[-2:]], stacked, next(iter(attrs.values())))
        else:
            for level, place in places.items():
                name = field_name(variable, level)
                extra = {} if level is None else {"level_hPa": level}
                data[name] = (dims, values[..., place, :, :], {**attrs[names[place]], **extra})
    coordinates: dict[str, Any] = {
        "time": np.asarray(starts, dtype="datetime64[ns]"),
        "prediction_timedelta": np.array([round(hours * 3600) * _SECOND for hours in lead_hours], "timedelta64[ns]"),
        "latitude": np.asarray(latitudes, dtype=np.float64),
        "longitude": np.asarray(longitudes, dtype=np.float64),
    }
    if ensemble:
        coordinates["number"] = np.arange(values.shape[2]) if members is None else np.array(members)
    if levels and together:
        coordinates["level"] = np.array(levels)
    result = xr.Dataset(data, coords=coordinates, attrs={"Conventions": "CF-1.11", **(attributes or {})})
    check_forecast(result)
    return result


def check_forecast(dataset: xr.Dataset, where: str = "forecast") -> None:
    """Raises `InputError` with everything that keeps a dataset from being a forecast in this layout."""
    problems = [
        f'{where}: no dimension "{name}"; it has {", ".join(map(str, dataset.dims))}'
        for name in ("time", "prediction_timedelta", "latitude", "longitude")
        if name not in dataset.dims or name not in dataset.coords
    ]
    extra = [str(name) for name in dataset.dims if name not in (*DIMENSIONS, *MEMBERS)]
    problems += [f'{where}: dimension "{name}" is none of {", ".join(DIMENSIONS)}' for name in extra]
    if problems:
        raise InputError(problems)
    for name, kind, what in (("time", "M", "dates"), ("prediction_timedelta", "m", "time differences")):
        values = dataset[name].values
        if values.dtype.kind != kind:
            problems.append(f"{where}: {name} has {values.dtype}, not {what}; decode it first")
        elif not len(values):
            problems.append(f"{where}: {name} is empty: there are no forecasts")
        elif bool((np.diff(values) <= np.timedelta64(0)).any()):
            problems.append(f"{where}: {name} is not in increasing order, each once")
        elif kind == "m" and values[0] < np.timedelta64(0):
            problems.append(f"{where}: {name} begins before the start ({values[0] / np.timedelta64(1, 'h'):g} h)")
    if not dataset.data_vars:
        problems.append(f"{where}: no variables")
    for name, array in dataset.data_vars.items():
        if not str(array.attrs.get("units", "")).strip():
            problems.append(f'{where}: {name} has no units; set its attribute "units"')
        needed = {"time", "prediction_timedelta", "latitude", "longitude"} - set(array.dims)
        if needed:
            problems.append(f"{where}: {name} lacks dimensions {', '.join(sorted(needed))}")
    if not bool((np.abs(dataset["latitude"].values) <= 90).all()):
        problems.append(f"{where}: latitudes are not all from -90 to 90 degrees")
    if problems:
        raise InputError(problems)


def read_forecast(path: Place) -> xr.Dataset:
    """A forecast file, or a store at an address, lazily.

    Raises `InputError` where it cannot be opened or is no forecast (`check_forecast`).
    """
    place = str(path) if is_url(str(path)) else str(Path(path).expanduser())
    if not is_url(place) and not Path(place).exists():
        raise InputError(f"{place}: no such file or folder")
    dataset = open_dataset(place)
    lead = dataset.get("prediction_timedelta")
    if lead is not None and lead.dtype.kind in "if":
        size = {"hours": 3600, "hour": 3600, "h": 3600, "minutes": 60, "seconds": 1, "days": 86400, "nanoseconds": 1e-9}
        unit = str(lead.attrs.get("units", ""))
        if unit not in size:
            raise InputError(f'{place}: prediction_timedelta is in "{unit}"; expected one of {", ".join(size)}')
        steps = np.round(lead.values * (size[unit] * 1e9)).astype("timedelta64[ns]")
        attributes = {name: value for name, value in lead.attrs.items() if name not in ("units", "dtype")}
        dataset = dataset.assign_coords(prediction_timedelta=("prediction_timedelta", steps, attributes))
    check_forecast(dataset, place)
    return dataset


def _attributes(variable: str, field: str, units: Mapping[str, str]) -> dict[str, str]:
    known = variable_named(variable)
    unit = units.get(field) or (known.unit if known else "")
    if not unit:
        raise InputError(f'forecast: "{field}" is not in the table of names, so its unit must be given (units)')
    found = {"units": unit, "long_name": variable.replace("_", " ")}
    if known and known.standard_names:
        found["standard_name"] = known.standard_names[0]
    return found
