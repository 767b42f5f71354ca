"""Runs of forecasters from training to scored forecast files, in miniature."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from forecasts import Forecasts, months, waves

from zoo.errors import InputError
from zoo.meteorology.evaluation import evaluate
from zoo.meteorology.forecast_file import read_forecast
from zoo.training.finished import Run, predict_file
from zoo.training.loop import Loop
from zoo.training.run import train

pytestmark = pytest.mark.usefixtures("traced_once")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Forecasts:
    found = Forecasts(tmp_path_factory.mktemp("forecasts"))
    found.data()
    return found


@pytest.fixture(scope="module")
def run(made: Forecasts) -> Path:
    """Three steps of two leads, a forcing, and differences."""
    job = made.job(lead_hours=[6, 12], forcings=["toa_incident_solar_radiation"], climatology="all")
    return train(job, output=made.folder / "run", with_baselines=True).folder.path


@pytest.fixture
def another(made: Forecasts) -> Callable[..., Path]:
    """A run of its own name from other data."""

    def make(name: str, data: xr.Dataset, changes: dict[str, Any] | None = None, **options: Any) -> Path:
        job = made.job(changes, data=made.data(data, f"{name}.nc"), **options)
        return train(job, output=made.folder / name).folder.path

    return make


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def test_a_run_says_how_good_it_is_beside_its_floors(run: Path) -> None:
    found = summary(run)
    assert set(found["baselines"]) == {"persistence", "climatology"}
    test = found["metrics"]["test"]
    for floor, values in found["baselines"].items():
        assert test[f"skill_{floor}"] == pytest.approx(1 - test["nrmse"] / values["nrmse"])
    assert {"rmse_temperature_500_6h", "acc_geopotential_500_12h", "bias_temperature_500_12h"} <= set(test)
    assert found["split"] == "time"
    for phase, measured in found["memory"]["measured_bytes"].items():
        predicted = found["memory"]["predicted_bytes"][phase]
        assert predicted == pytest.approx(measured, rel=0.01), phase
    maps = {path.name for path in (run / "maps").iterdir()}
    assert maps == {"temperature_500.png", "geopotential_500.png"}
    assert (run / "skill.png").stat().st_size > 5000
    lines = (run / "predictions.csv").read_text().splitlines()
    assert lines[0].startswith("row,input,target,lead_steps,lead_hours,mse_temperature_500,mse_geopotential_500,persis")
    assert len(lines) == 1 + found["rows"]["test"]


def test_evaluating_gives_the_numbers_of_the_summary(run: Path) -> None:
    assert Run.open(run).evaluate() == summary(run)["metrics"]


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_forecast_file_scores_as_the_run_says(made: Forecasts, run: Path, suffix: str) -> None:
    """The test part, forecast from a file and scored against it with the dataset's own scores."""
    source = made.data(waves().isel(time=slice(51, 60)), "later.nc")
    target = made.folder / f"forecast{suffix}"
    assert predict_file(Run.open(run), source, target) == (9, 0)
    forecast = read_forecast(target)
    assert forecast.temperature.dims == ("time", "prediction_timedelta", "level", "latitude", "longitude")
    assert forecast.temperature.attrs["units"] == "K"
    assert (forecast.prediction_timedelta.values / np.timedelta64(1, "h")).tolist() == [6, 12]
    truth = waves().sel(level=[500.0]).rename(t="temperature", z="geopotential")[["temperature", "geopotential"]]
    starts = [np.datetime64(row.split(",")[1]) for row in (run / "predictions.csv").read_text().splitlines()[1:]]
    scored = evaluate(forecast.sel(time=sorted(set(starts))), truth, spectrum=False).sel(level=500.0, metric="rmse")
    test = summary(run)["metrics"]["test"]
    for name in ("temperature", "geopotential"):
        for lead in (6, 12):
            value = float(scored[name].sel(system="forecast", prediction_timedelta=np.timedelta64(lead, "h")))
            assert value == pytest.approx(test[f"rmse_{name}_500_{lead}h"], rel=1e-4)


def test_one_state_is_enough_to_forecast_from(made: Forecasts, run: Path) -> None:
    opened = Run.open(run)
    predict_file(opened, made.data(waves(), "all.nc"), made.folder / "all_forecast.nc")
    single = made.data(waves().isel(time=[30]), "single.nc")
    assert predict_file(opened, single, made.folder / "single_forecast.nc") == (1, 0)
    whole, one = (read_forecast(made.folder / name) for name in ("all_forecast.nc", "single_forecast.nc"))
    xr.testing.assert_allclose(whole.isel(time=[30]), one, rtol=1e-5)


