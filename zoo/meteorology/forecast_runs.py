"""A trained forecaster at work: forecasts of a file as a dataset, and pictures of a finished run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from zoo.errors import InputError
from zoo.meteorology.archive import describe_files, open_series
from zoo.meteorology.fields import Fields
from zoo.meteorology.forecast_file import ForecastWriter, forecast_dataset
from zoo.meteorology.names import parse_field, variable_named
from zoo.meteorology.rollout import ways
from zoo.meteorology.times import TimeAxis, time_axis

if TYPE_CHECKING:
    from zoo.data.prepare import Data
    from zoo.domain import DataRequest
    from zoo.meteorology.forecasting import Forecast, Initial

STARTS = 8
"""Forecasts that are made side by side."""
MOST_MAPS = 4


def predict_file(
    task: Forecast, request: DataRequest, model: nn.Module, device: torch.device, source: Path, target: Path
) -> tuple[int, int]:
    """Forecast from every time of a file, to NetCDF or Zarr. Returns (starts, times that could not be read).

    Every lead and every step of the rollout that the model was trained for is in it. Leads in months are written with
    the hours of a mean month. Memory is that of `STARTS` forecasts. Raises `InputError` for files that lack a field or
    are on another grid, for more members than one, and as `ForecastWriter` does.
    """
    wanted = request.recipe.data
    series = open_series(
        describe_files(str(source), task.wanted.files, wanted.columns), task.variables, request.card, task.wanted.box,
        broken="skip",
    )  # fmt: skip
    if len(series) > 1:
        labels = ", ".join(fields.label for fields in series)
        raise InputError(f"{source}: has {len(series)} members ({labels}); give a file of one of them at a time")
    fields = series[0]
    task.inputs.settle(request.card, task.predicts)
    given = task.of_file(fields)
    if source.exists() and target.exists() and target.samefile(source):
        raise InputError(f"{target}: is the input itself; write the forecast to another file")
    broken = fields.unreadable()
    needed = {i: task.inputs.needs.before(fields.axis, i, max(task.leads)) for i in range(len(fields))}
    starts = [i for i, states in needed.items() if states is not None and not broken.keys() & set(states)]
    with ForecastWriter(target, overwrite=True) as writer, torch.no_grad():
        for first in range(0, len(starts), STARTS):
            for part in _forecasts(task, model, device, given, starts[first : first + STARTS]):
                writer.append(part)
    return len(starts), len(broken)


def _forecasts(
    task: Forecast, model: nn.Module, device: torch.device, fields: Fields, starts: Sequence[int]
) -> Iterator[xr.Dataset]:
    """One dataset for each start."""
    found: dict[tuple[int, int], Any] = {}
    for lead in task.leads:
        steps = [lead * k for k in range(task.rollout + 1)]
        valid = [_times(fields.axis.values[start], task.step, steps) for start in starts]
        batch = task.batch_of_starts(fields, starts, lead, valid).to(device)
        found |= {(lead, k): said for k, said in enumerate(task.every_step(model, batch, valid), 1)}
    reached = sorted(ways(task.leads, task.rollout).items())
    for i, start in enumerate(starts):
        yield forecast_dataset(
            task.targets_wanted,
            np.stack([found[way][i] for _, way in reached])[None].astype(np.float32),
            starts=[_real_date(fields, start)],
            lead_hours=[ahead * task.step[0] * _hours_of(task.step[1]) for ahead, _ in reached],
            latitudes=task.latitudes,
            longitudes=task.longitudes,
            units=fields.units,
        )


def _real_date(fields: Fields, index: int) -> Any:
    """A time as forecasts are written. Raises `InputError` for a date that only a climate model's calendar has."""
    value = fields.axis.values[index]
    try:
        return np.datetime64(value if isinstance(value, np.datetime64) else str(value.isoformat())).astype("M8[ns]")
    except ValueError:
        raise InputError(
            f"{fields.label}: {fields.axis.label(index)} is a date of the calendar {fields.axis.calendar} only, and "
            "forecasts are written with real dates; leave that time out of the file"
        ) from None


def _hours_of(unit: str) -> float:
    return 1.0 if unit == "hours" else 365.2425 * 24 / 12


def _times(value: Any, step_and_unit: tuple[float, str], steps: Sequence[int]) -> TimeAxis:
    """Times so many steps of the training data after one; a file need not have them, nor more than one time."""
    size, unit = step_and_unit
    if unit == "hours":
        ours = isinstance(value, np.datetime64)
        step: Any = np.timedelta64(round(size * 3600), "s") if ours else timedelta(hours=size)
        values = [value + n * step for n in steps]
    elif isinstance(value, np.datetime64):
        month = value.astype("datetime64[M]")
        inside = value - month.astype(value.dtype)
        values = [(month + round(n * size)).astype(value.dtype) + inside for n in steps]
    else:
        months = [value.month - 1 + round(n * size) for n in steps]
        values = [value.replace(year=value.year + m // 12, month=m % 12 + 1) for m in months]
    return time_axis("forecast", np.array(values if any(steps) else values[:1]), broken="skip")


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
