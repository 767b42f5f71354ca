"""Downscaling: what area means say of what is inside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from forecasts import VARIABLES, Forecasts, Zeros, fetch, waves

from zoo.data.prepare import Data
from zoo.errors import InputError
from zoo.meteorology.downscaling import Downscaling, area_means, coarse_grid, interpolated
from zoo.meteorology.forecast_file import read_forecast
from zoo.meteorology.grids import Grid
from zoo.meteorology.scores import latitude_weights
from zoo.training import inference
from zoo.training.finished import Run, predict_file
from zoo.training.run import train

GLOBE = Grid(tuple((np.arange(8) + 0.5) * 22.5 - 90), tuple(np.arange(16) * 22.5))


@pytest.fixture
def made(tmp_path: Path) -> Forecasts:
    return Forecasts(tmp_path)


def changes(**options: Any) -> dict[str, Any]:
    return {"task": {"downscaling": {"variables": VARIABLES, "factor": 4, "climatology": "all", **options}}}


def prepared(made: Forecasts, **options: Any) -> tuple[Downscaling, Data]:
    job = made.job({"task.forecast": None, **{f"task.{k}": v for k, v in changes(**options)["task"].items()}})
    assert isinstance(job.task, Downscaling)
    return job.task, job.task.prepare(job, fetch)


def test_means_are_of_areas_and_keep_the_mean_of_the_globe() -> None:
    fields = np.random.default_rng(0).normal(size=(3, 8, 16))
    means = area_means(fields, GLOBE, 4)
    assert means.shape == (3, 2, 4)
    weights = latitude_weights(GLOBE.latitudes, "area")
    expected = (fields[0, :4, 4:8] * weights[:4, None]).sum() / (weights[:4].sum() * 4)
    assert means[0, 0, 1] == pytest.approx(expected, rel=1e-6)
    coarse = coarse_grid(GLOBE, 4)
    assert coarse == Grid((-45.0, 45.0), (33.75, 123.75, 213.75, 303.75))
    whole = (fields * weights[:, None]).mean(axis=(1, 2))
    again = (means * latitude_weights(coarse.latitudes, "area")[:, None]).mean(axis=(1, 2))
    assert again == pytest.approx(whole, abs=1e-6)


def test_interpolation_is_linear_between_the_middles_of_cells_and_goes_around() -> None:
    cells = np.array([[0.0, 4.0, 8.0, 4.0], [8.0, 12.0, 16.0, 12.0]])
    fine = interpolated(cells, 4, around=True)
    assert fine.shape == (8, 16)
    assert fine[0, 1:7].tolist() == pytest.approx([0.5, 0.5, 1.5, 2.5, 3.5, 4.5])
    assert fine[0, [0, 15]].tolist() == [1.5, 2.5], "between the last cell and the first"
    assert fine[2:6, 1] - fine[0, 1] == pytest.approx([1.0, 3.0, 5.0, 7.0])
    assert fine[-1].tolist() == pytest.approx((fine[0] + 8).tolist()), "beyond the outermost middles nothing changes"
    alone = interpolated(cells, 4, around=False)
    assert alone[:, 2:14] == pytest.approx(fine[:, 2:14])
    assert alone[0, :2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1}, "factor: got 1; it is 2 or more, the coarse grid's step over the fine one's"),
        ({"lead_hours": [6]}, "lead_hours"),
        ({"variables": []}, "variables: none"),
    ],
)
def test_wrong_options(made: Forecasts, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        prepared(made, **options)
    assert message in str(error.value)


def test_cells_must_tile_the_grid(made: Forecasts) -> None:
    task, data = prepared(made, factor=3)
    with pytest.raises(
        InputError, match="task: factor: 3: cells of 3 x 3 points do not tile the grid of 8 x 16; give a"
    ):
        task.collate(data.train[:1], [0], 0)


def test_what_is_given_is_the_interpolated_field_of_the_same_time(made: Forecasts) -> None:
    task, data = prepared(made, predicts="state")
    assert len(data.train) == 42, "no time is lost to a lead"
    batch = task.collate(data.train[3:5], [3, 4], 0)
    fields = task._opened.series[0]
    states = task.learned.states
    coarse = interpolated(area_means(fields.read([3, 4], VARIABLES), GLOBE, 4), 4, around=True)
    assert batch.inputs["fields"].numpy() == pytest.approx(states.of(VARIABLES).normalise(coarse), abs=1e-6)
    assert batch.targets[:, 0].numpy() == pytest.approx(states.normalise(fields.read([3, 4], VARIABLES)), abs=1e-6)
    assert batch.inputs["hours"].tolist() == [0, 0]


def test_a_model_that_adds_nothing_is_interpolation(made: Forecasts) -> None:
    task, data = prepared(made, predicts="difference")
    change = task.learned.differences(0)
    lost = task._opened.series[0].read(range(42), VARIABLES)
    lost = lost - interpolated(area_means(lost, GLOBE, 4), 4, around=True)
    assert change.std == pytest.approx(lost.std(axis=(0, 2, 3)), rel=1e-4)
    change.mean[:] = 0
    found = inference.predict(task, Zeros(2), data.test, torch.device("cpu"), rows=4, longest=task.length(None))
    metrics = inference.score(task, found, data.test)
    floors = task.floors(found)
    assert set(floors) == {"interpolation", "climatology"}
    assert metrics["skill_interpolation"] == pytest.approx(0, abs=1e-5)
    for name, value in floors["interpolation"].items():
        assert metrics[name] == pytest.approx(value, rel=1e-4)


@pytest.mark.usefixtures("traced_once")
def test_a_run_predicts_from_fine_files_and_from_coarse_ones(made: Forecasts) -> None:
    made.data()
    job = made.job({"task.forecast": None, "task.downscaling": changes()["task"]["downscaling"]})
    folder = train(job, output=made.folder / "run").folder.path
    opened, summary = Run.open(folder), json.loads((folder / "summary.json").read_text())
    assert opened.evaluate() == summary["metrics"]
    assert set(summary["baselines"]) == {"interpolation", "climatology"}
    fine = waves(5)
    arrays = {
        name: (("time", "level", "latitude", "longitude"), area_means(fine[name].values, GLOBE, 4), fine[name].attrs)
        for name in ("t", "z")
    }
    grid = coarse_grid(GLOBE, 4)
    axes = {"latitude": list(grid.latitudes), "longitude": list(grid.longitudes)}
    coarse = xr.Dataset(arrays, {"time": fine.time, "level": fine.level, **axes})
    found = []
    for name, data in (("fine", fine), ("coarse", coarse)):
        target = made.folder / f"{name}_forecast.nc"
        assert predict_file(opened, made.data(data, f"{name}.nc"), target) == (5, 0)
        found.append(read_forecast(target).load())
    assert found[0].sizes["latitude"] == 8
    assert found[0].prediction_timedelta.values.tolist() == [0]
    xr.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    other = made.data(waves(4, rows=4), "other.nc")
    with pytest.raises(InputError, match=r"other.nc: is on 4 x 16 points"):
        predict_file(opened, other, made.folder / "other_forecast.nc")