def test_files_with_another_step_are_forecast_with_the_leads_of_training(made: Forecasts, run: Path) -> None:
    source = made.data(waves().isel(time=slice(0, 60, 4)), "daily.nc")
    assert predict_file(Run.open(run), source, made.folder / "daily_forecast.nc") == (15, 0)
    found = read_forecast(made.folder / "daily_forecast.nc")
    assert (found.prediction_timedelta.values / np.timedelta64(1, "h")).tolist() == [6, 12]
    whole = made.folder / "all_forecast.nc"
    predict_file(Run.open(run), made.data(waves(), "all.nc"), whole)
    xr.testing.assert_allclose(read_forecast(whole).isel(time=slice(0, 60, 4)), found, rtol=1e-5)


def test_times_that_cannot_be_read_are_counted(made: Forecasts, run: Path) -> None:
    data = waves(5)
    data["z"][2, 0, 0, 0] = np.nan
    assert predict_file(Run.open(run), made.data(data, "holes.nc"), made.folder / "holes_forecast.nc") == (4, 1)
    assert read_forecast(made.folder / "holes_forecast.nc").sizes["time"] == 4


def test_what_cannot_be_forecast_is_refused(made: Forecasts, run: Path) -> None:
    opened, target = Run.open(run), made.folder / "refused.nc"
    members = xr.concat([waves(4)[["t", "z"]]] * 2, dim="number").assign_coords(number=[0, 1])
    for name, data, message in (
        ("fine.nc", waves(4, rows=16), "fine.nc: is on 16 x 16 points, .*, and the model was trained on 8 x 16 points"),
        ("shifted.nc", waves(4, latitudes=np.arange(8) * 20.0 - 70), "trained on 8 x 16 points.*; regrid the data"),
        ("bare.nc", waves(4)[["t"]], "bare.nc"),
        ("members.nc", members, "has 2 members .*; give a file of one of them at a time"),
    ):
        with pytest.raises(InputError, match=message):
            predict_file(opened, made.data(data, name), target)
        assert not target.exists()
    own = made.data(waves(4), "own.nc")
    before = own.read_bytes()
    with pytest.raises(InputError, match=r"own.nc: is the input itself; write the forecast to another file"):
        predict_file(opened, own, own)
    assert own.read_bytes() == before
    with pytest.raises(InputError, match=r"forecasts are written to a name that ends in .nc \(NetCDF\) or .zarr"):
        predict_file(opened, own, made.folder / "forecast.csv")
    with pytest.raises(InputError, match="no such file"):
        predict_file(opened, made.folder / "absent.nc", target)


def test_a_file_is_scored_against_what_the_model_was_trained_on(made: Forecasts, run: Path) -> None:
    opened = Run.open(run)
    before = opened.job.task.state()
    found, notes = opened.evaluate_file(made.data(waves(12, seed=5, start="2001-02-01"), "scored.nc"))
    assert notes == {"initial times of train left out at the ends of the data": 2}
    assert found["rows"] == 11 + 10 - 1
    assert found["rows_skipped"] == 0
    assert "skill_climatology" in found
    assert opened.job.task.state() == before
    assert opened.evaluate() == summary(run)["metrics"], "the file leaves nothing behind"
    for name, data, message in (
        ("daily.nc", waves(12, hours=12), "has a step of 12 hours, and the model was trained on data with a step of 6"),
        ("fine.nc", waves(12, rows=16), "is on 16 x 16 points.*; regrid the data"),
    ):
        with pytest.raises(InputError, match=message):
            opened.evaluate_file(made.data(data, name))


def test_rollouts_are_written_step_by_step(made: Forecasts, another: Callable[..., Path]) -> None:
    run = another("rollout", waves(), rollout=3, predicts="anomaly", climatology="all", lead_hours=[6, 12])
    assert [key for key in summary(run)["metrics"]["test"] if key.startswith("rmse_temp")] == [
        f"rmse_temperature_500_{hours}h" for hours in (6, 12, 18, 24, 36)
    ]
    target = made.folder / "rollout_forecast.nc"
    opened = Run.open(run)
    predict_file(opened, made.data(waves(3, start="2003-05-01"), "short.nc"), target)
    found = read_forecast(target)
    assert (found.prediction_timedelta.values / np.timedelta64(1, "h")).tolist() == [6, 12, 18, 24, 36]
    assert np.isfinite(found.temperature.values).all()
    assert opened.evaluate() == summary(run)["metrics"]


