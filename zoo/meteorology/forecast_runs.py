"""A trained forecaster at work: forecasts of a file as a dataset, and pictures of a finished run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from zoo.domain import Batch
from zoo.errors import InputError, counted
from zoo.meteorology.archive import describe_files, open_series
from zoo.meteorology.fields import Fields
from zoo.meteorology.forecast_file import forecast_dataset
from zoo.meteorology.forecast_writer import ForecastWriter
from zoo.meteorology.names import parse_field, variable_named
from zoo.meteorology.perturbations import Perturbations, perturbed
from zoo.meteorology.rollout import ways
from zoo.meteorology.source import left_out as left_out_of
from zoo.meteorology.times import MONTH_HOURS, TimeAxis, later, real_date, time_axis
from zoo.places import Place, local

if TYPE_CHECKING:
    from zoo.data.prepare import Data
    from zoo.domain import DataRequest
    from zoo.meteorology.forecasting import Forecast, Initial

SIDE_BY_SIDE = 8
"""Forecasts that are made together: of several starts, or several members of an ensemble."""
MOST_MAPS = 4


@dataclass(frozen=True)
class Made:
    """A forecast to make: from the time at an index of a file, of one member where there is an ensemble.

    `perturbation` (V H W) is what is added to the states that it is made from.
    """

    start: int
    member: int | None
    perturbation: Any = None


def predict_file(
    task: Forecast, request: DataRequest, model: nn.Module, device: torch.device, source: Place, target: Path
) -> tuple[int, int, dict[str, int]]:
    """Forecast from every time of a file, to NetCDF or Zarr.

    Returns how many were forecast from, how many could not be read, and how many others were left out, by reason.

    Every lead and every step of the rollout that the model was trained for is in it, and every member where the task
    has an ensemble. Leads in months are written with the hours of a mean month. Memory is that of `SIDE_BY_SIDE`
    forecasts, whatever the number of members. Raises `InputError` for files that lack a field or are on another grid,
    for more members than one in them, with no time to forecast from, and as `ForecastWriter` and `Ensemble.check` do.
    """
    files = describe_files(str(source), task.wanted.files, request.recipe.data.columns, training=False)
    series = open_series(files, task.variables, request.card, task.wanted.box, broken="skip")
    if len(series) > 1:
        labels = ", ".join(fields.label for fields in series)
        raise InputError(f"{source}: has {len(series)} members ({labels}); give a file of one of them at a time")
    fields = series[0]
    task.inputs.settle(request.card, task.predicts)
    given = task.of_file(fields)
    mine = local(source)
    if mine and mine.exists() and target.exists() and target.samefile(mine):
        raise InputError(f"{target}: is the input itself; write the forecast to another file")
    if task.ensemble is not None:
        task.ensemble.check(task.grid)
    broken = fields.unreadable()
    starts, left_out = _starts(task, fields, broken)
    if not starts:
        reasons = {"with values that are missing or cannot be read": len(broken)} | left_out
        raise InputError(f"{source}: no time to forecast from ({counted(reasons)}); complete the data")
    members = [None] if task.ensemble is None else range(task.ensemble.members)
    wished = [(start, member) for start in starts for member in members]
    with ForecastWriter(target, overwrite=True) as writer, torch.no_grad():
        for first in range(0, len(wished), SIDE_BY_SIDE):
            for part in _forecasts(task, model, device, given, wished[first : first + SIDE_BY_SIDE]):
                writer.append(part)
    return len(starts), len(broken), left_out


def _starts(task: Forecast, fields: Fields, broken: Collection[int]) -> tuple[list[int], dict[str, int]]:
    """Indices of the times to forecast from; how many times are none, beside those that are `broken`, by reason."""
    size, unit = task.inputs.needs.apart(task.step)
    found: list[int] = []
    left_out: Counter[str] = Counter(left_out_of(fields))
    for index in (i for i in range(len(fields)) if i not in broken):
        states = task.inputs.needs.before(fields.axis, index, task.step)
        if states is None:
            left_out[f"without a state {size:g} {unit} before"] += 1
        elif any(state in broken for state in states):
            left_out[f"with values that are missing {size:g} {unit} before"] += 1
        else:
            found.append(index)
    return found, dict(left_out)


def _forecasts(
    task: Forecast, model: nn.Module, device: torch.device, fields: Fields, wished: Sequence[tuple[int, int | None]]
) -> Iterator[xr.Dataset]:
    """One dataset for each start and member."""
    made = _perturbed(task, fields, wished)
    found: dict[tuple[int, int], Any] = {}
    for lead in task.leads:
        steps = [lead * k for k in range(task.rollout + 1)]
        valid = [_times(fields.axis.values[one.start], task.step, steps) for one in made]
        batch = _batch(task, fields, made, lead, valid).to(device)
        for k, said in enumerate(task.steps(model, batch, task.rollout), 1):
            usual = [task.inputs.usual(axis, [min(k, len(axis) - 1)], task.targets_wanted)[0] for axis in valid]
            found[lead, k] = task.inputs.in_units(said, np.stack(usual))
    reached = sorted(ways(task.leads, task.rollout).items())
    hours = task.step[0] * (1.0 if task.step[1] == "hours" else MONTH_HOURS)
    for i, one in enumerate(made):
        values = np.stack([found[way][i] for _, way in reached])[None].astype(np.float32)
        yield forecast_dataset(
            task.targets_wanted,
            values if one.member is None else values[:, :, None],
            starts=[_real_date(fields, one.start)],
            lead_hours=[ahead * hours for ahead, _ in reached],
            latitudes=task.latitudes,
            longitudes=task.longitudes,
            units=fields.units,
            members=None if one.member is None else [one.member],
            attributes=None if task.ensemble is None else {"ensemble": str(task.ensemble)},
        )


def _perturbed(task: Forecast, fields: Fields, wished: Sequence[tuple[int, int | None]]) -> list[Made]:
    if task.ensemble is None:
        return [Made(start, member) for start, member in wished]
    std = task.learned.states.of(task.variables).std
    perturbations = Perturbations(task.ensemble, task.variables, std, task.grid)
    return [Made(start, member, perturbations.of(member or 0, fields.axis.label(start))) for start, member in wished]


def _batch(task: Forecast, fields: Fields, made: Sequence[Made], lead: int, valid: Sequence[TimeAxis]) -> Batch:
    """What the model is given for some forecasts; `valid`: for each the start and what comes after."""
    given = []
    for one, axis in zip(made, valid, strict=True):
        state = perturbed(task.inputs.before(fields, one.start, task.step), one.perturbation)
        given.append(task.inputs.given(state, fields, axis, [*range(len(axis)), 0], lead))
    inputs = {name: torch.tensor(np.stack([one[name] for one in given])) for name in given[0]}
    return Batch(inputs, torch.empty(len(made)), len(made))


def _real_date(fields: Fields, index: int) -> np.datetime64:
    """A time as forecasts are written. Raises `InputError` for a date that only a climate model's calendar has."""
    found = real_date(fields.axis.values[index])
    if found is None:
        raise InputError(
            f"{fields.label}: {fields.axis.label(index)} is a date of the calendar {fields.axis.calendar} only, and "
            "forecasts are written with real dates; leave that time out of the file"
        )
    return found


