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
    if (fields.grid.latitudes, fields.grid.longitudes) != (task.latitudes, task.longitudes):
        raise InputError(f"{source}: is on {fields.grid}, and the model was trained on another grid; regrid the file")
    broken = fields.unreadable()
    starts = [i for i in range(len(fields)) if i not in broken]
    with ForecastWriter(target, overwrite=True) as writer, torch.no_grad():
        for first in range(0, len(starts), STARTS):
            for part in _forecasts(task, model, device, fields, starts[first : first + STARTS]):
                writer.append(part)
    return len(starts), len(broken)


def _forecasts(
    task: Forecast, model: nn.Module, device: torch.device, fields: Fields, starts: Sequence[int]
) -> Iterator[xr.Dataset]:
    """One dataset for each start."""
    hours: list[float] = []
    found = []
    for lead in task.leads:
        valid = [_times(fields.axis, start, [lead * k for k in range(task.rollout + 1)]) for start in starts]
        batch = task.batch_of_starts(fields, starts, lead, valid).to(device)
        found += list(task.every_step(model, batch, valid))
        hours += [fields.axis.step * lead * k * _hours_of(fields.axis) for k in range(1, task.rollout + 1)]
    order = [hours.index(h) for h in sorted(set(hours))]  # a step of one lead may be a step of another
    for i, start in enumerate(starts):
        yield forecast_dataset(
            task.targets_wanted,
            np.stack([found[k][i] for k in order])[None].astype(np.float32),
            starts=[fields.axis.values[start]],
            lead_hours=[hours[k] for k in order],
            latitudes=task.latitudes,
            longitudes=task.longitudes,
            units=fields.units,
        )


def _hours_of(axis: TimeAxis) -> float:
    return 1.0 if axis.unit == "hours" else 365.2425 * 24 / 12


def _times(axis: TimeAxis, start: int, steps: Sequence[int]) -> TimeAxis:
    """Times so many steps from one of an axis on, which may go beyond its end."""
    value = axis.values[start]
    if axis.unit == "hours":
        ours = isinstance(value, np.datetime64)
        step: Any = np.timedelta64(round(axis.step * 3600), "s") if ours else timedelta(hours=axis.step)
        values = [value + n * step for n in steps]
    elif isinstance(value, np.datetime64):
        month = value.astype("datetime64[M]")
        inside = value - month.astype(value.dtype)
        values = [(month + round(n * axis.step)).astype(value.dtype) + inside for n in steps]
    else:
        months = [value.month - 1 + round(n * axis.step) for n in steps]
        values = [value.replace(year=value.year + m // 12, month=m % 12 + 1) for m in months]
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
    leads = sorted({score["lead_hours"] for score in scores})
    if len({score["lead_steps"] for score in scores}) > 1:
        names = task.targets_wanted[:MOST_MAPS]
        draw_skill(folder / "skill.png", _curves(names, scores, leads), [(name, None) for name in names])


def _curves(names: Sequence[str], scores: Sequence[Mapping[str, Any]], leads: Sequence[float]) -> xr.Dataset:
    """The rmse of each field by system and lead, as `draw_skill` wants it."""
    systems = {"forecast": "", "persistence": "persistence_", "climatology": "climatology_"}
    data = {}
    for name in names:
        values = np.full((1, len(systems), len(leads)), np.nan)
        for i, prefix in enumerate(systems.values()):
            for j, lead in enumerate(leads):
                errors = [s[key] for s in scores if s["lead_hours"] == lead and (key := f"{prefix}mse_{name}") in s]
                values[0, i, j] = np.sqrt(np.mean(errors)) if errors else np.nan
        known = variable_named(parse_field(name)[0])
        data[name] = (("metric", "system", "prediction_timedelta"), values, {"units": known.unit if known else ""})
    steps = np.array([round(hours * 3600) for hours in leads], dtype="timedelta64[s]").astype("timedelta64[ns]")
    return xr.Dataset(data, {"metric": ["rmse"], "system": list(systems), "prediction_timedelta": steps})