def test_months_from_training_to_forecast(made: Forecasts, another: Callable[..., Path]) -> None:
    options = {"lead_hours": None, "lead_steps": [1, 2], "climatology": "month", "predicts": "anomaly"}
    run = another("months", months(), **options)
    assert {"rmse_temperature_500_1steps", "rmse_temperature_500_2steps"} <= set(summary(run)["metrics"]["test"])
    assert (run / "skill.png").exists()
    target = made.folder / "months_forecast.nc"
    assert predict_file(Run.open(run), made.data(months().isel(time=[4]), "may.nc"), target) == (1, 0)
    found = read_forecast(target)
    days = found.prediction_timedelta.values / np.timedelta64(1, "D")
    assert days == pytest.approx([30.437, 60.874], abs=0.001)


def test_dates_of_a_climate_model_become_real_ones_or_are_refused(made: Forecasts, another: Any) -> None:
    import cftime

    def dated(day: int) -> xr.Dataset:
        times = [cftime.Datetime360Day(2000 + n // 12, n % 12 + 1, day) for n in range(60)]
        data = waves(60)
        return data.assign_coords(time=times)

    options = {"lead_hours": None, "lead_steps": [1], "climatology": "all"}
    run = another("model_years", dated(16), **options)
    target = made.folder / "model_years_forecast.nc"
    predict_file(Run.open(run), made.folder / "model_years.nc", target)
    assert str(read_forecast(target).time.values[1]).startswith("2000-02-16")
    with pytest.raises(InputError, match="2000-02-30T00:00 is a date of the calendar 360_day only, and forecasts are"):
        predict_file(Run.open(run), made.data(dated(30), "thirtieth.nc"), target)


def test_a_run_that_broke_off_is_resumed_to_the_bit(made: Forecasts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The leads of an epoch, dropout and the order of samples are those of the run that never broke off."""
    changes = {"train.max_steps": 6, "train.evaluate_every": 2}
    options: dict[str, Any] = {"lead_hours": [6, 12], "rollout": 2, "climatology": "all"}
    names = ("whole", "broken")
    train(made.job(changes, **options), output=made.folder / names[0])
    step = Loop._one

    def breaking(self: Loop, number: int, rows: list[list[int]]) -> bool:
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_one", breaking)
        with pytest.raises(KeyboardInterrupt):
            train(made.job(changes, **options), output=made.folder / names[1])
    train(made.job(changes, **options), output=made.folder / names[1], resume=True)
    found = []
    for folder in (made.folder / name for name in names):
        kept = (".safetensors", ".csv", ".npz", ".jsonl")
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.suffix in kept}
        found.append({**files, "metrics": json.dumps(summary(folder)["metrics"])})
    assert {"predictions.csv", "climatology.npz", "metrics.jsonl"} <= found[0].keys()
    assert any(name.endswith(".safetensors") for name in found[0])
    assert found[0].keys() == found[1].keys()
    assert [name for name, content in found[0].items() if found[1][name] != content] == []


def test_other_data_does_not_resume_a_run(made: Forecasts) -> None:
    path = made.data(waves(), "changing.nc")
    job = made.job({"train.max_steps": 1}, data=path)
    train(job, output=made.folder / "changing")
    made.data(waves(seed=1), "changing.nc")
    (made.folder / "changing" / "summary.json").unlink()
    with pytest.raises(InputError, match=r"forecast takes something else from .*changing.nc than when this run"):
        train(made.job({"train.max_steps": 1}, data=path), output=made.folder / "changing", resume=True)


def test_a_region_is_written_with_its_own_coordinates(made: Forecasts, another: Callable[..., Path]) -> None:
    """Over the zero meridian, from a file that begins there; any file with the region in it will do."""
    run = another("region", waves(30), box={"north": 60, "south": -30, "west": -45, "east": 44})
    target = made.folder / "region_forecast.nc"
    predict_file(Run.open(run), made.folder / "region.nc", target)
    found = read_forecast(target)
    assert found.longitude.values.tolist() == [-45.0, -22.5, 0.0, 22.5]
    assert found.latitude.values.tolist() == [-11.25, 11.25, 33.75, 56.25]
    far = made.data(waves(4).sel(longitude=slice(90, 180)), "far.nc")
    with pytest.raises(InputError, match="no point of the file in north 60, south -30, west -45, east 44"):
        predict_file(Run.open(run), far, target)
