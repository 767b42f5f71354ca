"""Aurora from files to scored forecasts by the command line: a tiny one, from a checkpoint, with LoRA, on waves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from aurora_small import FIELDS, GRID, analyses, checkpoint_of, loaded, task, tiny
from forecasts import Forecasts, Says
from small_models import CPU, defaults
from typer.testing import CliRunner

from zoo.cli import app
from zoo.domain import models
from zoo.meteorology.aurora import STATIC, checkpoint, statistics
from zoo.meteorology.forecast_file import read_forecast
from zoo.meteorology.forecasting import Forecast
from zoo.recipe_file import read_recipe
from zoo.resolve import resolve
from zoo.step import build
from zoo.training.finished import Run
from zoo.weights import fetch

NAME = "aurora_small"
WANTED = [name for name in FIELDS if name not in STATIC]
BOX = {"north": 90, "south": 180 / GRID[0] - 90, "west": 0, "east": 360 - 360 / GRID[1]}
STEPS = 16


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with analyses and a checkpoint, where Aurora is the tiny one."""
    folder = tmp_path_factory.mktemp("aurora")
    analyses(folder / "analyses.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forecast, "illustrate", lambda *_: None)  # maps take longer than all the rest
        card = tiny(embed_dim=64)
        patch.setitem(models(), NAME, card)  # type: ignore[misc]  # a dict, in truth
        checkpoint_of(build(card, task(card), defaults(), CPU, load=loaded).model, folder / "x.ckpt")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # tensors are small, and threads would wait for each other
        yield folder
        torch.set_num_threads(threads)


def recipe(place: Path, precision: str = "fp32", **options: Any) -> Path:
    changes = {
        "model": NAME,
        "checkpoint": str(place / "x.ckpt"),
        "techniques.precision": precision,
        "techniques.adapter": {"lora": {"rank": 4, "targets": ["attention", "mlp"]}},
        "techniques.checkpointing": "block",
        "techniques.chunking": "positions" if precision == "bf16" else "none",
        "train": {"max_steps": STEPS, "global_batch_size": 4, "learning_rate": 2e-2, "warmup": 0.1, "seed": 3},
    }
    own = {"variables": list(FIELDS), "lead_hours": [6], "box": BOX, "climatology": "all"}
    return Forecasts(place).write(changes, data=place / "analyses.zarr", **{**own, **options})


def zoo(*arguments: Any) -> Any:
    """What the command line prints for machines."""
    said = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert said.exit_code == 0, said.output
    return json.loads(said.stdout)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def run(request: pytest.FixtureRequest, place: Path) -> Path:
    folder = place / str(request.param)
    zoo("train", recipe(place, request.param), "--output", folder)
    return folder


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def test_a_run_learns_and_takes_what_was_predicted(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == STEPS
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])
    found = summary(run)
    assert found["metrics"]["test"]["nrmse"] < found["baselines"]["climatology"]["nrmse"]
    for phase, measured in found["memory"]["measured_bytes"].items():
        assert found["memory"]["predicted_bytes"][phase] == pytest.approx(measured, rel=0.01), phase


