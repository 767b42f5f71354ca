"""What a file holds: its variables as fields of the table of names, its times, members and grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zoo.errors import InputError, unknown
from zoo.meteorology.files import File, Meaning
from zoo.meteorology.grids import Grid, file_grid
from zoo.meteorology.names import (
    Conversion,
    Variable,
    conversion,
    coordinate,
    field_name,
    identify,
    is_layers,
    layer_name,
    levels_hpa,
    variable_named,
)

if TYPE_CHECKING:
    import xarray as xr


_LEAD = "prediction_timedelta"


@dataclass(frozen=True)
class Stored:
    """A variable of a file: what it is, and how its dimensions lie.

    `dims` are the file's names and `kinds` what they are (``time``, ``level``, ``latitude``, ``longitude``,
    ``member``), in the file's order; `fixed` has the index to take along every other dimension. `levels` are in hPa,
    those of its dimension or the one that the variable is on, or numbers of a model's `layers`; empty without a level.
    `chunks` is how many of each dimension are stored together, 0 where they are not. `unit` is the file's or the
    recipe's, which has `told`.
    """

    variable: str
    name: str
    dims: tuple[str, ...]
    kinds: tuple[str, ...]
    fixed: Mapping[str, int]
    levels: tuple[float, ...]
    chunks: tuple[int, ...]
    itemsize: int
    unit: str | None
    known: Variable | None
    layers: bool = False
    told: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of its fields, in the order of its levels."""
        called = layer_name if self.layers else field_name
        return tuple(called(self.name, level) for level in self.levels) or (self.name,)

    def conversion(self, where: str) -> Conversion:
        """Scale and offset to the unit of the table. Raises `InputError` where the unit is missing or unknown."""
        if self.known is None:
            return 1.0, 0.0
        return conversion(f"{where}: variable {self.variable}", self.known, self.unit)

    def chunk(self, kind: str) -> int:
        """How many along a dimension are stored together; 0 where nothing is chunked or there is no such dimension."""
        return self.chunks[self.kinds.index(kind)] if kind in self.kinds else 0


@dataclass(frozen=True, eq=False)
class Contents:
    """What one file holds. `times` are None where nothing in it depends on time; `members` are their labels."""

    path: str
    grid: Grid
    times: npt.NDArray[Any] | None
    members: tuple[int | str, ...]
    stored: tuple[Stored, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str) -> tuple[Stored, int] | None:
        """The variable that has a field, and the index of its level."""
        return next(((s, s.fields.index(name)) for s in self.stored if name in s.fields), None)

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(name for stored in self.stored for name in stored.fields)


def contents(path: str, data: xr.Dataset, file: File) -> Contents:
    """What an open file holds, read with what the recipe says about it.

    Variables without latitude and longitude are no fields and are left aside with the reason in `ignored`. Raises
    `InputError` for a grid or levels that cannot be read, for names in the recipe that the file does not have (unless
    `file` is lenient), for a dimension of which one must be chosen, for forecasts, and for two variables that mean the
    same field.
    """
    problems = [
        unknown(path, "variable of the file", name, [str(v) for v in data.data_vars])
        for name in file.variables
        if name not in data.data_vars and name not in data.sizes
    ]
    problems += [
        unknown(path, "dimension of the file", d, map(str, data.sizes)) for d in file.select if d not in data.sizes
    ]
    if file.lenient:
        problems = []
    if _LEAD in data.sizes and _LEAD not in file.select:
        problems.append(
            f"{path}: holds forecasts (it has a dimension {_LEAD}), not states; to score them give the file of states "
            "first, and this one after --forecast"
        )
        raise InputError(problems)
    kinds = {str(dim): _kind(data, dim) for dim in data.sizes}
    stored: list[Stored] = []
    ignored: dict[str, str] = {}
    for name in map(str, data.data_vars):
        dims = [str(dim) for dim in data[name].dims]
        if not {"latitude", "longitude"} <= {kinds[dim] for dim in dims}:
            ignored[name] = f"dimensions {', '.join(dims) or 'none'}, without latitude and longitude"
            continue
        try:
            stored.append(_stored(path, data, name, kinds, file))
        except InputError as error:
            if name in file.variables or len(data.data_vars) == 1:
                problems += error.problems
            ignored[name] = "; ".join(error.problems)
    problems += _twice(path, stored)
    if not stored and not problems:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in ignored.items())
        problems.append(f"{path}: no variable on a latitude-longitude grid: {reasons or 'the file is empty'}")
    if problems:
        raise InputError(problems)
    axes = [next(dim for dim in stored[0].dims if kinds[dim] == kind) for kind in ("latitude", "longitude")]
    grid = file_grid(path, *(data[dim].values for dim in axes))
    member = next((dim for s in stored for dim in s.dims if kinds[dim] == "member"), None)
    members = tuple(v.item() for v in data[member].values) if member is not None else ()
    return Contents(path, grid, _times(path, data, stored), members, tuple(stored), ignored)


def _kind(data: xr.Dataset, dim: Hashable) -> str:
    attributes = data[dim].attrs if dim in data.coords else {}
    return coordinate(str(dim), attributes) or str(dim)