def _times(value: Any, step: tuple[float, str], steps: Sequence[int]) -> TimeAxis:
    """Times so many steps of the training data after one; a file need not have them, nor more than one time."""
    size, unit = step
    values = [later(value, n * size, unit) for n in steps] if any(steps) else [value]
    return time_axis("forecast", np.array(values), broken="skip")


def illustrate(
    task: Forecast,
    model: nn.Module,
    device: torch.device,
    data: Data,
    scores: Sequence[Mapping[str, Any]],
    folder: Path,
) -> None:
    """Maps of the last test forecast at the longest lead, and skill against lead time, as PNG in `folder`."""
    from zoo.meteorology.maps import draw_maps
    from zoo.meteorology.skill_plot import draw_skill

    examples: tuple[Initial, ...] = data.test
    furthest = max(example.lead * example.steps for example in examples)
    last = [example for example in examples if example.lead * example.steps == furthest][-1]
    with torch.no_grad():
        batch = task.collate([last], [last.row], None).to(device)
        forecast = task.fields(model, batch)[0]
    truth = batch.targets[0, 0].double().cpu().numpy()
    for name, said, came in list(zip(task.targets_wanted, forecast, truth, strict=True))[:MOST_MAPS]:
        axes = {"latitude": list(task.latitudes), "longitude": list(task.longitudes)}
        arrays = [xr.DataArray(values, axes, ["latitude", "longitude"]) for values in (said, came)]
        title = f"{name.replace('_', ' ')}: forecast of {last.text} for {last.target}"
        draw_maps(folder / "maps" / f"{name}.png", *arrays, title=title, variable=name)
    if len({score["lead_steps"] for score in scores}) > 1:
        names = task.targets_wanted[:MOST_MAPS]
        draw_skill(folder / "skill.png", _curves(names, scores), [(name, None) for name in names])


def _curves(names: Sequence[str], scores: Sequence[Mapping[str, Any]]) -> xr.Dataset:
    """The rmse of each field by system and lead, as `draw_skill` wants it."""
    systems = {"forecast": "", "persistence": "persistence_", "climatology": "climatology_"}
    leads = sorted({score["lead_steps"] for score in scores})
    by_lead = {lead: [score for score in scores if score["lead_steps"] == lead] for lead in leads}
    data = {}
    for name in names:
        values = np.full((1, len(systems), len(by_lead)), np.nan)
        for i, prefix in enumerate(systems.values()):
            for j, mine in enumerate(by_lead.values()):
                errors = [s[key] for s in mine if (key := f"{prefix}mse_{name}") in s]
                values[0, i, j] = np.sqrt(np.mean(errors)) if errors else np.nan
        known = variable_named(parse_field(name)[0])
        data[name] = (("metric", "system", "prediction_timedelta"), values, {"units": known.unit if known else ""})
    hours = [np.mean([s["lead_hours"] for s in mine]) for mine in by_lead.values()]  # months differ
    steps = np.array([round(h * 3600) for h in hours], dtype="timedelta64[s]").astype("timedelta64[ns]")
    return xr.Dataset(data, {"metric": ["rmse"], "system": list(systems), "prediction_timedelta": steps})
