"""Forecasts written part by part to NetCDF or Zarr: start by start, member by member, whole or not at all.

The layout is that of `zoo.meteorology.forecast_file`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from zoo.errors import InputError, ZooError
from zoo.meteorology.forecast_file import DIMENSIONS, check_forecast
from zoo.meteorology.verification import MEMBERS
from zoo.places import target as local_target

_EPOCH = np.datetime64("1970-01-01T00:00:00", "ns")
_SECOND = np.timedelta64(1, "s")
_GROWING = ("time", "number")
_COORDINATE_CHUNK = 1024  # starts or members whose dates or numbers are stored together in a Zarr
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


def write_forecast(path: Path | str, parts: Iterable[xr.Dataset], *, overwrite: bool = False) -> Path:
    """Write parts of a forecast, in order of start, one at a time; see `ForecastWriter`."""
    with ForecastWriter(path, overwrite=overwrite) as writer:
        for part in parts:
            writer.append(part)
    return writer.path


class ForecastWriter:
    """Writes a forecast dataset part by part along ``time`` and ``number``: memory is that of a part.

    `path` ends in ``.nc`` (NetCDF) or ``.zarr`` (a folder); each start, lead time and member is stored by itself. A
    part has starts with all members, or some members of one start, after those that were written before. Until the
    block ends, everything is under a hidden name beside `path`; it is renamed when all of it is on the disk, and
    deleted where the block raises. Raises `InputError` for another ending or an address, for a `path` that exists
    unless `overwrite` and, of a folder, it holds a forecast; for parts that are no forecasts, that differ in anything
    but their starts and members or are out of order, where members of a start are missing, and where there were none;
    `ZooError` where it cannot be written.
    """

    def __init__(self, path: Path | str, *, overwrite: bool = False) -> None:
        self.path = local_target(path).expanduser().absolute()
        self.overwrite = overwrite
        if self.path.suffix not in (".nc", ".zarr"):
            raise InputError(f"{self.path}: forecasts are written to a name that ends in .nc (NetCDF) or .zarr (Zarr)")
        if self.path.exists() and not overwrite:
            raise InputError(f"{self.path}: exists already; give another name, or overwrite it (overwrite=True)")
        if self.path.is_dir() and not (self.path / "prediction_timedelta").is_dir():
            raise InputError(f"{self.path}: is a folder that holds no forecast, and is not replaced; give another name")
        self._temporary = self.path.with_name(f".{self.path.stem}.{os.getpid()}.part{self.path.suffix}")
        self._first: xr.Dataset | None = None
        self._last: Any = None
        self._starts = 0
        self._members: list[Any] = []
        self._written = 0  # members of the last start

    def __enter__(self) -> ForecastWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                if self._first is None:
                    raise InputError(f"{self.path}: no forecasts to write")
                if lacking := self._lacking():
                    raise InputError(lacking)
                self._place()
        except OSError as problem:
            raise _unwritable(self.path, problem) from problem
        finally:
            _remove(self._temporary)

    def append(self, part: xr.Dataset) -> None:
        """Write one part: starts after all that were written before, or the next members of the last one."""
        check_forecast(part, str(self.path))
        member = next((d for d in MEMBERS if d in part.dims), "number")
        part = part.rename({member: "number"}) if member != "number" else part
        part = part.assign_coords(number=part["number"]) if "number" in part.dims else part
        part = part.transpose(*(d for d in DIMENSIONS if d in part.dims))
        if self._first is not None:
            self._check_like(part)
        again = self._first is not None and part["time"].values[0] == self._last
        start = self._starts - again
        known = self._written if again else 0
        try:
            if self._first is None:
                self._temporary.parent.mkdir(parents=True, exist_ok=True)
                _remove(self._temporary)
                self._begin(part)
                self._first = part.isel(dict.fromkeys([d for d in _GROWING if d in part.dims], slice(0, 0)))
            else:
                places = {"time": slice(start, start + part.sizes["time"])}
                places["number"] = slice(known, known + part.sizes.get("number", 0))
                (self._into_zarr if self.path.suffix == ".zarr" else self._into_netcdf)(part, places)
        except (OSError, RuntimeError) as problem:
            raise _unwritable(self.path, problem) from problem
        self._starts, self._last = start + part.sizes["time"], part["time"].values[-1]
        numbers = _numbers(part)
        self._written = known + len(numbers)
        self._members += numbers[max(len(self._members) - known, 0) :]

    def _check_like(self, part: xr.Dataset) -> None:
        assert self._first is not None
        problems = []
        names, known = ({str(name) for name in d.data_vars} for d in (part, self._first))
        if names != known:
            problems.append(f"{self.path}: variables {sorted(names)} after {sorted(known)}")
        for name, values in self._first.coords.items():
            if name not in _GROWING and (name not in part.coords or not np.array_equal(part[name], values)):
                problems.append(f"{self.path}: {name} differs from that of the parts before")
        problems += [
            f"{self.path}: {name} is {part[name].attrs.get('units')} {part[name].dims}, before it was "
            f"{self._first[name].attrs.get('units')} {self._first[name].dims}"
            for name in sorted(names & known)
            if part[name].dims != self._first[name].dims
            or part[name].attrs.get("units") != self._first[name].attrs.get("units")
        ]
        if problems:
            raise InputError(problems)
        self._check_order(part)

    def _check_order(self, part: xr.Dataset) -> None:
        """Raises `InputError` for starts, or members of the last start, that do not come next."""
        numbers, times = _numbers(part), part["time"].values
        if numbers and times[0] == self._last and len(times) == 1:
            if self._starts == 1:
                if numbers[0] <= self._members[-1]:
                    raise InputError(
                        f"{self.path}: member {numbers[0]} of {times[0]} after {self._members[-1]}; write them in order"
                    )
                return
            wanted = self._members[self._written :]
        elif times[0] <= self._last:
            raise InputError(f"{self.path}: starts at {times[0]} after {self._last}; write them in order")
        elif lacking := self._lacking():
            raise InputError(lacking)
        else:
            wanted = self._members
        if numbers != wanted[: len(numbers)] or (len(times) > 1 and numbers != wanted):
            raise InputError(
                f"{self.path}: members {numbers} of {times[0]}, where {wanted} of those of the first start come next"
            )

    def _lacking(self) -> str:
        if self._written == len(self._members):
            return ""
        return (
            f"{self.path}: {self._last} has {self._written} members, and the first start {len(self._members)}; "
            "write all members of each start"
        )

    def _begin(self, part: xr.Dataset) -> None:
        leads = part["prediction_timedelta"].values / _SECOND
        whole = bool((leads % 3600 == 0).all())
        lead = np.round(leads / (3600 if whole else 1)).astype(np.int64)
        # with its type, without which xarray leaves leads as numbers
        attributes = {"units": "hours" if whole else "seconds", "dtype": "timedelta64[ns]"}
        plain = part.assign_coords(prediction_timedelta=("prediction_timedelta", lead, attributes))
        plain = plain.assign_coords(time=("time", _seconds(part), _TIME))
        for name, facts in _COORDINATES.items():
            if name in plain.coords:
                plain[name].attrs = {**facts, **plain[name].attrs}
        chunks = "chunksizes" if self.path.suffix == ".nc" else "chunks"
        sizes = {"time": 1, "prediction_timedelta": 1, "number": 1}
        encoding: dict[Any, dict[str, Any]] = {
            name: {chunks: tuple(sizes.get(str(d), array.sizes[d]) for d in array.dims), "_FillValue": None}
            for name, array in plain.data_vars.items()
        }
        growing = [name for name in _GROWING if name in plain.dims]
        plain = plain.drop_encoding()
        if self.path.suffix == ".nc":
            plain.to_netcdf(self._temporary, engine="netcdf4", unlimited_dims=growing, encoding=encoding)
        else:
            encoding |= {name: {"chunks": (_COORDINATE_CHUNK,)} for name in growing}
            plain.to_zarr(self._temporary, mode="w-", encoding=encoding, zarr_format=2, consolidated=True)

    def _into_netcdf(self, part: xr.Dataset, places: Mapping[str, slice]) -> None:
        import netCDF4

        with netCDF4.Dataset(self._temporary, "a") as file:
            for name, values in _plain(part).items():
                file[name][tuple(places.get(str(d), slice(None)) for d in values.dims)] = values.values

    def _into_zarr(self, part: xr.Dataset, places: Mapping[str, slice]) -> None:
        import zarr

        group = zarr.open_group(self._temporary, mode="r+", use_consolidated=False)
        for name, values in _plain(part).items():
            array: Any = group[name]
            key = tuple(places.get(str(d), slice(None)) for d in values.dims)
            ends = [size if k.stop is None else max(size, k.stop) for size, k in zip(array.shape, key, strict=True)]
            array.resize(tuple(ends))
            array[key] = values.values

    def _place(self) -> None:
        """Everything on the disk first, then the name."""
        if self.path.suffix == ".zarr":
            import zarr

            zarr.consolidate_metadata(self._temporary, zarr_format=2)
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


def _plain(part: xr.Dataset) -> dict[str, xr.Variable]:
    """What of a part belongs to its starts and members alone."""
    found = {str(name): array.variable for name, array in part.data_vars.items()}
    found["time"] = xr.Variable("time", _seconds(part))
    return found | ({"number": part["number"].variable} if "number" in part.dims else {})


def _numbers(part: xr.Dataset) -> list[Any]:
    return list(part["number"].values.tolist()) if "number" in part.dims else []


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
