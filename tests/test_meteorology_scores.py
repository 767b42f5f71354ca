"""Verification scores: closed forms, the definitions of other libraries to 1e-12, and sums that merge."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scoringrules
import torch
import xarray as xr
import xskillscore

from zoo.errors import InputError
from zoo.meteorology import metrics, scores
from zoo.meteorology.evaluation import climatology_at, evaluate, persistence_and_climatology, verify
from zoo.meteorology.verification import Verification, table

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # the same sums in another order, in float64
LATITUDES = np.linspace(-87.1875, 87.1875, 32)[::4]
LONGITUDES = np.arange(0, 360, 30.0)
LEVELS = [500, 850]
LEAD = np.timedelta64(24, "h")


def states(times: int = 6, *, seed: int = 0, **dims: int) -> xr.Dataset:
    """Random temperature (with levels) and surface pressure at six-hourly times."""
    random = np.random.default_rng(seed)
    shape = (*dims.values(), times, len(LEVELS), len(LATITUDES), len(LONGITUDES))
    coordinates = {
        "time": pd.date_range("2001-01-01", periods=times, freq="6h"),
        "level": LEVELS, "latitude": LATITUDES, "longitude": LONGITUDES,
    }  # fmt: skip
    names = [*dims, "time", "level", "latitude", "longitude"]
    return xr.Dataset(
        {
            "temperature": (names, random.normal(280, 10, shape), {"units": "K"}),
            "surface_pressure": ([n for n in names if n != "level"], random.normal(1e5, 500, shape)[..., 0, :, :], {}),
        },
        coords=coordinates,
    )


def score(forecast: xr.Dataset, truth: xr.Dataset, climatology: xr.Dataset | None = None, **settings) -> xr.Dataset:
    verification = Verification(**settings)
    verification.add("forecast", LEAD, forecast, truth, climatology)
    return verification.scores().isel(system=0, prediction_timedelta=0)


def weights(kind: scores.Weights = "area") -> xr.DataArray:
    return xr.DataArray(scores.latitude_weights(LATITUDES, kind), dims="latitude", coords={"latitude": LATITUDES})


def grid_weights(like: xr.DataArray) -> xr.DataArray:
    flat = like.isel(level=0, drop=True) if "level" in like.dims else like
    return weights().broadcast_like(flat).transpose(*flat.dims)


def test_area_weights_are_the_areas_of_the_cells():
    north = scores.latitude_weights([-60, 0, 60])
    # bounds -90, -30, 30, 90: sines -1, -1/2, 1/2, 1, so areas 1/2, 1, 1/2 of 2
    np.testing.assert_allclose(north, [0.75, 1.5, 0.75], **EXACT)
    uneven = scores.latitude_weights([90, 30, -90])
    np.testing.assert_allclose(uneven, 3 * np.array([1 - np.sqrt(3) / 2, np.sqrt(3) / 2 + 0.5, 0.5]) / 2, **EXACT)


def test_cosine_weights_are_those_of_the_loss():
    theirs = metrics.cosine_weights(torch.as_tensor(LATITUDES)).numpy()
    np.testing.assert_allclose(scores.latitude_weights(LATITUDES, "cosine"), theirs, **EXACT)


@pytest.mark.parametrize(
    ("latitudes", "kind", "message"),
    [
        ([0, 91], "area", "degrees from -90 to 90"),
        ([], "cosine", "degrees from -90 to 90"),
        ([0, 10, 5], "area", "from south to north or north to south"),
        ([-90, 90], "cosine", "all of them are poles"),
        ([0, 10], "sine", 'weights: "sine" is not a known kind of latitude weights'),
    ],
)
def test_impossible_weights_say_why(latitudes: list[float], kind: scores.Weights, message: str):
    with pytest.raises(InputError, match=message):
        scores.latitude_weights(latitudes, kind)


def test_rmse_mae_and_bias_are_those_of_xskillscore():
    forecast, truth = states(seed=1), states(seed=2)
    mine = score(forecast, truth)
    for name in ("temperature", "surface_pressure"):
        dims, w = ["time", "latitude", "longitude"], grid_weights(truth[name])
        f, t = forecast[name], truth[name]
        theirs = {"rmse": xskillscore.rmse, "mae": xskillscore.mae}
        for metric, function in theirs.items():
            expected = function(f, t, dim=dims, weights=w)
            np.testing.assert_allclose(mine[name].sel(metric=metric), expected, **EXACT)
        bias = xskillscore.me(f, t, dim=dims, weights=w)
        np.testing.assert_allclose(mine[name].sel(metric="bias"), bias, rtol=1e-12, atol=1e-12 * float(abs(t).max()))


def test_both_rmse_differ_where_forecasts_do():
    truth = states(times=2) * 0.0
    forecast = truth + xr.DataArray([3.0, 4.0], dims="time")
    found = score(forecast, truth)["temperature"]
    np.testing.assert_allclose(found.sel(metric="rmse"), np.sqrt(12.5), **EXACT)
    np.testing.assert_allclose(found.sel(metric="rmse_climax"), 3.5, **EXACT)


def test_crps_is_that_of_scoringrules_and_xskillscore():
    forecast, truth = states(seed=3, number=7), states(seed=4)
    mine = score(forecast, truth)
    for name in ("temperature", "surface_pressure"):
        f, t = forecast[name], truth[name]
        for metric, estimator in (("crps_fair", "fair"), ("crps", "nrg")):
            each = scoringrules.crps_ensemble(t.values, np.moveaxis(f.values, 0, -1), estimator=estimator)
            expected = t.copy(data=each).weighted(weights()).mean(["time", "latitude", "longitude"])
            np.testing.assert_allclose(mine[name].sel(metric=metric), expected, **EXACT)
        theirs = xskillscore.crps_ensemble(
            t, f, member_dim="number", dim=["time", "latitude", "longitude"], weights=grid_weights(t)
        )
        np.testing.assert_allclose(mine[name].sel(metric="crps"), theirs, **EXACT)


def test_fair_crps_does_not_punish_a_small_ensemble():
    # members and truth from the same uniform distribution: E|X - y| = 1/3 and E|X - X'| / 2 = 1/6 for any number
    random = np.random.default_rng(0)
    truth = random.random(400_000)
    fair, plain = (scores.crps(random.random((2, truth.size)), truth, fair=fair).mean() for fair in (True, False))
    assert fair == pytest.approx(1 / 6, abs=2e-3)
    assert plain == pytest.approx(1 / 6 + 1 / 12, abs=2e-3)


def test_spread_equals_error_for_a_reliable_ensemble():
    random = np.random.default_rng(1)
    truth, forecast = (states(times=200, **m)[["temperature"]] for m in ({}, {"number": 4}))
    for dataset in (truth, forecast):
        dataset["temperature"] = dataset["temperature"].copy(data=random.normal(size=dataset["temperature"].shape))
    found = score(forecast, truth)["temperature"]
    np.testing.assert_allclose(found.sel(metric="spread"), 1, rtol=0.01)
    np.testing.assert_allclose(found.sel(metric="rmse"), np.sqrt(1.25), rtol=0.01)  # 1 + 1 / members
    np.testing.assert_allclose(found.sel(metric="spread_skill_ratio"), 1, rtol=0.01)


def test_climax_acc_is_that_of_the_tensors():
    forecast, truth = states(seed=6), states(seed=7)
    normal = states(times=1, seed=8).isel(time=0, drop=True)
    forecast = 0.3 * truth + 0.7 * forecast
    found = score(forecast, truth, normal, weights="cosine")
    for name in ("temperature", "surface_pressure"):
        tensors = [torch.as_tensor(d[name].values) for d in (forecast, truth, normal)]
        if name == "surface_pressure":
            tensors = [t[..., None, :, :] for t in tensors]
        expected = metrics.climax_acc(*tensors, LATITUDES.tolist()).numpy()
        np.testing.assert_allclose(np.atleast_1d(found[name].sel(metric="acc_climax")), expected, rtol=1e-11)


def test_uncentred_acc_is_the_mean_cosine_between_anomalies():
    forecast, truth = states(seed=9), states(seed=10)
    normal = states(times=1, seed=11).isel(time=0, drop=True)
    found = score(forecast, truth, normal)["temperature"].sel(metric="acc_uncentred")
    f, t = ((d - normal)["temperature"] for d in (forecast, truth))
    grid = ["latitude", "longitude"]
    cosine = (weights() * f * t).sum(grid) / np.sqrt((weights() * f**2).sum(grid) * (weights() * t**2).sum(grid))
    np.testing.assert_allclose(found, cosine.mean("time"), **EXACT)


def test_uncentred_acc_of_anomalies_without_mean_is_the_correlation_of_xskillscore():
    forecast, truth = (states(times=1, seed=s).isel(time=0, drop=True)[["temperature"]] for s in (12, 13))
    grid = ["latitude", "longitude"]
    forecast, truth = (d - d.weighted(weights()).mean(grid) for d in (forecast, truth))
    found = score(forecast, truth, truth * 0.0)["temperature"].sel(metric="acc_uncentred")
    f, t = forecast["temperature"], truth["temperature"]
    expected = xskillscore.pearson_r(f, t, dim=grid, weights=grid_weights(t))
    np.testing.assert_allclose(found, expected, **EXACT)


def test_zonal_spectrum_of_a_wave_has_its_energy_at_its_wavenumber():
    wave = 3 * np.cos(2 * np.deg2rad(LONGITUDES)) + 1
    spectrum = scores.zonal_energy_spectrum(np.stack([wave, wave]), [0, 60])
    circle = 2 * np.pi * scores.EARTH_RADIUS_M
    expected = np.zeros((2, len(LONGITUDES) // 2 + 1))
    expected[:, 0], expected[:, 2] = 1, 9 / 2  # squared mean, mean square of the wave
    np.testing.assert_allclose(spectrum, expected * circle * np.array([[1], [0.5]]), atol=1e-6 * circle, rtol=1e-12)


def test_zonal_spectrum_conserves_energy_apart_from_the_doubled_last_wavenumber():
    field = np.random.default_rng(2).normal(size=(5, 12))
    spectrum = scores.zonal_energy_spectrum(field, np.zeros(5))
    spectrum[:, -1] /= 2  # an even number of points: WeatherBench 2 counts it twice
    np.testing.assert_allclose(
        spectrum.sum(axis=1), 2 * np.pi * scores.EARTH_RADIUS_M * (field**2).mean(axis=1), rtol=1e-12
    )


def test_gathered_spectra_are_means_over_rows_and_forecasts():
    forecast, truth = states(seed=14), states(seed=15)
    found = score(forecast, truth)
    each = scores.zonal_energy_spectrum(forecast["temperature"].values, LATITUDES)
    expected = (each.mean(axis=0) * weights().values[:, None]).mean(axis=1)
    np.testing.assert_allclose(found["temperature_spectrum"], expected, rtol=1e-12)
    assert found["temperature_spectrum"].attrs["units"] == "m (K)^2"
    assert not np.allclose(found["temperature_spectrum_truth"], expected, rtol=1e-3)


def test_a_region_has_no_zonal_spectrum():
    region = states().isel(longitude=slice(0, 5))
    with pytest.raises(InputError, match="not a whole circle in even steps; leave the spectrum out"):
        score(region, region)
    assert "temperature_spectrum" not in score(region, region, spectrum=False)


@pytest.mark.parametrize("members", [{}, {"realization": 3}])
def test_forecasts_one_by_one_and_merged_score_as_all_at_once(members: dict[str, int]):
    forecast, truth = states(seed=16, **members), states(seed=17)
    normal = states(times=1, seed=18).isel(time=0, drop=True)
    together = score(forecast, truth, normal)
    parts = Verification(), Verification()
    for i in range(6):
        parts[i % 2].add("forecast", LEAD, forecast.isel(time=i), truth.isel(time=i), normal)
    parts[0].merge(parts[1])
    merged = parts[0].scores().isel(system=0, prediction_timedelta=0)
    xr.testing.assert_allclose(merged, together, rtol=1e-11)
    assert merged["temperature"].sel(metric="forecasts").values.tolist() == [6, 6]


def test_merging_what_differs_is_refused():
    truth = states()
    one, other = Verification(), Verification(weights="cosine")
    with pytest.raises(InputError, match="settings differ"):
        one.merge(other)
    other = Verification()
    one.add("forecast", LEAD, truth, truth)
    other.add("forecast", LEAD, truth.isel(level=[0]), truth)
    with pytest.raises(InputError, match="levels of temperature differ"):
        one.merge(other)


def test_a_nan_is_counted_and_spoils_the_score_unless_skipped():
    forecast, truth = states(seed=19)[["temperature"]], states(seed=20)[["temperature"]]
    truth["temperature"][1, 0, 3, :4] = np.nan
    spoilt = score(forecast, truth)["temperature"]
    assert spoilt.sel(metric="missing_points").values.tolist() == [4, 0]
    assert np.isnan(spoilt.sel(metric="rmse")).values.tolist() == [True, False]
    skipped = score(forecast, truth, missing="skip")["temperature"]
    assert skipped.sel(metric="missing_points").values.tolist() == [4, 0]
    f, t = forecast["temperature"], truth["temperature"]
    dims, w = ["time", "latitude", "longitude"], grid_weights(t)
    expected = xskillscore.rmse(f, t, dim=dims, weights=w, skipna=True)
    np.testing.assert_allclose(skipped.sel(metric="rmse"), expected, **EXACT)


def test_a_nan_of_one_member_is_skipped_in_all_scores_of_its_point():
    forecast, truth = states(seed=21, number=3)[["temperature"]], states(seed=22)[["temperature"]]
    forecast["temperature"][2, 0, 0, 1, 1] = np.nan
    skipped = score(forecast, truth, missing="skip", spectrum=False)["temperature"].isel(level=0)
    holes = truth["temperature"].where(forecast["temperature"].notnull().all("number")).isel(level=0)
    each = scoringrules.crps_ensemble(
        truth["temperature"].isel(level=0).values,
        np.moveaxis(forecast["temperature"].isel(level=0).values, 0, -1),
        estimator="fair",
    )
    expected = holes.copy(data=each).where(holes.notnull()).weighted(weights()).mean()
    np.testing.assert_allclose(skipped.sel(metric="crps_fair"), expected, **EXACT)
    assert skipped.sel(metric="missing_points") == 1


def test_truth_in_another_order_with_more_levels_scores_the_same():
    forecast, truth = states(seed=23), states(seed=24)
    turned = truth.isel(latitude=slice(None, None, -1), level=[1, 0]).transpose("longitude", ...)
    xr.testing.assert_identical(score(forecast, truth), score(forecast, turned))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.drop_vars("temperature"), 'truth: "temperature" is not a known variable'),
        (lambda d: d.isel(latitude=slice(0, 5)), "truth: temperature has no latitude"),
        (lambda d: d.isel(level=[0]), r"truth: temperature has no level \[850.0\]"),
        (lambda d: d.isel(level=0), "truth: temperature has dimensions"),
        (lambda d: d.isel(time=slice(0, 3)), "give the same times"),
        (lambda d: d.expand_dims(step=2), "are not known to scores"),
        (lambda d: d.assign(temperature=d["temperature"].assign_attrs(units="degC")), 'is in "degC", the forecast in'),
    ],
)
def test_truth_that_does_not_fit_says_where(change, message: str):
    with pytest.raises(InputError, match=message):
        score(states(), change(states()))


def test_forecasts_that_do_not_fit_what_was_added_are_refused():
    verification, truth = Verification(), states()
    verification.add("forecast", LEAD, truth, truth)
    with pytest.raises(InputError, match="another latitude"):
        verification.add("forecast", LEAD, truth.isel(latitude=slice(0, 4)), truth)
    with pytest.raises(InputError, match="other levels"):
        verification.add("forecast", LEAD, truth.isel(level=[0]), truth)
    with pytest.raises(InputError, match="3 members here, 1 before"):
        verification.add("forecast", LEAD, states(number=3), truth)


def test_words_that_are_not_known_are_refused():
    with pytest.raises(InputError, match='missing: "ignore" is not a known treatment of NaNs'):
        Verification(missing="ignore")  # type: ignore[arg-type]
    with pytest.raises(InputError, match='weights: "sine"'):
        Verification(weights="sine")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no forecasts were added"):
        Verification().scores()
    with pytest.raises(InputError, match="CRPS: 1 members; the fair score needs at least 2"):
        scores.crps(np.zeros((1, 2)), np.zeros(2), fair=True)
    with pytest.raises(InputError, match="an ensemble of 1 member"):
        scores.ensemble_variance(np.zeros((1, 2)))


def forecasts(truth: xr.Dataset, starts: list[int], leads: list[int], error: float = 1.0) -> xr.Dataset:
    """Truth plus `error` per day, in the layout of a forecast dataset."""
    blocks = []
    for lead in leads:
        block = truth.isel(time=[start + lead // 6 for start in starts]) + error * lead / 24
        blocks.append(block.assign_coords(time=truth["time"].values[starts]))
    steps = xr.Variable("prediction_timedelta", [np.timedelta64(lead, "h") for lead in leads])
    result = xr.concat(blocks, dim="prediction_timedelta").assign_coords(prediction_timedelta=steps)
    return result.transpose("time", "prediction_timedelta", ...)


def test_evaluation_scores_forecast_persistence_and_climatology_over_the_same_forecasts():
    truth = states(times=20, seed=25)
    forecast = forecasts(truth, [0, 2, 5], [6, 24])
    normal = truth.mean("time")
    seen: list[tuple[int, int]] = []
    found = evaluate(forecast, truth, normal, progress=lambda *at: seen.append(at))
    assert seen[-1] == (6, 6)
    assert found["system"].values.tolist() == ["forecast", "persistence", "climatology"]
    hours = found["prediction_timedelta"] / np.timedelta64(1, "h")
    for metric in ("rmse", "bias"):
        ours = found["temperature"].sel(system="forecast", metric=metric)
        np.testing.assert_allclose(ours, (hours / 24).broadcast_like(ours), rtol=1e-9)
    later, now = truth.isel(time=[4, 6, 9]), truth.isel(time=[0, 2, 5])
    expected = score(now.assign_coords(time=later.time), later, normal)
    one = found["temperature"].sel(system="persistence", prediction_timedelta=LEAD)
    np.testing.assert_allclose(one, expected["temperature"], rtol=1e-11)
    climatology = found["temperature"].sel(system="climatology", prediction_timedelta=LEAD)
    np.testing.assert_allclose(
        climatology.sel(metric="rmse"),
        np.sqrt(((later - normal)["temperature"] ** 2).weighted(weights()).mean(["time", "latitude", "longitude"])),
        rtol=1e-12,
    )
    assert bool(np.isnan(climatology.sel(metric="acc_uncentred")).all())  # it has no anomaly


def test_evaluation_in_two_processes_merges():
    truth = states(times=20, seed=26)
    forecast = forecasts(truth, [0, 2, 5, 7], [6, 12])
    whole, _ = verify(forecast, truth)
    first, second = (verify(forecast.isel(time=part), truth)[0] for part in (slice(0, 1), slice(1, 4)))
    first.merge(second)
    xr.testing.assert_allclose(first.scores(), whole.scores(), rtol=1e-11)


def test_forecasts_beyond_truth_are_an_error_or_counted():
    truth = states(times=8)
    forecast = forecasts(states(times=20), [0, 6], [6, 24])
    with pytest.raises(InputError, match=r"truth: no state at the start or the end of 1 of 4 forecasts.*12:00:00"):
        evaluate(forecast, truth)
    found = evaluate(forecast, truth, missing_times="skip")
    assert found.attrs["forecasts_without_truth"] == 1
    counts = found["temperature"].sel(metric="forecasts", system="persistence", level=500)
    assert counts.values.tolist() == [2, 1]


def test_evaluation_refuses_other_layouts():
    truth = states()
    with pytest.raises(InputError, match='forecast: no dimension "prediction_timedelta"'):
        evaluate(truth, truth)
    forecast = forecasts(truth, [0], [6])
    with pytest.raises(InputError, match="truth: no temperature, which the forecast has; it has surface_pressure"):
        evaluate(forecast, truth.drop_vars("temperature"))
    with pytest.raises(InputError, match="times are not in order"):
        evaluate(forecast, truth.isel(time=[1, 0, 2]))


def test_climatology_is_that_of_the_day_and_hour():
    normal = xr.Dataset({"t": (("dayofyear", "hour"), np.arange(8.0).reshape(2, 4))})
    normal = normal.assign_coords(dayofyear=[59, 60], hour=[0, 6, 12, 18])
    assert float(climatology_at(normal, np.datetime64("2001-03-01T06"))["t"]) == 5
    assert float(climatology_at(normal, np.datetime64("2000-02-29T18"))["t"]) == 7
    with pytest.raises(InputError, match="climatology: no dayofyear 61"):
        climatology_at(normal, np.datetime64("2001-03-02"))
    with pytest.raises(InputError, match="climatology: no hour 3"):
        climatology_at(normal, np.datetime64("2001-03-01T03"))


def test_only_a_few_states_of_truth_are_in_memory(monkeypatch: pytest.MonkeyPatch):
    from zoo.meteorology import evaluation

    kept: list[int] = []
    at = evaluation.Recent.at

    def counting(self, place: int) -> xr.Dataset:
        state = at(self, place)
        kept.append(len(self.states))
        return state

    monkeypatch.setattr(evaluation.Recent, "at", counting)
    truth = states(times=60)
    evaluate(forecasts(truth, list(range(50)), [6, 24]), truth)
    assert max(kept) <= 5


def test_the_floor_of_a_dataset_needs_no_forecast():
    truth = states(times=12, seed=27)
    found = persistence_and_climatology(truth, [6, 24], truth.mean("time"))
    full = evaluate(forecasts(truth, list(range(8)), [24]), truth, truth.mean("time"), spectrum=False)
    one = {"prediction_timedelta": LEAD, "metric": "rmse"}
    for system in ("persistence", "climatology"):
        np.testing.assert_allclose(
            found["temperature"].sel(system=system, **one), full["temperature"].sel(system=system, **one), rtol=1e-12
        )


def test_the_table_has_a_row_per_score_with_its_unit():
    truth = states(seed=28)
    rows = table(score(truth, truth).expand_dims(["system", "prediction_timedelta"]))
    assert rows.columns.tolist() == ["variable", "level", "lead_hours", "system", "metric", "value", "unit"]
    one = rows[(rows.variable == "temperature") & (rows.metric == "rmse") & (rows.level == 850)].iloc[0]
    assert (one.lead_hours, one.value, one.unit) == (24.0, 0.0, "K")
    assert set(rows[rows.metric == "forecasts"].unit) == {"1"}
    assert len(rows[rows.variable == "surface_pressure"]) * 2 == len(rows[rows.variable == "temperature"])
