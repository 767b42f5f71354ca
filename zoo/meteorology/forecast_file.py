"""Forecasts as a dataset in WeatherBench 2's layout, written start by start to NetCDF or Zarr, whole or not at all.

Dimensions are ``time`` (the start), ``prediction_timedelta`` (the lead time), ``number`` (members, of an ensemble
only), ``level`` (hPa), ``latitude`` and ``longitude``, in this order; names, units and attributes are those of CF.
Legend of shapes: `T` starts, `L` lead times, `M` members, `V` fields, `H` x `W` grid points.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from zoo.errors import InputError, ZooError
from zoo.meteorology.files import open_dataset
from zoo.meteorology.names import field_name, parse_field, variable_named
from zoo.meteorology.verification import MEMBERS

DIMENSIONS = ("time", "prediction_timedelta", "number", "level", "latitude", "longitude")
_EPOCH = np.datetime64("1970-01-01T00:00:00", "ns")
_SECOND = np.timedelta64(1, "s")
_TIME = {
    "units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian",
    "standard_name": "forecast_reference_time", "long_name": "start of the forecast",
}  # fmt: skip
_COORDINATES: Mapping[str, Mapping[str, str]] = {
    "prediction_timedelta": {"standard_name": "forecast_period", "long_name": "time since the start"},
    "number": {"standard_name": "realization", "long_name": "ensemble member", "units": "1"},
    "level": {"standard_name": "air_pressure", "units": "hPa", "positive": "down"},
    "latitude": {"standard_name": "latitude", "units": "degrees_north"},
    "longitude": {"standard_name": "longitude", "units": "degrees_east"},
}


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
) -> xr.Dataset:
    """Forecasts of fields as a dataset: (T L V H W), or (T L M V H W) of an ensemble, in the order of `names`.

    `names` are fields (``geopotential_500``, ``2m_temperature``); those of a variable become one array with dimension
    ``level`` where all variables have the same levels, and stay as they are otherwise. Units are those of the table of
    names, or of `units` by field. Raises `InputError` for shapes that do not fit, names that are there twice, and
    fields that have no unit.
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
        coordinates["number"] = np.arange(values.shape[2])
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
        elif not len(values) or bool((np.diff(values) <= np.timedelta64(0)).any()):
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


def read_forecast(path: Path | str) -> xr.Dataset:
    """A forecast file, lazily. Raises `InputError` where it cannot be opened or is no forecast (`check_forecast`)."""
    place = Path(path).expanduser()
    if not place.exists():
        raise InputError(f"{place}: no such file or folder")
    dataset = open_dataset(str(place))
    lead = dataset.get("prediction_timedelta")
    if lead is not None and lead.dtype.kind in "if":
        size = {"hours": 3600, "hour": 3600, "h": 3600, "minutes": 60, "seconds": 1, "days": 86400, "nanoseconds": 1e-9}
        unit = str(lead.attrs.get("units", ""))
        if unit not in size:
            raise InputError(f'{place}: prediction_timedelta is in "{unit}"; expected one of {", ".join(size)}')
        steps = np.round(lead.values * (size[unit] * 1e9)).astype("timedelta64[ns]")
        attributes = {name: value for name, value in lead.attrs.items() if name not in ("units", "dtype")}
        dataset = dataset.assign_coords(prediction_timedelta=("prediction_timedelta", steps, attributes))
    check_forecast(dataset, str(place))
    return dataset


def write_forecast(path: Path | str, parts: Iterable[xr.Dataset], *, overwrite: bool = False) -> Path:
    """Write parts of a forecast, in order of start, one at a time; see `ForecastWriter`."""
    with ForecastWriter(path, overwrite=overwrite) as writer:
        for part in parts:
            writer.append(part)
    return writer.path


