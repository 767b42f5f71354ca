"""Ensembles: smooth perturbations of initial states, and forecast files with a dimension for members."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from forecasts import Forecasts, fetch, waves

from zoo.errors import InputError
from zoo.meteorology.forecast_file import read_forecast
from zoo.meteorology.forecast_writer import ForecastWriter
from zoo.meteorology.grids import Grid, even_globe
from zoo.meteorology.perturbations import _KM, Ensemble, Perturbations, _legendre, perturbed, smooth_fields
from zoo.meteorology.scores import latitude_weights
from zoo.recipe_file import changed
from zoo.training.finished import Run, predict_file
from zoo.training.run import train

pytestmark = pytest.mark.usefixtures("traced_once")

GLOBE = even_globe((8, 16))
LONG = 3000.0  # km; rows of the grid of these tests are 2500 km apart
OPTION = "task.forecast.ensemble"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Forecasts:
    found = Forecasts(tmp_path_factory.mktemp("ensembles"))
    found.data()
    return found


@pytest.fixture(scope="module")
def run(made: Forecasts) -> Path:
    """Trained without a word of ensembles."""
    job = made.job(lead_hours=[6, 12], rollout=2, climatology="all")
    return train(job, output=made.folder / "run").folder.path


def forecast(made: Forecasts, run: Path, name: str, *overrides: str, times: Any = slice(0, 3)) -> xr.Dataset:
    source = made.data(waves().isel(time=times), f"{name}_states.nc")
    target = made.folder / f"{name}.nc"
    predict_file(Run.open(run, overrides=overrides), source, target)
    return read_forecast(target).load()


# -------------------------------------------------------------------------------------------------- random fields


def test_legendre_functions_are_orthonormal_on_the_sphere() -> None:
    nodes, weights = np.polynomial.legendre.leggauss(24)
    sectoral = np.full(24, np.sqrt(1 / (4 * np.pi)))
    for m in range(12):
        if m:
            sectoral = sectoral * np.sqrt(1 - nodes**2) * np.sqrt((2 * m + 1) / (2 * m))
        rows = _legendre(m, 20, nodes, sectoral)
        np.testing.assert_allclose(2 * np.pi * (rows * weights) @ rows.T, np.eye(21 - m), atol=1e-12)


def test_perturbations_have_variance_one_and_the_correlation_of_their_length() -> None:
    """The covariance of isotropic fields is the sum of (2n+1) c_n P_n(cos d) over that of (2n+1) c_n."""
    length = 1500.0
    grid = Grid((-90.0, -80.0, 0.0, 10.0), (0.0, 10.0, 40.0, 180.0))
    fields = smooth_fields(np.random.default_rng(0), grid, length, 20_000)
    np.testing.assert_allclose(fields.var(axis=0), 1, rtol=0.05)
    np.testing.assert_allclose(fields.mean(axis=0), 0, atol=0.05)
    n = np.arange(1, 80)
    share = (2 * n + 1) * np.exp(-((length / _KM) ** 2) * n * (n + 1) / 2)
    spots = {(0, 0): (2, 0), (2, 0): (2, 1), (2, 1): (3, 1), (1, 0): (1, 2), (1, 1): (1, 3), (3, 0): (3, 2)}
    for (i, j), (k, m) in spots.items():
        a, b = np.deg2rad(grid.latitudes[i]), np.deg2rad(grid.latitudes[k])
        turn = np.deg2rad(grid.longitudes[m] - grid.longitudes[j])
        cosine = np.sin(a) * np.sin(b) + np.cos(a) * np.cos(b) * np.cos(turn)
        expected = np.polynomial.legendre.legval(cosine, [0, *share]) / share.sum()
        assert (fields[:, i, j] * fields[:, k, m]).mean() == pytest.approx(expected, abs=0.03)
    # near the Gaussian function of the distance, where that is small against the radius of the Earth
    near = np.polynomial.legendre.legval(np.cos(length / _KM), [0, *share]) / share.sum()
    assert near == pytest.approx(np.exp(-0.5), abs=0.03)
    # all columns of the pole are one point
    np.testing.assert_allclose(fields[:, 0, 1:], fields[:, 0, :1].repeat(3, axis=1), atol=1e-12)


def test_perturbations_have_no_mean_over_the_globe_and_are_no_white_noise() -> None:
    grid = even_globe((64, 128))
    fields = smooth_fields(np.random.default_rng(1), grid, 1000.0, 4)
    mean = (fields.mean(axis=-1) * latitude_weights(grid.latitudes, "area")).mean(axis=-1)
    np.testing.assert_allclose(mean, 0, atol=1e-3)
    beside = (fields[..., :-1, :] * fields[..., 1:, :]).mean() / (fields**2).mean()
    assert beside == pytest.approx(np.exp(-(np.deg2rad(180 / 64) ** 2) * (_KM / 1000) ** 2 / 2), abs=0.02)


def test_a_region_has_the_perturbations_of_its_globe() -> None:
    region = Grid(GLOBE.latitudes[2:5], GLOBE.longitudes[3:9])
    both = [smooth_fields(np.random.default_rng(2), grid, LONG, 2) for grid in (GLOBE, region)]
    np.testing.assert_allclose(both[0][:, 2:5, 3:9], both[1], atol=1e-12)


def test_a_perturbation_belongs_to_its_seed_member_and_start_alone() -> None:
    names, std = ("temperature_500", "geopotential_500"), np.array([10.0, 1000.0])
    found = Perturbations(Ensemble(members=3, amplitude=0.1, length_km=LONG), names, std, GLOBE)
    assert found.of(0, "2001-01-01T00:00") is None
    one = found.of(1, "2001-01-01T00:00")
    assert one is not None
    assert one.dtype == np.float32
    larger = Perturbations(Ensemble(members=9, amplitude=0.2, length_km=LONG), names, std, GLOBE)
    np.testing.assert_allclose(larger.of(1, "2001-01-01T00:00"), 2 * one, rtol=1e-6)
    seeded = Perturbations(Ensemble(members=3, amplitude=0.1, length_km=LONG, seed=1), names, std, GLOBE)
    for other in (found.of(2, "2001-01-01T00:00"), found.of(1, "2001-01-01T06:00"), seeded.of(1, "2001-01-01T00:00")):
        assert other is not None
        assert abs(np.corrcoef(one[0].ravel(), other[0].ravel())[0, 1]) < 0.9
    assert abs(np.corrcoef(one[0].ravel(), one[1].ravel())[0, 1]) < 0.9, "fields differ"
    many = np.stack([found.of(1, f"{n}") for n in range(300)])  # type: ignore[misc]
    np.testing.assert_allclose(many.std(axis=(0, 2, 3)), [1.0, 100.0], rtol=0.05)


def test_what_never_changes_and_what_is_known_is_not_perturbed() -> None:
    names = ("land_sea_mask", "temperature_500", "toa_incident_solar_radiation", "lattitude")
    found = Perturbations(Ensemble(members=2, length_km=LONG), names, np.ones(4), GLOBE).of(1, "now")
    assert found is not None
    assert [bool(field.any()) for field in found] == [False, True, False, False]


def test_all_states_of_a_history_are_perturbed_alike_and_what_has_no_negative_values_keeps_none() -> None:
    draw = np.random.default_rng(0)
    history = np.stack([draw.normal(size=(4, 5)), draw.random((4, 5))] * 2).reshape(2, 2, 4, 5).astype(np.float32)
    change = draw.normal(size=(2, 4, 5)).astype(np.float32)
    assert perturbed(history, None) is history
    found = perturbed(history, change)
    np.testing.assert_allclose(found[:, 0] - history[:, 0], np.stack([change[0]] * 2), atol=1e-6)
    np.testing.assert_array_equal(found[:, 1], np.maximum(history[:, 1] + change[1], 0))
    assert (found[:, 1] == 0).any()


# -------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("ensemble", "message"),
    [
        ({}, "task.forecast.ensemble.members: missing; needs a whole number of at least 2"),
        ({"members": 1}, "ensemble.members: got 1; needs a whole number of at least 2"),
        ({"members": 8, "amplitude": 0}, "ensemble.amplitude: got 0; needs a number above 0"),
        ({"members": 8, "length_km": -1}, "ensemble.length_km: got -1; needs a number above 0"),
        ({"members": 8, "seed": -1}, "ensemble.seed: got -1; needs a whole number of at least 0"),
        ({"members": 2.5}, "ensemble.members: got 2.5; needs a whole number"),
        ({"members": 8, "amplitud": 0.1}, '"amplitud" is not a known option of forecast; did you mean "amplitude"?'),
        (8, "ensemble: got 8; needs a section with the keys members, amplitude, length_km, seed"),
    ],
)
def test_wrong_ensembles_are_refused(made: Forecasts, ensemble: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        made.job(**{"ensemble": ensemble})
    assert message in str(error.value)


def test_a_length_that_the_grid_cannot_hold_is_refused(made: Forecasts, run: Path) -> None:
    message = "task: ensemble: length_km: 500 is shorter than the 250. km from row to row .*; give 250. or more"
    job = made.job(ensemble={"members": 2, "length_km": 500})
    with pytest.raises(InputError, match=message):
        job.task.prepare(job, fetch)
    opened = Run.open(run, overrides=[f"{OPTION}.members=2", f"{OPTION}.length_km=500"])
    with pytest.raises(InputError, match=message):
        predict_file(opened, made.folder / "waves.nc", made.folder / "short.nc")
    assert not (made.folder / "short.nc").exists()


def test_a_finished_run_is_told_of_ensembles_and_files_and_of_nothing_else(made: Forecasts, run: Path) -> None:
    for override, message in (
        ("train.max_steps=9", r"--set train.max_steps: cannot be changed in a finished run \(can be changed: task.fo"),
        (
            "task.forecast.rollout=1",
            r"--set task.forecast.rollout: cannot be .* changed: task.forecast.ensemble, task.forecast.files\)",
        ),
        (f"{OPTION}.member=9", r'--set task.forecast.ensemble.member: "member" is not a known option of forecast; did'),
        (f"{OPTION}.amplitude=1", "--set task.forecast.ensemble.members: missing; needs a whole number of at least 2"),
        (f"{OPTION}.members=many", '--set task.forecast.ensemble.members: got the text "many"; needs a whole number'),
        (f"{OPTION}", "--set task.forecast.ensemble: not of the form KEY=VALUE"),
    ):
        with pytest.raises(InputError, match=message):
            Run.open(run, overrides=[override])
    downscaling = {"variables": ["temperature_500"], "factor": 4}
    assert made.job({"task.forecast": None, "task.downscaling": downscaling}).task.when_predicting == ("files",)
    with pytest.raises(InputError, match=r"in a finished run \(can be changed: nothing\)"):
        changed(made.job().file, [f"{OPTION}.members=2"], [])
    with pytest.raises(InputError, match='"ensemble" is not a known option of downscaling'):
        made.job({"task.forecast": None, "task.downscaling": {**downscaling, "ensemble": {"members": 2}}})


def test_overrides_make_the_recipe_that_would_have_been_read(made: Forecasts) -> None:
    plain, asked = made.job(), {"members": 3, "length_km": LONG}
    keys = [("task", "forecast", "ensemble")]
    found = changed(plain.file, [f"{OPTION}.members=3", f"{OPTION}.length_km={LONG}"], keys)
    assert found.recipe == made.job(ensemble=asked).recipe
    with pytest.raises(InputError, match=r"task.forecast.ensemble is 3 and not a section"):
        changed(plain.file, [f"{OPTION}=3", f"{OPTION}.members=3"], keys)


# ------------------------------------------------------------------------------------------------------ forecasts


def test_a_run_makes_an_ensemble_of_which_the_first_member_is_the_forecast_without_one(
    made: Forecasts, run: Path
) -> None:
    alone = forecast(made, run, "alone")
    found = forecast(made, run, "five", f"{OPTION}={{members: 5, length_km: {LONG}, amplitude: 0.1}}")
    assert found.temperature.dims == ("time", "prediction_timedelta", "number", "level", "latitude", "longitude")
    assert found.number.values.tolist() == [0, 1, 2, 3, 4]
    assert found.number.attrs["standard_name"] == "realization"
    assert "5 members" in found.attrs["ensemble"]
    xr.testing.assert_allclose(found.sel(number=0, drop=True), alone, rtol=1e-5)
    spread = found.std("number")
    assert all(bool((values > 0).all()) for values in spread.data_vars.values())
    assert [round(h) for h in found.prediction_timedelta.values / np.timedelta64(1, "h")] == [6, 12, 24]


def test_a_member_is_the_same_in_a_larger_ensemble_and_from_a_file_of_its_own(made: Forecasts, run: Path) -> None:
    several = forecast(made, run, "several", f"{OPTION}={{members: 4, length_km: {LONG}}}")
    fewer = forecast(made, run, "fewer", f"{OPTION}={{members: 3, length_km: {LONG}}}", times=[2])
    xr.testing.assert_allclose(several.isel(time=[2], number=slice(0, 3)), fewer, rtol=1e-5)


def test_the_perturbation_of_the_file_is_what_the_model_was_given(made: Forecasts, run: Path) -> None:
    """Forecasting from a file that was perturbed by hand gives the member."""
    opened = Run.open(run)
    learned = opened.job.task.learned  # type: ignore[attr-defined]
    names = ("temperature_500", "geopotential_500")
    ensemble = Ensemble(members=2, amplitude=0.2, length_km=LONG)
    change = Perturbations(ensemble, names, learned.states.of(names).std, GLOBE).of(1, "2001-01-02T00:00")
    assert change is not None
    states = waves().isel(time=[4]).sel(level=[500.0])
    member = forecast(made, run, "member", f"{OPTION}={{members: 2, length_km: {LONG}, amplitude: 0.2}}", times=[4])
    for name, field in zip(("t", "z"), change, strict=True):
        states[name] = states[name] + field
        states[name].attrs["units"] = "K" if name == "t" else "m2 s-2"
    predict_file(opened, made.data(states, "by_hand_states.nc"), made.folder / "by_hand.nc")
    by_hand = read_forecast(made.folder / "by_hand.nc")
    xr.testing.assert_allclose(member.sel(number=1, drop=True), by_hand, rtol=1e-5)


def test_netcdf_and_zarr_hold_the_same_ensemble(made: Forecasts, run: Path) -> None:
    opened = Run.open(run, overrides=[f"{OPTION}={{members: 3, length_km: {LONG}}}"])
    targets = [made.folder / f"kinds.{kind}" for kind in ("nc", "zarr")]
    for target in targets:
        assert predict_file(opened, made.data(waves(5), "kinds_states.nc"), target) == (5, 0)
    one, other = (read_forecast(target) for target in targets)
    xr.testing.assert_equal(one, other)
    assert one.attrs == other.attrs


def test_memory_does_not_grow_with_the_number_of_members(
    made: Forecasts, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    append = ForecastWriter.append

    def counting(self: ForecastWriter, part: xr.Dataset) -> None:
        sizes.append(part.sizes["number"] * part.sizes["time"])
        append(self, part)

    monkeypatch.setattr(ForecastWriter, "append", counting)
    found = forecast(made, run, "many", f"{OPTION}={{members: 19, length_km: {LONG}}}", times=[0, 1])
    assert sizes == [1] * 38
    assert found.sizes["number"] == 19


def test_an_ensemble_of_the_recipe_leaves_training_and_its_scores_as_they_are(made: Forecasts, run: Path) -> None:
    job = made.job(lead_hours=[6, 12], rollout=2, climatology="all", ensemble={"members": 2, "length_km": LONG})
    other = train(job, output=made.folder / "with").folder.path
    metrics = [json.loads((folder / "summary.json").read_text())["metrics"] for folder in (run, other)]
    assert metrics[0] == metrics[1]
    assert forecast(made, other, "own").sizes["number"] == 2
    assert "number" not in forecast(made, other, "without", f"{OPTION}=null").dims
    assert forecast(made, other, "more", f"{OPTION}.members=3").sizes["number"] == 3