def _stored(path: str, data: xr.Dataset, name: str, kinds: Mapping[str, str], file: File) -> Stored:
    array = data[name]
    dims = tuple(str(dim) for dim in array.dims)
    meaning = file.variables.get(name, Meaning())
    fixed = {
        dim: _chosen(path, data, name, dim, file.select)
        for dim in dims
        if kinds[dim] not in ("time", "latitude", "longitude", "level", "member")
    }
    levels, layers = _levels(path, data, dims, kinds, file, name)
    height = next((float(c.values) for n, c in array.coords.items() if n == "height" and c.ndim == 0), None)
    if meaning.name is not None:
        known = variable_named(meaning.name)
        canonical = known.name if known else meaning.name
    else:
        known = identify(name, array.attrs, on_levels=bool(levels), height_m=height)
        canonical = known.name if known else name
    unit = meaning.unit if meaning.unit is not None else array.attrs.get("units")
    encoding = array.encoding
    sizes = encoding.get("chunks") or encoding.get("chunksizes") or (0,) * len(dims)
    width = np.dtype(encoding.get("dtype", array.dtype)).itemsize
    kept = fixed, levels, tuple(sizes), width, unit, known, layers, meaning.unit is not None
    return Stored(name, canonical, dims, tuple(kinds[d] for d in dims), *kept)


def _chosen(path: str, data: xr.Dataset, name: str, dim: str, select: Mapping[str, Any]) -> int:
    """The index to take along a dimension of no known kind."""
    if dim in select:
        values = data[dim].values.tolist()
        if select[dim] not in values:
            raise InputError(
                f"{path}: variable {name}: {dim} = {select[dim]!r} is not there "
                f"(there: {', '.join(map(repr, values[:12]))})"
            )
        return int(values.index(select[dim]))
    if data.sizes[dim] == 1:
        return 0
    values = data[dim].values.tolist()
    raise InputError(
        f"{path}: variable {name} has {len(values)} of dimension {dim} ({', '.join(map(repr, values[:6]))}), and one "
        f"must be chosen; leave the others out of the file, or say in the recipe's task which, for example "
        f'files: {{"{PurePosixPath(path).name}": {{{dim}: {{select: {values[0]!r}}}}}}} '
        "(of a finished run: --set 'task.forecast.files={...}')"
    )


def _levels(
    path: str, data: xr.Dataset, dims: Sequence[str], kinds: Mapping[str, str], file: File, name: str
) -> tuple[tuple[float, ...], bool]:
    """Levels of a variable, and whether they are layers of a model. The recipe may say the unit of the coordinate."""
    meaning = file.variables.get(name, Meaning())
    dim = next((dim for dim in dims if kinds[dim] == "level"), None)
    if dim is not None:
        unit = file.variables.get(dim, Meaning()).unit or data[dim].attrs.get("units")
        values = data[dim].values.tolist()
        if layers := is_layers(unit, data[dim].attrs):
            found = tuple(float(value) for value in values)
        else:
            found = tuple(levels_hpa(f"{path}: variable {name}", dim, values, unit))
        if meaning.level is not None:
            raise InputError(f"{path}: variable {name} has levels of its own ({_words(found)}); leave out level")
        if len(set(found)) < len(found):
            raise InputError(f"{path}: variable {name}: a level is there twice ({_words(found)})")
        return found, layers
    if meaning.level is not None:
        return (float(meaning.level),), False
    for label, coord in data[name].coords.items():
        if coord.ndim == 0 and coordinate(str(label), coord.attrs) == "level" and coord.attrs.get("units") != "1":
            where = f"{path}: variable {name}"
            return tuple(levels_hpa(where, str(label), [coord.item()], coord.attrs.get("units"))), False
    return (), False


def _words(levels: Sequence[float]) -> str:
    return ", ".join(f"{level:g}" for level in levels)


def _twice(path: str, stored: Sequence[Stored]) -> list[str]:
    seen: dict[str, str] = {}
    problems = []
    for one in stored:
        for name in one.fields:
            if name in seen:
                problems.append(
                    f"{path}: variables {seen[name]} and {one.variable} both mean {name}; say in the recipe what one "
                    f"of them is, for example {one.variable}: {{name: other_{one.name}}}"
                )
                break
            seen[name] = one.variable
    return problems


def _times(path: str, data: xr.Dataset, stored: Sequence[Stored]) -> npt.NDArray[Any] | None:
    """Valid times of the time dimension, or of a file that holds one."""
    dims = {dim for s in stored for dim, kind in zip(s.dims, s.kinds, strict=True) if kind == "time"}
    if len(dims) > 1:
        raise InputError(f"{path}: several dimensions of time ({', '.join(sorted(dims))}); split the file by variable")
    dim = next(iter(dims), None)
    for label in ("valid_time", "time", *((str(c) for c in data.coords) if dim is not None else ())):
        if label in data.coords and data[label].dims == (() if dim is None else (dim,)):
            values = np.atleast_1d(data[label].values)
            if np.issubdtype(values.dtype, np.datetime64):
                return values.astype("datetime64[ns]")
            if coordinate(label, data[label].attrs) == "time":
                return values
    if dim is not None:
        raise InputError(f"{path}: dimension {dim} has no coordinate with dates")
    return None