def test_adapters_and_heads_are_trained_and_nothing_else(place: Path, run: Path) -> None:
    made: Any = Run.open(run).model
    before = checkpoint(place / "x.ckpt")
    for name, value in made.get_base_model().state_dict().items():
        own = name.replace(".base_layer", "").replace(".original_module", "")
        if own in before:  # as published, also beside what took its place
            assert torch.equal(value, before[own].to(value.dtype)), name
    named = {name: p.detach().float() for name, p in made.named_parameters()}
    new = {name: value for name, value in named.items() if "lora_" in name or ".modules_to_save." in name}
    heads = {name for name in new if ".modules_to_save." in name}
    assert len({name.split(".modules_to_save.")[0] for name in heads}) == 9
    assert len(new) - len(heads) == 2 * 4 * 6, "two of each of four layers of six blocks"
    for name in heads:
        old = before[name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")]
        assert not torch.equal(new[name], old), name
    assert all(value.any() for name, value in new.items() if "lora_B" in name), "they begin as nothing"
    saved = {file.name for file in (run / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= saved
    assert not {"model.safetensors"} & saved


def test_what_was_saved_scores_as_what_was_trained(run: Path) -> None:
    found = zoo("evaluate", run)
    for part, values in summary(run)["metrics"].items():
        for name, value in values.items():
            assert found[part][name] == pytest.approx(value, rel=1e-6), (part, name)


def test_a_forecast_of_a_file_is_scored_in_units_of_the_fields(place: Path, run: Path) -> None:
    truth = analyses(place / "later.zarr", times=10, start="2020-04-01", seed=1)
    target = run / "forecast.nc"
    said = zoo("predict", run, place / "later.zarr", "--output", target)
    assert (said["rows"], said["unreadable"]) == (9, 0), "the first time has no state 6 hours before"
    found = read_forecast(target)
    assert {"2m_temperature", "geopotential", "specific_humidity"} < set(found.data_vars)
    assert found.geopotential.sel(level=500).attrs["units"] == "m2 s-2"
    assert found.latitude.values.tolist() == [180 / GRID[0] * (i + 1) - 90 for i in range(GRID[0])]
    scored = zoo("evaluate", run, place / "later.zarr", "--forecast", target)
    assert scored["left_out"] == {"to times that the truth lacks, beyond its last": 1}
    assert scored["nrmse"]["forecast"] < scored["nrmse"]["climatology"]
    truth = truth.sel(latitude=found.latitude)["geopotential"].sel(level=500).values[2:]
    error = found.geopotential.sel(level=500).isel(prediction_timedelta=0).values[:-1] - truth
    area = np.abs(np.diff(np.sin(np.deg2rad(_edges(found.latitude.values)))))[:, None]
    rmse = np.sqrt((error**2 * area).mean(axis=(1, 2)).mean() / area.mean())
    mine = [s for s in scored["scores"] if (s["field"], s["system"]) == ("geopotential_500", "forecast")]
    assert [s["rmse"] for s in mine] == [pytest.approx(rmse, rel=1e-4)]


def test_the_state_before_is_six_hours_before_in_files_of_any_step(place: Path, run: Path) -> None:
    whole = analyses(place / "own_step.zarr", times=6, start="2020-04-01", seed=1)
    moving = whole[[name for name in whole if "time" in whole[name].dims]]
    between = moving.isel(time=slice(None, None, -1)).assign_coords(time=whole.time + np.timedelta64(3, "h"))
    three = xr.merge([xr.concat([moving, between], "time").sortby("time"), whole.drop_dims("time")])
    odd = three.isel(time=[0, 2, 4, 5, 6, 8, 10])  # one time is off the step of six hours
    own = _forecasts(place, run, "own_step", whole)
    assert own.sizes["time"] == 5
    for name, data, left_out in (("three", three, 2), ("odd", odd, 2), ("half", whole.isel(time=[0, 1, 3, 5]), 3)):
        found = _forecasts(place, run, name, data, left_out)
        shared = np.intersect1d(own.time, found.time)
        assert len(shared) == (1 if name == "half" else 5), name
        for variable in own.data_vars:  # to rounding: they are not the same number side by side
            one, other = (each[variable].sel(time=shared).values for each in (own, found))
            assert float(np.abs(one - other).max()) < 0.02 * float(one.std()), (name, variable)
    source = stored(place / "twelve.zarr", whole.isel(time=[0, 2, 4]))
    said = CliRunner().invoke(app, ["predict", str(run), str(source), "-o", str(place / "twelve.nc")])
    assert "no time to forecast from (3 without a state 6 hours before); complete the data" in str(said.exception)
    assert not (place / "twelve.nc").exists()


def _forecasts(place: Path, run: Path, name: str, data: xr.Dataset, left_out: int = 1) -> xr.Dataset:
    """Made of states by the command line; `left_out` of their times have no state six hours before."""
    said = zoo("predict", run, stored(place / f"{name}.zarr", data), "--output", place / f"{name}.nc")
    assert (said["rows"], said["unreadable"]) == (data.sizes["time"] - left_out, 0)
    assert said["left_out"] == {"without a state 6 hours before": left_out}
    return read_forecast(place / f"{name}.nc").load()


def stored(path: Path, data: xr.Dataset) -> Path:
    data.drop_encoding().to_zarr(path, mode="w", consolidated=True)
    return path


def _edges(rows: Any) -> Any:
    """Latitudes between rows, and the poles."""
    return np.concatenate([[-90], (rows[1:] + rows[:-1]) / 2, [90]])


@pytest.mark.parametrize("weights", [{}, {"geopotential_500": 5, "2m_temperature": 0.5, "specific_humidity_850": 0}])
def test_the_loss_is_of_fields_normalised_by_auroras_constants_and_weighted(
    place: Path, weights: dict[str, float]
) -> None:
    job = resolve(read_recipe(recipe(place, target_weights=weights)))
    made = job.task
    assert isinstance(made, Forecast)
    data = made.prepare(job, fetch)
    batch = made.collate(data.train[:3], range(3), 0)
    said = 0.1 * torch.randn(3, len(WANTED), *GRID, generator=torch.Generator().manual_seed(0))
    told = xr.open_zarr(place / "analyses.zarr").sortby("latitude").isel(latitude=slice(1, None))
    rows = np.cos(np.deg2rad(told.latitude.values))[:, None]
    ahead = [int(np.flatnonzero(told.time.values == np.datetime64(example.text))[0]) + 1 for example in data.train[:3]]
    constants = statistics(WANTED)
    total = 0.0
    for i, name in enumerate(WANTED):
        variable, _, level = name.rpartition("_")
        field = told[variable].sel(level=int(level)) if level.isdigit() else told[name]
        normal = (field.values[ahead] - constants.mean[i]) / constants.std[i]
        share = weights.get(name, 1) / sum(weights.get(each, 1) for each in WANTED)
        total += share * ((normal - said[:, i].numpy()) ** 2 * rows / rows.mean()).mean(axis=(1, 2)).sum()
    assert float(made.loss(Tells(said), batch)) == pytest.approx(total, rel=1e-4)
    # of waves of amplitude 1 times the cosine of latitude about 0.3, of noise, and of what was said
    assert total / 3 == pytest.approx(0.3**2 + 2 / 3 / 2 + 0.05**2 + 0.1**2, rel=0.02)


class Tells(Says):
    """Is told the time as well."""

    def forward(self, fields: torch.Tensor, hours: torch.Tensor, time: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(fields, hours)
