"""Forecasts in a file scored by a finished run against what came, beside its floors, over the same forecasts.

Legend of shapes: `V` fields, `H` x `W` grid points.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from zoo.domain import Scores
from zoo.errors import InputError, counted, unknown
from zoo.meteorology.archive import check_grid, describe_files, open_series
from zoo.meteorology.evaluation import FORECAST, Came, Recent, gather
from zoo.meteorology.fields import Fields
from zoo.meteorology.forecast_file import read_forecast
from zoo.meteorology.grids import Grid, file_grid
from zoo.meteorology.names import field_name, levels_hpa, parse_field, short_field, unit_key, variable_named
from zoo.meteorology.pictures import png
from zoo.meteorology.score_tables import draw_scores, save_scores, scores_file, told
from zoo.meteorology.source import left_out
from zoo.meteorology.times import MONTH_HOURS, date_label, later, real_date
from zoo.meteorology.verification import Verification
from zoo.places import Place

if TYPE_CHECKING:
    from zoo.domain import DataRequest
    from zoo.meteorology.forecasting import Forecast

_HOUR = np.timedelta64(1, "h")
_CLOSE = 1e-3  # degrees, as `zoo.meteorology.archive.check_grid` has it


@dataclass(frozen=True)
class Array:
    """A variable of a forecast file by its name in the table: its `fields`, one for each of its `levels` (hPa)."""

    name: str
    levels: tuple[float, ...]
    unit: str

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(field_name(self.name, level) for level in self.levels) or (self.name,)


def score_file(
    task: Forecast, request: DataRequest, forecast: Place, truth: Place, target: Path | None, picture: Path | None
) -> Scores:
    """Scores of the forecasts of a file, of one or of many members, against the states of `truth`.

    Climatology and deviations are those of the run's training part. A forecast whose start or end `truth` lacks, or
    with values missing there, is left out of all systems and counted. Everything goes to `target` (``.nc``), the error
    against lead time to `picture` (``.png``), where these are given. Raises `InputError` for files of another layout,
    for fields that the run does not know or `truth` lacks, for other units and grids, where nothing can be scored, and
    for values of a forecast that are not finite.
    """
    target = None if target is None else scores_file(target, (forecast, truth))
    picture = None if picture is None else png(picture)
    said, arrays = _forecast(task, forecast)
    states = _truth(task, request, truth, arrays)
    came = _WhatCame(task, states, arrays, 2 * said.sizes["prediction_timedelta"] + 1)
    verification = Verification(spectrum=task.grid.is_global)
    floor = task.systems[1].rstrip("_")
    gather(verification, said, came, floor=floor, finite=str(forecast))
    if not verification.sums:
        raise InputError(
            f"{truth}: none of the forecasts of {forecast} can be scored ({counted(came.left_out)}): it needs the "
            f"states at the start and at the end of a forecast, has {came.span}, and the forecasts start from "
            f"{date_label(said['time'].values[0])} to {date_label(said['time'].values[-1])}; several files are given "
            "as a pattern in quotes, such as 'era5_*.nc'"
        )
    found = verification.scores().assign_attrs(forecast=str(forecast), truth=str(truth))
    names = [field for array in arrays for field in array.fields]
    deviations = dict(zip(names, task.learned.states.of(names).std.tolist(), strict=True))
    scores = told(
        found, deviations, floor, verification.members[FORECAST], came.left_out, left_out(states), task.step[1]
    )
    if target is not None:
        save_scores(target, found, scores.facts)
    if picture is not None:
        draw_scores(picture, found)
    return scores


# ------------------------------------------------------------------------------------------------------ the forecast


def _forecast(task: Forecast, path: Place) -> tuple[xr.Dataset, list[Array]]:
    """A forecast file on the run's grid, with names of the table and levels in hPa; and what is in it."""
    dataset = read_forecast(path)
    if "level" in dataset.coords:
        level = dataset["level"]
        values = levels_hpa(str(path), "level", level.values.tolist(), level.attrs.get("units"))
        dataset = dataset.assign_coords(level=("level", values, {"units": "hPa"}))
    known = task.learned.climatology.names
    found, problems = [], []
    for name, array in dataset.data_vars.items():
        variable = field_name(*parse_field(str(name)))
        if variable not in known and (short := short_field(str(name))) in known:
            variable = str(short)
        levels = tuple(array["level"].values.tolist()) if "level" in array.dims else ()
        table = variable_named(parse_field(variable)[0])
        unit = str(array.attrs["units"])
        one = Array(variable, levels, table.unit if table else unit)
        if strange := [field for field in one.fields if field not in known]:
            problems.append(unknown(str(path), "field of this run", strange[0], known) + "; leave it out of the file")
        if table and unit_key(unit) != unit_key(table.unit):
            problems.append(f'{path}: {name} is in "{unit}", and is scored in "{table.unit}"; convert it')
        found.append(one)
    if problems:
        raise InputError(problems)
    dataset = dataset.rename({n: a.name for n, a in zip(dataset.data_vars, found, strict=True) if n != a.name})
    for one in found:
        dataset[one.name].attrs["units"] = one.unit
    return _on(task.grid, dataset, path), found


