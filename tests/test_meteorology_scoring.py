"""Forecast files scored from the command line against what came: of one member or many, and what can be wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import pytest
import scoringrules
import torch
import xarray as xr
import xskillscore
from forecasts import Forecasts, months, waves

from zoo import program
from zoo.errors import InputError, ZooError
from zoo.meteorology import metrics, scores
from zoo.meteorology.forecast_file import read_forecast
from zoo.meteorology.score_tables import lead_in_words, number
from zoo.training.finished import Run, predict_file, score_file
from zoo.training.run import train

pytestmark = pytest.mark.usefixtures("traced_once")

EXACT = {"rtol": 1e-12, "atol": 1e-12}
FIELDS = ("temperature_500", "geopotential_500")
GRID = ["latitude", "longitude"]


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Scored:
    """A finished run, states of its test part and after, and forecasts from all of them."""

    made: Forecasts
    run: Run
    states: Path
    alone: Path
    ensemble: Path

    def forecast(self, name: str, change: Callable[[xr.Dataset], xr.Dataset], of: Path | None = None) -> Path:
        """The forecasts, changed."""
        target = self.made.folder / name
        target.unlink(missing_ok=True)
        change(xr.open_dataset(of or self.alone, decode_timedelta=False).load()).to_netcdf(target)
        return target

    def truth(self, name: str, change: Callable[[xr.Dataset], xr.Dataset]) -> Path:
        """The states, changed."""
        return self.made.data(change(xr.open_dataset(self.states).load().drop_encoding()), name)

    def facts(self, forecast: Path | None = None, truth: Path | None = None) -> dict[str, Any]:
        return dict(score_file(self.run, forecast or self.alone, truth or self.states).facts)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Forecasts:
    found = Forecasts(tmp_path_factory.mktemp("scoring"))
    found.data()
    return found


@pytest.fixture(scope="module")
def scored(made: Forecasts) -> Scored:
    job = made.job(lead_hours=[6, 12], rollout=2, climatology="all")
    folder = train(job, output=made.folder / "run", with_baselines=True).folder.path
    states = made.data(waves().isel(time=slice(51, 60)), "states.nc")
    targets = made.folder / "alone.nc", made.folder / "ensemble.zarr"
    predict_file(Run.open(folder), states, targets[0])
    option = "task.forecast.ensemble={members: 4, length_km: 3000, amplitude: 0.2}"
    predict_file(Run.open(folder, overrides=[option]), states, targets[1])
    return Scored(made, Run.open(folder), states, *targets)


@pytest.fixture
def another(made: Forecasts) -> Callable[..., Run]:
    """A run of its own name from other data."""

    def make(name: str, data: xr.Dataset, changes: dict[str, Any] | None = None, **options: Any) -> Run:
        job = made.job(changes, data=made.data(data, f"{name}.nc"), **options)
        return Run.open(train(job, output=made.folder / name).folder.path)

    return make


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["zoo", *map(str, arguments)])
        capfd.readouterr()
        code: Any = 0
        try:
            program.main()
        except SystemExit as stop:
            code = stop.code or 0
        return Said(int(code), *capfd.readouterr())

    return call


def rows(facts: dict[str, Any], field: str = "temperature_500", system: str = "forecast") -> dict[float, Any]:
    """Scores by lead in hours."""
    return {
        row["lead_hours"]: row for row in facts["scores"] if (row["field"], row["system"]) == (field, system)
    }  # fmt: skip


def in_float64(path: Path, states: Path, name: str) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """Forecasts, truth and the states before of one field at 12 hours, over the starts that have a truth."""
    said = read_forecast(path)[name].sel(level=500, prediction_timedelta=np.timedelta64(12, "h"), drop=True)
    came = (
        xr.open_dataset(states)[{"temperature": "t", "geopotential": "z"}[name]]
        .sel(level=500, drop=True)
        .astype("float64")
    )
    before = came.isel(time=slice(0, -2))
    later = came.isel(time=slice(2, None)).assign_coords(time=before.time)
    return said.isel(time=slice(0, -2)).astype("float64"), later, before


def weights_like(array: xr.DataArray) -> xr.DataArray:
    rows = scores.latitude_weights(array.latitude.values, "area")
    return xr.DataArray(rows, dims="latitude", coords={"latitude": array.latitude}).broadcast_like(array).transpose(
        *array.dims
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------ definitions


def test_a_forecast_file_scores_as_training_did(scored: Scored) -> None:
    """From the starts of the test part, over all leads but the longest ways that end beyond it."""
    summary = json.loads((scored.run.folder.path / "summary.json").read_text())
    lines = (scored.run.folder.path / "predictions.csv").read_text().splitlines()[1:]
    starts = sorted({np.datetime64(line.split(",")[1]) for line in lines})
    test, floors = summary["metrics"]["test"], summary["baselines"]
    path = scored.forecast("tested.nc", lambda d: d.sel(time=starts))
    found = scored.facts(path)
    assert found["left_out"] == {}
    for field in FIELDS:
        for lead in (6, 12, 24):
            row, end = rows(found, field)[lead], f"_{field}_{lead}h"
            assert row["rmse"] == pytest.approx(test[f"rmse{end}"], rel=1e-5)
            assert row["bias"] == pytest.approx(test[f"bias{end}"], rel=1e-3, abs=1e-3)
            assert row["acc_uncentred"] == pytest.approx(test[f"acc{end}"], rel=1e-4)
            assert row["forecasts"] == len(starts)
            for floor in ("persistence", "climatology"):
                assert rows(found, field, floor)[lead]["rmse"] == pytest.approx(floors[floor][f"rmse{end}"], rel=1e-5)
    assert found["nrmse"]["forecast"] == pytest.approx(test["nrmse"], rel=1e-5)
    assert found["skill_persistence"] == pytest.approx(test["skill_persistence"], abs=1e-5)
    assert found["skill_climatology"] == pytest.approx(test["skill_climatology"], abs=1e-5)


def test_scores_of_an_ensemble_are_those_of_other_libraries(scored: Scored) -> None:
    found = scored.facts(scored.ensemble)
    assert found["members"] == 4
    for field in FIELDS:
        name = field.removesuffix("_500")
        members, truth, before = in_float64(scored.ensemble, scored.states, name)
        row, dims, w = rows(found, field)[12], ["time", *GRID], weights_like(truth)
        mean = members.mean("number")
        each = scoringrules.crps_ensemble(
            truth.values, members.transpose(*truth.dims, "number").values, estimator="fair"
        )
        np.testing.assert_allclose(row["crps_fair"], truth.copy(data=each).weighted(w).mean(dims), **EXACT)
        np.testing.assert_allclose(row["rmse"], xskillscore.rmse(mean, truth, dim=dims, weights=w), **EXACT)
        bias = xskillscore.me(mean, truth, dim=dims, weights=w)
        np.testing.assert_allclose(row["bias"], bias, rtol=1e-12, atol=1e-12 * float(abs(truth).max()))
        variance = members.var("number", ddof=1).weighted(w).mean(dims)
        np.testing.assert_allclose(row["spread"], np.sqrt(variance), rtol=1e-11)
        persistence = rows(found, field, "persistence")[12]
        np.testing.assert_allclose(
            persistence["rmse"], xskillscore.rmse(before, truth, dim=dims, weights=w), **EXACT
        )  # fmt: skip
        assert "crps_fair" not in persistence


def test_both_correlations_are_of_anomalies_from_the_climatology_of_training(scored: Scored) -> None:
    row = rows(scored.facts())[12]
    said, truth, _ = in_float64(scored.alone, scored.states, "temperature")
    normal = scored.run.job.task.learned.climatology.mean[0, 0].astype(np.float64)  # type: ignore[attr-defined]
    f, t = (array.transpose("time", *GRID).values - normal for array in (said, truth))
    area = scores.latitude_weights(truth.latitude.values, "area")
    np.testing.assert_allclose(row["acc_uncentred"], scores.uncentred_acc(f, t, area).mean(), rtol=1e-10)
    f, t = f - f.mean(), t - t.mean()
    both, ff, tt = ((area[:, None] * a * b).sum() for a, b in ((f, t), (f, f), (t, t)))
    np.testing.assert_allclose(row["acc_climax"], both / np.sqrt(ff * tt), rtol=1e-10)
    # ClimaX's own function, whose weights are cosines, is near
    tensors = [torch.as_tensor(a.transpose("time", *GRID).values)[:, None] for a in (said, truth)]
    cosine = metrics.climax_acc(*tensors, torch.as_tensor(normal)[None], truth.latitude.values.tolist())
    assert row["acc_climax"] == pytest.approx(float(cosine), abs=0.01)
    climatology = rows(scored.facts(), system="climatology")[12]
    assert "acc_uncentred" not in climatology, "climatology has no anomaly"


def test_deterministic_forecasts_and_one_member_have_no_spread(scored: Scored) -> None:
    alone = scored.facts()
    assert alone["members"] == 1
    assert not {"crps_fair", "spread"} & set(rows(alone)[6])
    one = scored.forecast("one.nc", lambda d: d.isel(time=slice(0, 3)).expand_dims(number=[0]))
    few = scored.forecast("few.nc", lambda d: d.isel(time=slice(0, 3)))
    assert scored.facts(one)["scores"] == scored.facts(few)["scores"]
    control = xr.open_zarr(scored.ensemble, decode_timedelta=False).sel(number=[0]).load().drop_encoding()
    control.to_netcdf(scored.made.folder / "control.nc")
    found = scored.facts(scored.made.folder / "control.nc")
    assert rows(found)[6]["rmse"] == pytest.approx(rows(alone)[6]["rmse"], rel=1e-6)


def test_all_scores_and_spectra_are_written(scored: Scored) -> None:
    target = scored.made.folder / "kept" / "scores.nc"
    facts = score_file(scored.run, scored.ensemble, scored.states, target, scored.made.folder / "kept.png").facts
    found = xr.open_dataset(target, decode_timedelta=True)
    assert found["system"].values.tolist() == ["forecast", "persistence", "climatology"]
    assert {"rmse", "bias", "acc_uncentred", "acc_climax", "crps_fair", "spread"} <= set(found["metric"].values)
    assert found.attrs["metric_acc_climax"].endswith("(ClimaX)")
    assert found.attrs["metric_acc_uncentred"].endswith("(WeatherBench 2)")
    assert (found.attrs["members"], found.attrs["forecast"]) == (4, str(scored.ensemble))
    assert json.loads(found.attrs["left_out"]) == facts["left_out"]
    one = {"system": "forecast", "prediction_timedelta": np.timedelta64(12, "h"), "level": 500}
    value = float(found["temperature"].sel(metric="crps_fair", **one))
    assert value == rows(dict(facts))[12]["crps_fair"]
    members, truth, _ = in_float64(scored.ensemble, scored.states, "temperature")
    w = scores.latitude_weights(truth.latitude.values, "area")
    for name, array in (("temperature_spectrum", members), ("temperature_spectrum_truth", truth)):
        spectra = scores.zonal_energy_spectrum(array.transpose(..., *GRID).values, truth.latitude.values)
        expected = np.einsum("...hk,h->...k", spectra, w).reshape(-1, 9).mean(axis=0) / len(w)
        np.testing.assert_allclose(found[name].sel(one), expected, rtol=1e-11)
    assert found["zonal_wavenumber"].values.tolist() == list(range(9))
    assert (scored.made.folder / "kept.png").stat().st_size > 5000
    assert [path.name for path in target.parent.iterdir()] == ["scores.nc"]


# ------------------------------------------------------------------------------------------------ other files, times


def test_forecasts_in_another_order_and_other_words_score_the_same(scored: Scored) -> None:
    def turned(data: xr.Dataset) -> xr.Dataset:
        data = data.isel(latitude=slice(None, None, -1)).rename(temperature="t", geopotential="z")
        data = data.assign_coords(longitude=(data.longitude + 180) % 360 - 180).sortby("longitude")
        data["z"].attrs["units"] = "m**2 s**-2"
        return data.transpose("longitude", ...)

    whole = scored.facts()
    found = scored.facts(scored.forecast("turned.nc", turned))
    for one, other in zip(found["scores"], whole["scores"], strict=True):
        assert one.keys() == other.keys()
        assert [one[key] for key in ("field", "unit", "system")] == [other[key] for key in ("field", "unit", "system")]
        for key, value in one.items():
            assert isinstance(value, str) or value == pytest.approx(other[key], rel=1e-10, abs=1e-10), key
    fewer = scored.facts(scored.forecast("fewer.nc", lambda d: d[["temperature"]].isel(prediction_timedelta=[1])))
    assert fewer["scores"] == [row for row in whole["scores"] if row["field"][0] == "t" and row["lead_hours"] == 12]


def test_levels_in_pascal_are_those_in_hpa(scored: Scored) -> None:
    def pascal(data: xr.Dataset) -> xr.Dataset:
        return data.assign_coords(level=("level", data.level.values * 100, {"units": "Pa"}))

    assert scored.facts(scored.forecast("pascal.nc", pascal))["scores"] == scored.facts()["scores"]


def test_forecasts_without_truth_are_left_out_of_all_systems_and_counted(scored: Scored) -> None:
    found = scored.facts()
    beyond = "to times that the truth lacks, beyond its last"
    assert found["left_out"] == {beyond: 1 + 2 + 4}
    for system in ("forecast", "persistence", "climatology"):
        assert [row["forecasts"] for row in rows(found, system=system).values()] == [8, 7, 5]
    gap = scored.truth("gap.nc", lambda d: d.isel(time=[0, 1, 2, 4, 5, 6, 7, 8]))
    found = scored.facts(truth=gap)
    assert found["left_out"] == {"from times that the truth lacks": 3, "to times that the truth lacks": 2, beyond: 7}
    notes = score_file(scored.run, scored.alone, gap).notes
    assert "forecasts left out: 3 (from times that the truth lacks)" in notes

    def holes(data: xr.Dataset) -> xr.Dataset:
        data["z"][3, 0, 2, 2] = np.nan
        return data

    found = scored.facts(truth=scored.truth("holes.nc", holes))
    assert found["left_out"] == {beyond: 7, "from or to times at which values of the truth are missing": 5}


def test_a_lead_that_no_truth_reaches_is_not_scored(scored: Scored) -> None:
    found = scored.facts(truth=scored.truth("brief.nc", lambda d: d.isel(time=slice(0, 4))))
    assert list(rows(found)) == [6, 12]
    assert found["left_out"]["from times that the truth lacks"] == 15


def test_months_end_in_their_month(made: Forecasts, another: Callable[..., Run]) -> None:
    options = {"lead_hours": None, "lead_steps": [1, 2], "climatology": "month", "predicts": "anomaly"}
    run = another("months", months(), **options)
    target = made.folder / "months_forecast.nc"
    predict_file(run, made.folder / "months.nc", target)
    found = score_file(run, target, made.folder / "months.nc")
    assert found.facts["left_out"] == {"to times that the truth lacks, beyond its last": 3}
    assert "2 months" in next(row for row in found.tables["temperature_500, K"] if row[""] == "rmse")
    said = read_forecast(target)["temperature"].isel(prediction_timedelta=1, level=0).astype("float64")
    truth = months()["t"].sel(level=500).astype("float64")
    error = said.values[:-2] - truth.values[2:]
    row = [row for row in found.facts["scores"] if row["field"] == "temperature_500"][3]
    expected = np.sqrt((error**2 * scores.latitude_weights(truth.latitude.values)[:, None]).mean())
    assert row["rmse"] == pytest.approx(expected, rel=1e-12)
    odd = made.folder / "odd.nc"
    with xr.open_dataset(target, decode_timedelta=False) as data:
        data.assign_coords(prediction_timedelta=("prediction_timedelta", [700, 1461], {"units": "hours"})).to_netcdf(
            odd
        )
    with pytest.raises(
        InputError, match=r"a lead of 700 hours is no whole number of the run's steps of 1 months \(730"
    ):
        score_file(run, odd, made.folder / "months.nc")


def test_a_climate_models_calendar_is_kept(made: Forecasts, another: Callable[..., Run]) -> None:
    """In a year of 365 days the day after 28 February is 1 March, in leap years too."""
    times = [cftime.DatetimeNoLeap(2004, 2, 1) + timedelta(days=n) for n in range(60)]
    run = another("noleap", waves(60).assign_coords(time=times), lead_hours=[24], climatology="all")
    target = made.folder / "noleap_forecast.nc"
    predict_file(run, made.folder / "noleap.nc", target)
    found = score_file(run, target, made.folder / "noleap.nc").facts
    assert found["left_out"] == {"to times that the truth lacks, beyond its last": 1}
    assert found["scores"][0]["forecasts"] == 59
    assert "2004-02-28" in str(read_forecast(target).time.values[27])


def test_the_29th_of_february_is_a_day_like_others(made: Forecasts, another: Callable[..., Run]) -> None:
    run = another("leap", waves(500, hours=24, start="2003-01-01"), lead_hours=[24])
    states = made.data(waves(4, hours=24, start="2004-02-28"), "february.nc")
    predict_file(run, states, made.folder / "february_forecast.nc")
    found = score_file(run, made.folder / "february_forecast.nc", states).facts
    assert found["scores"][0]["forecasts"] == 3


def test_a_day_of_which_training_knows_nothing_has_no_climatology(scored: Scored, another: Callable[..., Run]) -> None:
    run = another("january", waves(60), climatology="day")
    made = scored.made
    states = made.data(waves(4, start="2001-08-01"), "august.nc")
    predict_file(run, states, made.folder / "august_forecast.nc")
    with pytest.raises(InputError, match=r"climatology: no training time for day 213 of the year at 6 h \(2001-08-01T"):
        score_file(run, made.folder / "august_forecast.nc", states)


def test_a_region_has_no_spectrum(made: Forecasts, another: Callable[..., Run]) -> None:
    run = another("region", waves(30), box={"north": 60, "south": -30, "west": -45, "east": 44}, climatology="all")
    forecast, target = made.folder / "region_forecast.nc", made.folder / "region_scores.nc"
    predict_file(run, made.folder / "region.nc", forecast)
    found = score_file(run, forecast, made.folder / "region.nc", target).facts
    assert found["scores"][0]["forecasts"] == 29
    assert not any("spectrum" in str(name) for name in xr.open_dataset(target))


def test_downscaled_fields_are_scored_beside_interpolation(made: Forecasts) -> None:
    options = {"variables": ["temperature_500", "geopotential_500"], "factor": 4, "climatology": "all"}
    job = made.job({"task.forecast": None, "task.downscaling": options}, data=made.data(waves(), "fine.nc"))
    run = Run.open(train(job, output=made.folder / "fine", with_baselines=True).folder.path)
    predict_file(run, made.folder / "fine.nc", made.folder / "fine_forecast.nc")
    found = score_file(run, made.folder / "fine_forecast.nc", made.folder / "fine.nc").facts
    assert set(found["nrmse"]) == {"forecast", "interpolation", "climatology"}
    assert found["left_out"] == {}
    assert 0 < found["nrmse"]["interpolation"] < found["nrmse"]["climatology"]


# -------------------------------------------------------------------------------------------------- what can be wrong


def with_units(data: xr.Dataset, units: str) -> xr.Dataset:
    data["temperature"].attrs["units"] = units
    return data


def broken(data: xr.Dataset) -> xr.Dataset:
    data["temperature"][2, 1, 0, 3, 4:6] = [np.nan, np.inf]
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            broken,
            r"wrong.nc: temperature, from 2001-01-14 06:00:00 over 0 days 12:00:00: 2 of 128 values are missing or",
        ),
        (
            lambda d: d.isel(latitude=slice(0, 6)),
            "is on 6 x 16 points.*, and the model was trained on 8 x 16 points",
        ),
        (
            lambda d: d.assign_coords(latitude=d.latitude + 1),
            "is on 8 x 16 points, latitude -77.75 .*; regrid the forec",
        ),
        (
            lambda d: d.rename(temperature="mystery"),
            '"mystery_?.*" is not a known field of this run .*; leave it out of',
        ),
        (lambda d: d.assign_coords(level=[850.0]), '"temperature_850" is not a known field of this run; did you mean'),
        (lambda d: with_units(d, "degC"), 'temperature is in "degC", and is scored in "K"; convert it'),
        (lambda d: with_units(d, ""), 'temperature has no units; set its attribute "units"'),
        (lambda d: d.isel(prediction_timedelta=0, drop=True), 'no dimension "prediction_timedelta"'),
        (
            lambda d: d.assign_coords(level=("level", [5e5], {"units": "Pa"})),
            "levels level of 5000 hPa .*the unit of the co",
        ),
    ],
)
def test_forecasts_that_cannot_be_scored_say_why(scored: Scored, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scored.facts(scored.forecast("wrong.nc", change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.drop_vars("z"), r'no field "geopotential_500"'),
        (lambda d: d.sel(level=[850]), r"temperature has no level 500 hPa \(levels there: 850\)"),
        (lambda d: d.isel(latitude=slice(0, 6)), "is on 6 x 16 points.*, and the model was trained on 8 x 16 points"),
        (lambda d: d.expand_dims(number=2), r"has 2 members .*; give a file of one of them"),
        (
            lambda d: d.assign_coords(time=d.time + np.timedelta64(365, "D")),
            r"none of the forecasts of .*alone.nc can be scored \(27 from times that the truth lacks\): it needs the "
            r"states at the start and at the end of a forecast, has 9 times from 2002-01-13T18:00 to 2002-01-15T18:00, "
            r"and the forecasts start from 2001-01-13T18:00 to 2001-01-15T18:00; several files are given as a pattern",
        ),
        (lambda d: d.isel(time=[8]), r"none of the forecasts .* \(24 from times that the truth lacks; 3 to times that"),
    ],
)  # fmt: skip
def test_truth_that_does_not_fit_says_why(scored: Scored, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scored.facts(truth=scored.truth("other.nc", change))


def test_units_of_fields_that_no_table_knows_must_agree(made: Forecasts, another: Callable[..., Run]) -> None:
    data = waves(30)
    data["dust"] = data["t"].sel(level=500, drop=True).assign_attrs(units="kg")
    run = another("dust", data, variables=["dust"], climatology="all")
    target = made.folder / "dust_forecast.nc"
    predict_file(run, made.folder / "dust.nc", target)
    assert score_file(run, target, made.folder / "dust.nc").facts["scores"][0]["unit"] == "kg"
    data["dust"].attrs["units"] = "g"
    with pytest.raises(InputError, match=r'grams.nc: dust is in "g", the forecast in "kg"; convert one of them'):
        score_file(run, target, made.data(data, "grams.nc"))


def test_files_in_each_others_place_are_noticed(scored: Scored) -> None:
    with pytest.raises(
        InputError, match=r"alone.nc: holds forecasts \(it has a dimension prediction_timedelta\), not sta"
    ):
        scored.facts(truth=scored.alone)
    with pytest.raises(InputError, match=r'states.nc: no dimension "prediction_timedelta"'):
        scored.facts(scored.states)
    with pytest.raises(InputError, match=r"absent.nc: no such file"):
        scored.facts(truth=scored.made.folder / "absent.nc")
    with pytest.raises(InputError, match=r"absent.nc: no such file or folder"):
        scored.facts(scored.made.folder / "absent.nc")


def test_scores_are_not_written_just_anywhere(scored: Scored) -> None:
    folder = scored.made.folder
    before = scored.alone.read_bytes()
    for target, message in (
        (folder / "scores.csv", "scores are written as NetCDF; give a name that ends in .nc"),
        (scored.alone, "is one of the files that are scored; write the scores to another file"),
        (scored.states, "is one of the files that are scored"),
    ):
        with pytest.raises(InputError, match=message):
            score_file(scored.run, scored.alone, scored.states, target)
    with pytest.raises(InputError, match=r"pictures are written as PNG; give a name that ends in .png"):
        score_file(scored.run, scored.alone, scored.states, None, folder / "skill.jpg")
    (folder / "a_file").write_text("")
    with pytest.raises(ZooError, match=r"the scores cannot be written \(.*\)"):
        score_file(scored.run, scored.alone, scored.states, folder / "a_file" / "scores.nc")
    assert scored.alone.read_bytes() == before


def test_numbers_and_leads_in_words() -> None:
    assert [number(v) for v in (0.0123456, 123.456, 54321.9, float("nan"))] == ["0.01235", "123.5", "54322", "-"]
    assert [lead_in_words(h, "hours") for h in (6, 0.25)] == ["6 h", "0.25 h"]
    assert [lead_in_words(h, "months") for h in (730.485, 1460.97)] == ["1 month", "2 months"]


def test_many_leads_are_shown_in_several_tables(made: Forecasts, another: Callable[..., Run]) -> None:
    run = another("leads", waves(), lead_hours=[6], rollout=7, climatology="all")
    target = made.folder / "leads_forecast.nc"
    predict_file(run, made.folder / "leads.nc", target)
    tables = score_file(run, target, made.folder / "leads.nc").tables
    assert list(tables)[1:3] == ["temperature_500, K, 6 h to 36 h", "temperature_500, K, 42 h"]
    assert list(tables["temperature_500, K, 42 h"][0]) == ["", "42 h"]


# -------------------------------------------------------------------------------------------------- the command line


def test_the_command_line_forecasts_and_scores(scored: Scored, zoo: Callable[..., Said]) -> None:
    run, folder = scored.run.folder.path, scored.made.folder
    members = ("--set", "task.forecast.ensemble.members=3", "--set", "task.forecast.ensemble.length_km=3000")
    said = zoo("predict", run, scored.states, "-o", folder / "said.nc", *members)
    assert said.out == f"{folder / 'said.nc'}: from 9 times; 0 others could not be read\n"
    assert read_forecast(folder / "said.nc").sizes["number"] == 3
    command = ("evaluate", run, scored.states, "--forecast", folder / "said.nc")
    said = zoo(*command, "--json", "-o", folder / "said_scores.nc", "--plot", folder / "said.png")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["scores"] == score_file(scored.run, folder / "said.nc", scored.states).facts["scores"]
    assert (folder / "said_scores.nc").exists()
    assert (folder / "said.png").exists()
    out = zoo(*command).out
    left_out, members = "forecasts left out: 7 (to times that", "3 members: rmse, bias and acc are of their mean"
    metrics = ("rmse climatology", "acc uncentred", "acc climax", "crps fair")
    for words in ("temperature_500, K", "24 h", *metrics, left_out, members):
        assert words in out


def test_the_command_line_says_what_is_missing(scored: Scored, zoo: Callable[..., Said]) -> None:
    run = scored.run.folder.path
    for arguments, message in (
        (("--forecast", "f.nc"), f"error: --forecast: no file of what came; say zoo evaluate {run} STATES --forecast"),
        (("-o", "s.nc"), "error: -o, --plot: are of the scores of a forecast file; name it with --forecast, or leave"),
        (("s.nc", "--plot", "s.png"), "error: -o, --plot: are of the scores of a forecast file; name it with --foreca"),
    ):  # fmt: skip
        said = zoo("evaluate", run, *arguments)
        assert (said.code, said.err[: len(message)]) == (2, message)