class ForecastWriter:
    """Writes a forecast dataset part by part along ``time``: memory is that of a part.

    `path` ends in ``.nc`` (NetCDF) or ``.zarr`` (a folder); each start and lead time is stored by itself. Until the
    block ends, everything is under a hidden name beside `path`; it is renamed when all of it is on the disk, and
    deleted where the block raises. Raises `InputError` for another ending, for a `path` that exists unless
    `overwrite`, for parts that are no forecasts, that differ in anything but their starts or are out of order, and
    where there were none; `ZooError` where it cannot be written.
    """

    def __init__(self, path: Path | str, *, overwrite: bool = False) -> None:
        self.path = Path(path).expanduser().absolute()
        self.overwrite = overwrite
        if self.path.suffix not in (".nc", ".zarr"):
            raise InputError(f"{self.path}: forecasts are written to a name that ends in .nc (NetCDF) or .zarr (Zarr)")
        if self.path.exists() and not overwrite:
            raise InputError(f"{self.path}: exists already; give another name, or overwrite it (overwrite=True)")
        self._temporary = self.path.with_name(f".{self.path.stem}.{os.getpid()}.part{self.path.suffix}")
        self._first: xr.Dataset | None = None
        self._last: Any = None

    def __enter__(self) -> ForecastWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                if self._first is None:
                    raise InputError(f"{self.path}: no forecasts to write")
                self._place()
        except OSError as problem:
            raise _unwritable(self.path, problem) from problem
        finally:
            _remove(self._temporary)

    def append(self, part: xr.Dataset) -> None:
        """Write one part: starts after all that were written before."""
        check_forecast(part, str(self.path))
        member = next((d for d in MEMBERS if d in part.dims), "number")
        part = part.rename({member: "number"}) if member != "number" else part
        part = part.transpose(*(d for d in DIMENSIONS if d in part.dims))
        if self._first is not None:
            self._check_like(part)
        try:
            if self._first is None:
                self._temporary.parent.mkdir(parents=True, exist_ok=True)
                _remove(self._temporary)
                self._begin(part)
                self._first = part.isel(time=slice(0, 0)).drop_vars("time")
            else:
                self._continue(part)
        except (OSError, RuntimeError) as problem:
            raise _unwritable(self.path, problem) from problem
        self._last = part["time"].values[-1]

    def _check_like(self, part: xr.Dataset) -> None:
        assert self._first is not None
        problems = []
        names, known = ({str(name) for name in d.data_vars} for d in (part, self._first))
        if names != known:
            problems.append(f"{self.path}: variables {sorted(names)} after {sorted(known)}")
        for name, values in self._first.coords.items():
            if name not in part.coords or not np.array_equal(part[name].values, values.values):
                problems.append(f"{self.path}: {name} differs from that of the parts before")
        problems += [
            f"{self.path}: {name} is {part[name].attrs.get('units')} {part[name].dims}, before it was "
            f"{self._first[name].attrs.get('units')} {self._first[name].dims}"
            for name in sorted(names & known)
            if part[name].dims != self._first[name].dims
            or part[name].attrs.get("units") != self._first[name].attrs.get("units")
        ]
        if part["time"].values[0] <= self._last:
            problems.append(f"{self.path}: starts at {part['time'].values[0]} after {self._last}; write them in order")
        if problems:
            raise InputError(problems)

    def _begin(self, part: xr.Dataset) -> None:
        leads = part["prediction_timedelta"].values / _SECOND
        whole = bool((leads % 3600 == 0).all())
        lead = np.round(leads / (3600 if whole else 1)).astype(np.int64)
        attributes = {"units": "hours" if whole else "seconds"}
        plain = part.assign_coords(prediction_timedelta=("prediction_timedelta", lead, attributes))
        plain = plain.assign_coords(time=("time", _seconds(part), _TIME))
        for name, facts in _COORDINATES.items():
            if name in plain.coords:
                plain[name].attrs = {**facts, **plain[name].attrs}
        chunks = "chunksizes" if self.path.suffix == ".nc" else "chunks"
        sizes = {"time": 1, "prediction_timedelta": 1}
        encoding: dict[Any, dict[str, Any]] = {
            name: {chunks: tuple(sizes.get(str(d), array.sizes[d]) for d in array.dims), "_FillValue": None}
            for name, array in plain.data_vars.items()
        }
        plain = plain.drop_encoding()
        if self.path.suffix == ".nc":
            plain.to_netcdf(self._temporary, engine="netcdf4", unlimited_dims=["time"], encoding=encoding)
        else:
            plain.to_zarr(self._temporary, mode="w-", encoding=encoding, zarr_format=2, consolidated=True)

    def _continue(self, part: xr.Dataset) -> None:
        if self.path.suffix == ".zarr":
            plain = part.drop_vars([name for name in part.coords if name != "time"]).drop_encoding()
            for array in plain.data_vars.values():
                array.attrs = {}
            plain = plain.assign_coords(time=("time", _seconds(part)))
            plain.attrs = self._first.attrs if self._first is not None else {}  # appending writes them anew
            plain.to_zarr(self._temporary, append_dim="time", consolidated=True)
            return
        import netCDF4

        with netCDF4.Dataset(self._temporary, "a") as file:
            before = len(file.dimensions["time"])
            place = slice(before, before + part.sizes["time"])
            file["time"][place] = _seconds(part)
            for name, array in part.data_vars.items():
                file[name][place] = array.values

    def _place(self) -> None:
        """Everything on the disk first, then the name."""
        files = (
            [self._temporary] if self._temporary.is_file() else [p for p in self._temporary.rglob("*") if p.is_file()]
        )
        for file in files:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if self.path.is_dir():  # a folder cannot be replaced in one step: the old one steps aside first
            old = self.path.with_name(f".{self.path.stem}.{os.getpid()}.old{self.path.suffix}")
            os.replace(self.path, old)
            os.replace(self._temporary, self.path)
            _remove(old)
        else:
            os.replace(self._temporary, self.path)


def _seconds(part: xr.Dataset) -> npt.NDArray[np.int64]:
    seconds: npt.NDArray[np.int64] = np.round((part["time"].values - _EPOCH) / _SECOND).astype(np.int64)
    return seconds


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # its folder may be a file, which is then what the caller hears of
            path.unlink(missing_ok=True)


def _unwritable(path: Path, problem: Exception) -> ZooError:
    reason = getattr(problem, "strerror", None) or problem
    return ZooError(f"{path}: the forecast cannot be written ({reason}); nothing was left there")


def _attributes(variable: str, field: str, units: Mapping[str, str]) -> dict[str, str]:
    known = variable_named(variable)
    unit = units.get(field) or (known.unit if known else "")
    if not unit:
        raise InputError(f'forecast: "{field}" is not in the table of names, so its unit must be given (units)')
    found = {"units": unit, "long_name": variable.replace("_", " ")}
    if known and known.standard_names:
        found["standard_name"] = known.standard_names[0]
    return found