def _on(grid: Grid, dataset: xr.Dataset, path: Place) -> xr.Dataset:
    """A dataset in the order of a grid. Raises `InputError` where it has other points."""
    mine = file_grid(str(path), dataset["latitude"].values, dataset["longitude"].values)
    rows = np.abs(np.subtract.outer(grid.latitudes, mine.latitudes))
    columns = np.abs(np.mod(np.subtract.outer(grid.longitudes, mine.longitudes) + 180, 360) - 180)
    if mine.shape != grid.shape or not all((d.min(axis=1) < _CLOSE).all() for d in (rows, columns)):
        raise InputError(f"{path}: is on {mine}, and the model was trained on {grid}; regrid the forecasts")
    places = {"latitude": rows.argmin(axis=1), "longitude": columns.argmin(axis=1)}
    moved = {name: index for name, index in places.items() if (np.diff(index) != 1).any()}
    return dataset.isel(moved).assign_coords(latitude=list(grid.latitudes), longitude=list(grid.longitudes))


# -------------------------------------------------------------------------------------------------------- what came


def _truth(task: Forecast, request: DataRequest, path: Place, arrays: list[Array]) -> Fields:
    """The states to score against, on the run's grid."""
    files = describe_files(str(path), task.wanted.files, request.recipe.data.columns, training=False)
    names = [field for array in arrays for field in array.fields]
    series = open_series(files, names, request.card, task.wanted.box, broken="skip")
    if len(series) > 1:
        labels = ", ".join(fields.label for fields in series)
        raise InputError(f"{path}: has {len(series)} members ({labels}); give a file of one of them")
    check_grid(series[0], task.grid)
    units = series[0].units
    if problems := [
        f'{path}: {field} is in "{units[field]}", the forecast in "{array.unit}"; convert one of them'
        for array in arrays
        for field in array.fields
        if unit_key(units[field]) != unit_key(array.unit)
    ]:
        raise InputError(problems)
    return series[0]


class _WhatCame:
    """What came of a start and a lead, from states by time; counts what is left out, by reason."""

    def __init__(self, task: Forecast, fields: Fields, arrays: list[Array], kept: int) -> None:
        self.task, self.fields, self.arrays = task, fields, arrays
        self.names = [field for array in arrays for field in array.fields]
        self.left_out: Counter[str] = Counter()
        times = fields.axis.values
        self.places = {time: place for place, time in enumerate(times)}
        self.starts = {real_date(time): place for place, time in enumerate(times)}
        self.states = Recent(self._observed, kept)
        self.before = Recent(self._before, kept)
        self.floor = task.seen(fields)

    @property
    def span(self) -> str:
        """The times in words."""
        axis = self.fields.axis
        return f"{len(axis)} times from {axis.label(0)} to {axis.label(len(axis) - 1)}"

    def __call__(self, start: np.datetime64, lead: np.timedelta64) -> Came | None:
        axis = self.fields.axis
        first = self.starts.get(start)
        if first is None:
            self.left_out["from times that the truth lacks"] += 1
            return None
        valid = self._valid(axis.values[first], float(lead / _HOUR))
        end = self.places.get(valid)
        if end is None:
            self.left_out[f"to times that the truth lacks{', beyond its last' * bool(valid > axis.values[-1])}"] += 1
            return None
        observed = self.states.at(end)
        if observed is None or self.states.at(first) is None:
            self.left_out["from or to times at which values of the truth are missing"] += 1
            return None
        usual = self.task.learned.climatology.at(axis, end, self.names)
        before = self.states.at(first) if self.floor is self.fields else self.before.at(first)
        return Came(observed, before, self._dataset(usual))

    def _valid(self, start: Any, hours: float) -> Any:
        """The time that is forecast. Months are written with the hours of a mean one."""
        size, unit = self.task.step
        if unit == "hours":
            return later(start, hours, unit)
        months = round(hours / MONTH_HOURS)
        if months % size or abs(months * MONTH_HOURS - hours) > 1:
            raise InputError(
                f"forecast: a lead of {hours:g} hours is no whole number of the run's steps of {size:g} {unit} "
                f"({size * MONTH_HOURS:g} hours each)"
            )
        return later(start, months, unit)

    def _observed(self, place: int) -> xr.Dataset | None:
        values = self.fields.read(place, self.names, nan="allow")
        return self._dataset(values) if np.isfinite(values).all() else None

    def _before(self, place: int) -> xr.Dataset:
        return self._dataset(self.floor.read(place, self.names))

    def _dataset(self, values: npt.NDArray[Any]) -> xr.Dataset:
        """Fields (V H W) as the variables of the forecast."""
        grid, data, place = self.task.grid, {}, 0
        axes = {"latitude": list(grid.latitudes), "longitude": list(grid.longitudes)}
        for array in self.arrays:
            mine = values[place : place + len(array.fields)]
            place += len(array.fields)
            coordinates = {**({"level": list(array.levels)} if array.levels else {}), **axes}
            data[array.name] = xr.DataArray(
                mine if array.levels else mine[0], coordinates, list(coordinates), attrs={"units": array.unit}
            )
        return xr.Dataset(data)
