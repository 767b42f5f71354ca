"""What is usual at a time of the year, from somebody else's files: those of each day of the year and hour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from zoo.errors import InputError, unknown
from zoo.meteorology.blocks import Handles
from zoo.meteorology.climatology import GROUPINGS
from zoo.meteorology.contents import contents
from zoo.meteorology.files import File, Meaning, expand
from zoo.meteorology.grids import Grid, matching
from zoo.meteorology.names import coordinate, identify, unknown_field
from zoo.meteorology.source import parts_of
from zoo.meteorology.times import TimeAxis

if TYPE_CHECKING:
    import xarray as xr

LAST_DAY = 365
"""Files are of a year without a leap day, whose last day stands for the 366th, too."""


def is_pattern(climatology: str | None) -> bool:
    """Whether an option names files and not a way to group times."""
    return climatology is not None and "{" in climatology


def wrong_climatology(climatology: str | None) -> list[str]:
    """What is wrong with an option ``climatology``."""
    if climatology is None or climatology in GROUPINGS:
        return []
    if not is_pattern(climatology):
        return [
            f"{unknown('climatology', 'grouping', climatology, GROUPINGS)}; or give the path of files with the day of "
            "the year and the hour in it: climate_*_doy{day:03}_hour{hour:02}.nc"
        ]
    try:
        if _path(climatology, 1, 0) == _path(climatology, 2, 0) or _path(climatology, 1, 0) == _path(climatology, 1, 6):
            return [
                f"climatology: {climatology}: names the same files for every day or hour; give {{day}} and {{hour}}"
            ]
    except (KeyError, IndexError, ValueError) as error:
        return [f"climatology: {climatology}: {error!r} in it; it takes {{day}} and {{hour}}, as {{day:03}}"]
    return []


def _path(pattern: str, day: int, hour: int) -> str:
    return pattern.format(day=day, hour=hour)


class ClimatologyFiles:
    """Files by `pattern`, as ``climate_*_doy{day:03}_hour{hour:02}.nc``: the fields of a time in one or in several.

    Fields `names` are brought to `grid`, whose points the files must have, and to the units of the table of names.
    Means are often written without attributes: where a file says no unit, it is that of the table, and levels without
    one are layers where layers are asked for. Nothing is kept: what is asked for is read.
    """

    def __init__(self, pattern: str, names: tuple[str, ...], grid: Grid) -> None:
        self.pattern, self.names, self.grid = pattern, names, grid

    def check(self, axis: TimeAxis) -> None:
        """Raises `InputError` where there are no files for a day of an axis, or for an hour; nothing is read."""
        days = sorted({min(int(day), LAST_DAY) for day in axis.day_of_year})
        hours = sorted({int(hour) for hour in axis.hour_of_day})
        wanted = dict.fromkeys([*((day, hours[0]) for day in days), *((days[0], hour) for hour in hours)])
        absent: list[str] = []
        for day, hour in wanted:
            try:
                expand(File(_path(self.pattern, day, hour)))
            except InputError as error:
                absent += error.problems
        if absent:
            raise InputError(
                f"climatology: {absent[0]}; {len(absent)} of {len(wanted)} days and hours that were looked for have no "
                "files: put them there, or say climatology: all"
            )

    def at(self, axis: TimeAxis, index: int, names: Sequence[str]) -> npt.NDArray[np.float32]:
        """What is usual at a time of any axis: (V H W).

        Raises `InputError` for times that have no files, for fields that none of them has, values that are missing,
        and as reading any file does.
        """
        day, hour = min(int(axis.day_of_year[index]), LAST_DAY), float(axis.hour_of_day[index])
        if hour != int(hour):
            raise InputError(f"climatology: {axis.label(index)} is no whole hour, and there are files for those only")
        where = _path(self.pattern, day, int(hour))
        found = np.empty((len(names), *self.grid.shape), dtype=np.float32)
        left, there = dict(zip(names, range(len(names)), strict=True)), list[str]()
        handles = Handles({})
        problems: list[str] = []
        try:
            for path in expand(File(where)):
                data = handles.get(path)
                held = contents(path, data, File(path, _unsaid(data, layers=any("_layer_" in name for name in names))))
                mine = {name: left.pop(name) for name in held.fields if name in left}
                there += held.fields
                for part in parts_of(held, mine, matching(path, held.grid, self.grid), problems):
                    found[list(part.places)] = part.read(handles, 0, 1)[0]
        finally:
            handles.close()
        problems += [f"climatology: {unknown_field(where, name, there)}" for name in left]
        if problems:
            raise InputError(problems)
        if broken := [name for name, values in zip(names, found, strict=True) if not np.isfinite(values).all()]:
            raise InputError(f"climatology: {where}: values are missing or not finite in {', '.join(broken)}")
        return found


def _unsaid(data: xr.Dataset, *, layers: bool) -> dict[str, Meaning]:
    """Units of variables and of levels that have none."""
    dims = {str(dim): data[dim].attrs if dim in data.coords else {} for dim in data.sizes}
    levels = {dim for dim, attributes in dims.items() if coordinate(dim, attributes) == "level"}
    found = {dim: Meaning(unit="layer") for dim in levels if layers and "units" not in dims[dim]}
    for name, array in data.data_vars.items():
        known = identify(str(name), array.attrs, on_levels=bool(levels & set(array.dims)), height_m=None)
        if known and "units" not in array.attrs:
            found[str(name)] = Meaning(unit=known.unit)
    return found
