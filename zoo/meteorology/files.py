"""Files of a dataset: NetCDF, Zarr (a folder, or an object store through fsspec) and GRIB, opened lazily."""

from __future__ import annotations

import contextlib
import difflib
import glob
import importlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import InputError
from zoo.places import is_url

if TYPE_CHECKING:
    import xarray as xr

ENGINES = {"netcdf": "netCDF4", "zarr": "zarr", "grib": "cfgrib"}
"""Formats, and the library that reads each."""

_EXTRA = {"netcdf": "meteorology", "zarr": "meteorology", "grib": "grib"}
_GRIB = (".grib", ".grb", ".grib2", ".grb2")


@dataclass(frozen=True)
class Meaning:
    """What a variable of a file is, where the file does not say so: canonical `name`, `level` in hPa, `unit`."""

    name: str | None = None
    level: float | None = None
    unit: str | None = None


@dataclass(frozen=True)
class File:
    """A file, or all files of a pattern (``era5_*.nc``), or a URL (``s3://bucket/era5.zarr``, ``memory://x.zarr``).

    `variables`: name in the file -> what it means. `select`: dimension -> the coordinate's value to take, for
    dimensions that are neither time, level, place nor member (``{"expver": 1}``). `storage` goes to fsspec.
    `lenient`: what is said of a variable or dimension that the file lacks is no error.
    """

    path: str
    variables: Mapping[str, Meaning] = field(default_factory=dict)
    select: Mapping[str, Any] = field(default_factory=dict)
    storage: Mapping[str, Any] = field(default_factory=dict)
    lenient: bool = False


def expand(file: File) -> list[str]:
    """The paths of a pattern in order, or the path itself. Raises `InputError` where nothing is there."""
    if is_url(file.path):
        if not glob.has_magic(file.path):
            return [file.path]
        _needs("fsspec", "meteorology", file.path)
        import fsspec

        protocol = file.path.partition("://")[0]
        try:
            system = fsspec.filesystem(protocol, **file.storage)
            found = [f"{protocol}://{path.lstrip('/')}" for path in sorted(system.glob(file.path))]
        except (ImportError, OSError, ValueError) as error:  # the first names the package to install, such as s3fs
            raise InputError(f"{file.path}: the store cannot be looked into ({_first_line(error)})") from error
    else:
        path = str(Path(file.path).expanduser())
        found = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else [path] * Path(path).exists()
    if not found:
        raise InputError(f"{file.path}: no such file{_near(file.path)}")
    return found


def open_dataset(path: str, storage: Mapping[str, Any] | None = None) -> xr.Dataset:
    """A file as a lazy dataset: nothing but coordinates is read, nothing is cached, no task graph is made.

    Dates are decoded (`cftime` where the calendar is not the real one), packed values are unpacked when they are
    read. Raises `InputError` for a format that is not known, a library that is missing and a file that is damaged.
    """
    kind = _format(path)
    with contextlib.suppress(ImportError):
        import pyproj  # noqa: F401  of maps: before ecCodes, which cfgrib loads, for in the other order PROJ aborts
    _needs("xarray", "meteorology", path)
    _needs(ENGINES[kind], _EXTRA[kind], path)
    import xarray as xr

    options: dict[str, Any] = {"engine": ENGINES[kind].lower(), "cache": False, "chunks": None}
    if kind == "zarr" and is_url(path):
        options["storage_options"] = dict(storage or {})
    if kind == "grib":
        options["backend_kwargs"] = {"indexpath": ""}  # writes no file beside the data
    try:
        with warnings.catch_warnings():
            # a store without metadata in one place is opened all the same, and nobody here is slowed down by it
            warnings.filterwarnings("ignore", "Failed to open Zarr store with consolidated metadata", RuntimeWarning)
            stored = xr.open_dataset(path, decode_cf=False, **options)
        _date(stored)
        packed = {name: not _as_it_is(variable) for name, variable in stored.variables.items()}
        # without a decoder for them, leads of forecasts stay numbers with a unit
        return xr.decode_cf(stored, decode_timedelta=False, mask_and_scale=packed)
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, ImportError) as error:
        raise InputError(f"{path}: cannot be opened as {kind} ({_first_line(error)})") from error


def _date(stored: xr.Dataset) -> None:
    """Give times of NASA's GEOS model that have no unit theirs: minutes since ``begin_date`` and ``begin_time``."""
    for variable in stored.variables.values():
        attributes = variable.attrs
        if "begin_date" in attributes and "units" not in attributes:
            date, clock = (f"{int(attributes.get(name, 0)):0{n}}" for name, n in (("begin_date", 8), ("begin_time", 6)))
            day = f"{date[:4]}-{date[4:6]}-{date[6:]}"
            attributes["units"] = f"minutes since {day} {clock[:2]}:{clock[2:4]}:{clock[4:]}"


def _as_it_is(variable: Any) -> bool:
    """Whether values mean what is stored: nothing to scale, and nothing but NaN means that a value is missing.

    Then they need not be looked at again while they are read, which takes a fifth of the time.
    """
    attributes = variable.attrs
    missing = [attributes[name] for name in ("_FillValue", "missing_value") if name in attributes]
    return (
        variable.dtype.kind == "f"
        and not {"scale_factor", "add_offset", "_Unsigned", "valid_range", "valid_min", "valid_max"} & set(attributes)
        and all(value != value for value in missing)  # NaN alone is not equal to itself
    )


def _format(path: str) -> str:
    """The format by name or by the first bytes."""
    if is_url(path):
        if path.rstrip("/").endswith((".nc", ".nc4", ".h5", *_GRIB)):
            raise InputError(f"{path}: only Zarr is read from an object store; copy the file here, or convert it")
        return "zarr"
    place = Path(path)
    if place.is_dir():
        if any((place / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata")):
            return "zarr"
        raise InputError(
            f"{path}: a folder, and not a Zarr store; give a file, a pattern such as {path}/*.nc, or a store"
        )
    with place.open("rb") as file:
        start = file.read(8)
    if start[:3] == b"CDF" or start == b"\x89HDF\r\n\x1a\n":
        return "netcdf"
    if start[:4] == b"GRIB" or place.suffix.lower() in _GRIB:
        return "grib"
    raise InputError(f"{path}: neither NetCDF, Zarr nor GRIB (it begins with {start!r})")


def _needs(module: str, extra: str, path: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        what = f"{module} is needed to read it and cannot be imported ({_first_line(error)})"
        raise InputError(f"{path}: {what}; run pip install 'science-zoo[{extra}]'") from error
    except RuntimeError as error:  # cfgrib without the ecCodes library
        raise InputError(
            f"{path}: {module} does not work here ({_first_line(error)}); run pip install eccodes"
        ) from error


def _near(path: str) -> str:
    folder = Path(path).expanduser().parent
    if is_url(path) or not folder.is_dir():
        return "" if is_url(path) else f"; nor is there a folder {folder}"
    close = difflib.get_close_matches(Path(path).name, sorted(p.name for p in folder.iterdir()), n=3, cutoff=0.5)
    return f"; near names in {folder}: {', '.join(close)}" if close else ""


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def listed(files: str | File | Sequence[str | File]) -> list[File]:
    """One or several files, given as paths or as `File`."""
    several = [files] if isinstance(files, str | File) else list(files)
    if not several:
        raise InputError("no files; give at least one path")
    return [File(file) if isinstance(file, str) else file for file in several]
