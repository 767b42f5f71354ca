"""The task of forecasting: options, samples, loss and scores, on small files with waves in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from forecasts import TINY, VARIABLES, Forecasts, Says, Zeros, fetch, months, waves
from gridded import z_files
from small_models import changed, defaults, measured, predicted

from zoo.card import load_ref
from zoo.data.prepare import Data
from zoo.domain import Batch, find_model
from zoo.errors import InputError
from zoo.meteorology import metrics
from zoo.meteorology.archive import _check_alike
from zoo.meteorology.climatology import measure_climatology
from zoo.meteorology.evaluation import evaluate
from zoo.meteorology.forecast_file import forecast_dataset
from zoo.meteorology.forecast_scores import scores_of
from zoo.meteorology.forecasting import Forecast
from zoo.meteorology.grids import Box
from zoo.meteorology.scores import latitude_weights
from zoo.meteorology.source import open_fields
from zoo.meteorology.statistics import measure
from zoo.step import PHASES
from zoo.techniques.checkpointing import BlockCheckpointing
from zoo.training import inference

CPU = torch.device("cpu")


@pytest.fixture
def made(tmp_path: Path) -> Forecasts:
    return Forecasts(tmp_path)


def scored(task: Forecast, model: torch.nn.Module, examples: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    found = inference.predict(task, model, examples, CPU, rows=4, longest=task.length(None))
    return inference.score(task, found, examples), found


def batch_of(task: Forecast, examples: Any, epoch: int | None = 0) -> Batch:
    return task.collate(list(examples), range(len(examples)), epoch)


class Truth(Zeros):
    """Says what makes the forecast equal to the truth of the batches it is shown."""

    def __init__(self, task: Forecast, answers: list[torch.Tensor]) -> None:
        super().__init__(len(task.targets_wanted))
        self.answers, self.calls = answers, 0

    def forward(self, fields: torch.Tensor, hours: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.answers[self.calls - 1]


# -------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variables": []}, "variables: none"),
        ({"targets": []}, "targets: none"),
        ({"lead_steps": [1]}, "give either lead_hours or lead_steps (for data whose step is a month or a year)"),
        ({"lead_hours": None}, "give either lead_hours or lead_steps (for data whose step is a month or a year)"),
        ({"lead_hours": []}, "lead_hours: []; give different numbers above 0"),
        ({"lead_hours": [6, 0]}, "lead_hours: [6.0, 0.0]; give different numbers above 0"),
        ({"lead_hours": None, "lead_steps": [2, 2]}, "lead_steps: [2, 2]; give different numbers above 0"),
        ({"rollout": 0}, "rollout: got 0; it is 1 or more"),
        ({"every": 0}, "every: got 0; it is 1 or more"),
        ({"forcings": ["hour"]}, 'forcings: "hour" is not a known forcing'),
        ({"variables": ["t_500", "temperature_500"]}, "variables: temperature_500 (temperature_500) is there twice"),
        ({"targets": ["z_500", "z_500"]}, "targets: z_500 (geopotential_500) is there twice; give each once"),
        ({"target_weights": {"t_850": 1.0}}, "target_weights: temperature_850: no target"),
        ({"target_weights": {"t_500": -1.0}}, "target_weights: numbers >= 0, not all of them 0"),
        ({"target_weights": {"t_500": 0.0}}, "target_weights: numbers >= 0, not all of them 0"),
        ({"targets": ["t_850"], "rollout": 2}, "rollout: 2 needs every target among the variables; temperatur"),
        ({"targets": ["t_850"], "predicts": "difference"}, "predicts: difference needs every target among the var"),
        ({"predicts": "tendency"}, '"tendency"'),
        ({"weighting": "plain"}, '"plain"'),
        ({"climatology": "week"}, '"week"'),
        ({"box": {"nort": 1, "south": 0, "west": 0, "east": 9}}, 'box: "nort" is not a known edge; did you mean'),
        ({"box": {"north": 60, "south": 0}}, "box: no west, east; give all of north, south, west, east in degrees"),
        ({"box": {"north": 0, "south": 60, "west": 0, "east": 9}}, "needed are -90 <= south < north <= 90"),
        ({"files": {"a.nc": {"x": {"nam": "temperature"}}}}, 'files: a.nc: x: "nam" is not a known fact; did you mean'),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_before_a_file_is_opened(
    made: Forecasts, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as error:
        made.job(data=made.folder / "absent.nc", **options)
    assert message in str(error.value)
    assert "data.split.method" not in str(error.value), "the way to split is right, whatever the options are"


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"lead_hours": [7]}, "lead of 7 hours is no whole number of the data's steps of 6 hours; give a multiple"),
        ({}, {"variables": ["temperature_700"]}, "temperature has no level 700 hPa (levels there: 500, 850)"),
        ({}, {"lead_hours": [6000]}, "data.split: no sample for training (42 at the ends of the data)"),
        ({}, {"lead_hours": [60]}, "data.split: no sample in the valid part (left out: {'at the ends of the data"),
        ({}, {"targets": ["t_850"]}, "climax_small predicts differences: every target must be among the variables"),
        ({}, {"series": {"all": "train"}}, "task: series: is for data.split.method: series, and the recipe says time"),
        ({}, {"years": {"train": [1990, 1991]}}, "task: years: no time for train from 1990 to 1991; the data"),
        ({"data.split": {"method": "series"}}, {"series": {"A": "train"}}, "say for each of the files of a dataset"),
        ({}, {"files": {"z*.nc": {"x": {"level": 500}}}}, "task: files: z*.nc: no file of"),
        ({"model": "climax_5_625deg"}, {}, "wanted are 32 x 64. Regrid the data, cut it with a box, or choose"),
        (
            {"model": "climax_5_625deg"}, {"box": {"north": 90, "south": 0, "west": 0, "east": 359}},
            "climax_5_625deg takes a region of its own globe of 32 x 64 points: regrid the file to that, with all of",
        ),
    ],
)  # fmt: skip
def test_what_the_data_cannot_give_is_refused(
    made: Forecasts, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    job = made.job(changes, **options)
    with pytest.raises(InputError) as error:
        job.task.prepare(job, fetch)
    assert message in str(error.value)


def test_nothing_is_made_up_before_there_is_data(made: Forecasts) -> None:
    task: Any = made.job().task
    for ask in (lambda: task.learned.states, lambda: task._opened):
        with pytest.raises(ValueError, match="forecast: no data yet: call prepare first"):
            ask()
    with pytest.raises(InputError, match="climax_small is made for the grid of the data, which is not at hand"):
        task.blank_batch(find_model("climax_small"), 1, 1)
    with pytest.raises(InputError, match="predicts from files of fields, not from tables; give a NetCDF, Zarr or GRI"):
        task.read_inputs(None, None, None)
    released = task.blank_batch(find_model("climax_5_625deg"), 2, 1)
    assert released.inputs["fields"].shape == (2, 2, 32, 64)


def test_names_are_those_of_the_table(made: Forecasts) -> None:
    task, _ = made.prepared(variables=["t_500", "z_850"], target_weights={"t_500": 3}, targets=["z_850", "t_500"])
    assert task.variables == ("temperature_500", "geopotential_850")
    assert task.head.wanted == ("geopotential_850", "temperature_500")
    assert task.target_weights == [1.0, 3.0]


def test_every_so_many_initial_times_are_scored(made: Forecasts) -> None:
    whole, some = (made.prepared(every=n, lead_hours=[6, 12])[1] for n in (1, 3))
    assert len(some.test) == 2 * -(-len(whole.test) // 2 // 3)
    assert some.train == whole.train


def test_constant_fields_are_given_but_their_differences_are_not_predicted(made: Forecasts) -> None:
    variables = [*VARIABLES, "land_sea_mask"]
    task, data = made.prepared(variables=variables, targets=VARIABLES)
    fields = batch_of(task, data.train[:2]).inputs["fields"]
    assert torch.equal(fields[0, 2], fields[1, 2])
    assert fields.shape[1] == 3
    task, data = made.prepared(variables=variables, targets=variables)
    with pytest.raises(InputError, match="targets: land_sea_mask never changes in training, so its differences cannot"):
        batch_of(task, data.train[:2])


# ---------------------------------------------------------------------------------- what a model is given and says


@pytest.mark.parametrize("predicts", ["state", "difference", "anomaly"])
@pytest.mark.parametrize("rollout", [1, 3])
def test_the_truth_has_no_error(made: Forecasts, predicts: str, rollout: int) -> None:
    task, data = made.prepared(predicts=predicts, climatology="all", rollout=rollout, lead_hours=[6, 12])
    states = task.learned.states.of(task.targets_wanted)
    for example in data.test:
        batch = batch_of(task, [example], None)
        given, ends = task._opened.samples[example.part].indices(example.number, example.lead)
        path = task._opened.series[0].read([*given, *ends[: example.steps]], task.targets_wanted).astype(np.float64)
        if predicts == "difference":
            change = task.learned.differences(example.lead)
            answers = (np.diff(path, axis=0) - change.mean[:, None, None]) / change.std[:, None, None]
        else:
            usual = task.learned.climatology.mean[0] if predicts == "anomaly" else 0
            answers = (path[1:] - usual - states.mean[:, None, None]) / states.std[:, None, None]
        model = Truth(task, [torch.tensor(answer[None], dtype=torch.float32) for answer in answers])
        score = task.predict(model, batch)[0]
        assert score["lead_hours"] == 6 * example.lead * example.steps
        for name, std in zip(states.names, states.std, strict=True):
            assert np.sqrt(score[f"mse_{name}"]) < 1e-5 * std
            assert score[f"acc_{name}"] == pytest.approx(1, abs=1e-6)
        assert model.calls == example.steps


def test_a_model_that_says_no_change_is_persistence(made: Forecasts) -> None:
    task, data = made.prepared(predicts="difference", lead_hours=[6, 12])
    drift = {lead: task.learned.differences(lead) for lead in task.leads}
    assert all(np.abs(d.mean / d.std).max() > 0 for d in drift.values())
    for found in drift.values():
        found.mean[:] = 0  # so that nothing is said is nothing changes
    metrics, found = scored(task, Zeros(2), data.test)
    floor = task.floors(found)["persistence"]
    assert metrics["skill_persistence"] == pytest.approx(0, abs=1e-5)
    for name, value in floor.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name


def test_a_model_that_says_no_anomaly_is_climatology(made: Forecasts) -> None:
    task, data = made.prepared(predicts="anomaly", climatology="all", lead_hours=[6, 12])
    metrics, found = scored(task, Zeros(2), data.test)
    floor = task.floors(found)["climatology"]
    assert metrics["skill_climatology"] == pytest.approx(0, abs=1e-5)
    for name, value in floor.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name


def test_an_anomaly_of_zero_has_no_correlation_and_is_no_error() -> None:
    draw = np.random.default_rng(0)
    truth, before, usual = draw.normal(size=(3, 2, 8, 16))
    weights = latitude_weights((np.arange(8) + 0.5) * 22.5 - 90)
    found = scores_of(("a", "b"), np.stack([usual[0], truth[1]]), truth, before, usual, weights)
    assert "acc_a" not in found
    assert found["acc_b"] == pytest.approx(1)
    broken = scores_of(("a", "b"), np.full_like(truth, np.nan), truth, before, usual, weights)
    assert np.isnan(broken["acc_a"]), "a forecast that is no number must be seen"
    assert np.isnan(broken["mse_a"])


def test_fields_that_are_not_given_can_be_wanted(made: Forecasts) -> None:
    task, data = made.prepared(variables=["t_500"], targets=["z_850"], predicts="state")
    metrics, found = scored(task, Zeros(1), data.test)
    assert set(task.floors(found)) == {"persistence", "climatology"}, "whatever the model is given, there is a floor"
    assert metrics["rmse_geopotential_850"] > 0


def test_statistics_are_of_training_times_alone(made: Forecasts) -> None:
    """Whatever comes later, what is learned stays the same to the bit."""
    first = made.prepared(lead_hours=[6, 12], climatology="month")[0].learned
    known = first.to_json((1, 2)), first.climatology.mean.copy()
    altered = waves()
    for name in ("t", "z"):
        altered[name][42:] = altered[name][42:] * 3 + 1000
    made.data(altered)
    again = made.prepared(lead_hours=[6, 12], climatology="month")[0].learned
    assert again.to_json((1, 2)) == known[0]
    assert np.array_equal(again.climatology.mean, known[1])
    fields = first._trained_on.series
    times = [list(range(42))]
    assert first.states.mean == pytest.approx(measure(fields, times, names=VARIABLES).mean)
    mean = measure_climatology(fields, times, names=VARIABLES, grouping="all").mean[0]
    assert mean == pytest.approx(waves().sel(level=500)[["t", "z"]].to_array()[:, :42].mean("time").values, rel=1e-5)


def test_no_sample_crosses_from_part_to_part(made: Forecasts) -> None:
    task, data = made.prepared(lead_hours=[6, 18], rollout=2)
    touched = {
        part: {index for number in range(len(samples)) for _, index in samples.touched(number)}
        for part, samples in task._opened.samples.items()
    }
    assert all(touched.values())
    assert max(touched["train"]) < min(touched["valid"])
    assert max(touched["valid"]) < min(touched["test"])
    assert data.notes["initial times of train left out across a boundary of parts"] == 6
    assert set(task._opened.training_times[0]) == touched["train"]


def test_leads_are_drawn_anew_each_epoch_and_the_longest_is_among_them(made: Forecasts) -> None:
    task, data = made.prepared(lead_hours=[6, 12, 24])
    again, _ = made.prepared(lead_hours=[6, 12, 24])
    other, _ = made.prepared({"train.seed": 4}, lead_hours=[6, 12, 24])

    def hours(task: Forecast, epoch: int) -> list[float]:
        return batch_of(task, data.train, epoch).inputs["hours"].tolist()

    drawn = [hours(task, epoch) for epoch in range(3)]
    assert all(set(one) == {6, 12, 24} for one in drawn)
    assert drawn[0] != drawn[1] != drawn[2]
    assert drawn[1] == hours(task, 1) == hours(again, 1), "the same for the same seed, in whatever order"
    assert drawn[1] != hours(other, 1)
    few = batch_of(task, data.train[3:5], 1)
    assert few.inputs["hours"].tolist() == drawn[1][3:5], "whatever batch a sample is in"
    assert batch_of(task, data.train[:1], None).inputs["hours"].tolist() == [24]


def test_everything_that_is_read_depends_on_seed_and_epoch_alone(made: Forecasts) -> None:
    task, data = made.prepared(lead_hours=[6, 12])
    one = batch_of(task, data.train[:4], 5)
    np.random.seed(1)
    torch.manual_seed(1)
    batch_of(task, data.train[4:8], 2)
    other = batch_of(task, data.train[:4], 5)
    assert all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)
    assert torch.equal(one.targets, other.targets)


def test_blank_batches_have_the_shapes_of_real_ones(made: Forecasts) -> None:
    for options in (
        {}, {"rollout": 3, "forcings": ["year_progress_sin"]}, {"predicts": "state"}, {"predicts": "anomaly"},
        {"variables": ["t_500", "z_500"], "targets": ["z_500"], "forcings": ["toa_incident_solar_radiation"]},
    ):  # fmt: skip
        task, data = made.prepared(climatology="all", **options)
        real = batch_of(task, data.train[:3])
        blank = task.blank_batch(find_model("climax_small"), 3, task.length(None))
        assert {k: (v.shape, v.dtype) for k, v in blank.inputs.items()} == {
            k: (v.shape, v.dtype) for k, v in real.inputs.items()
        }
        assert blank.targets.shape == real.targets.shape
        assert blank.targets.dtype == real.targets.dtype
        assert blank.weight == real.weight == 3


def test_forcings_follow_the_fields_and_the_time(made: Forecasts) -> None:
    names = ["year_progress_sin", "toa_incident_solar_radiation"]
    task, data = made.prepared(forcings=names, rollout=3)
    batch = batch_of(task, data.train[:2])
    assert batch.inputs["fields"].shape == (2, 4, 8, 16)
    later = batch_of(task, data.train[1:3])
    assert torch.equal(batch.inputs["forcings"][0, 0], later.inputs["fields"][0, 2:]), "of the state that comes next"
    assert torch.equal(batch.inputs["forcings"][0, 1], later.inputs["forcings"][0, 0])
    assert batch.inputs["fields"][:, 3].max() <= 1.5
    assert batch.inputs["fields"][:, 3].min() == 0, "night"


def test_a_rollout_is_its_single_steps(made: Forecasts) -> None:
    for predicts in ("state", "difference"):
        task, data = made.prepared(predicts=predicts, rollout=3, forcings=["year_progress_cos"])
        card = changed(find_model("climax_small"), **TINY)
        torch.manual_seed(0)
        model = load_ref(card.build)(card, task.head).eval()
        batch = batch_of(task, data.train[:2])
        with torch.no_grad():
            whole = list(task.steps(model, batch, 3))
            state = batch.inputs["fields"]
            for step, said in enumerate(whole):
                single = {**batch.inputs, "fields": state}
                one = next(iter(task.steps(model, Batch(single, batch.targets, 2), 1)))
                assert torch.equal(one, said), step
                forced = batch.inputs["forcings"][:, step] if step < 2 else state[:, 2:]
                state = torch.cat([said, forced], dim=1)


# ------------------------------------------------------------------------------------------------ loss and scores


def test_the_loss_is_what_one_computes_by_hand(made: Forecasts) -> None:
    task, data = made.prepared(predicts="state", rollout=2, target_weights={"t_500": 1, "z_500": 3})
    batch = batch_of(task, data.train[:3])
    draw = torch.Generator().manual_seed(0)
    answers = [torch.randn(3, 2, 8, 16, generator=draw) for _ in range(2)]
    loss = float(task.loss(Says(*answers), batch))
    rows = np.cos(np.deg2rad(task.latitudes))
    rows /= rows.mean()
    total = 0.0
    for step, said in enumerate(answers):
        squares = (said - batch.targets[:, step]).double().numpy() ** 2
        for sample in squares:
            t, z = ((field * rows[:, None]).mean() for field in sample)
            total += (1 * t + 3 * z) / 4
    assert loss == pytest.approx(total / 2, rel=1e-6)
    assert task.loss(Says(*answers), batch).dtype == torch.float32


def test_the_loss_of_one_step_is_climax_s(made: Forecasts) -> None:
    task, data = made.prepared(predicts="state")
    batch = batch_of(task, data.train[:3])
    said = torch.randn(3, 2, 8, 16, generator=torch.Generator().manual_seed(0))
    expected = 3 * metrics.weighted_loss(said, batch.targets[:, 0], list(task.latitudes))
    assert float(task.loss(Says(said), batch)) == pytest.approx(float(expected), rel=1e-6)
    area, _ = made.prepared(predicts="state", weighting="area")
    weights = latitude_weights(area.latitudes, "area")
    squares = (said - batch.targets[:, 0]).double().numpy() ** 2
    by_area = (squares * weights[:, None]).mean(axis=(1, 2, 3)).sum()
    assert float(area.loss(Says(said), batch)) == pytest.approx(by_area, rel=1e-6)


def test_the_loss_of_differences_is_in_their_own_deviations(made: Forecasts) -> None:
    """A target twice as variable, or a longer lead, counts no more: what is compared are normalised differences."""
    task, data = made.prepared(predicts="difference", lead_hours=[6, 24])
    batch = batch_of(task, data.train)
    assert {6.0, 24.0} == set(batch.inputs["hours"].tolist())
    perfect = (batch.targets[:, 0] - batch.inputs["fields"] - batch.inputs["shift"]) / batch.inputs["scale"]
    for hours in (6.0, 24.0):
        mine = perfect[batch.inputs["hours"] == hours]
        assert mine.std(dim=(0, 2, 3)) == pytest.approx(1, abs=0.15)
    off = perfect + 0.5
    expected = len(data.train) * 0.25
    assert float(task.loss(Says(off), batch)) == pytest.approx(expected, rel=1e-4)


def test_gradients_of_all_samples_weigh_alike_however_they_are_divided(made: Forecasts) -> None:
    task, data = made.prepared(lead_hours=[6, 12])
    whole = batch_of(task, data.train[:4])
    parts = [batch_of(task, data.train[i : i + 2]) for i in (0, 2)]
    total = sum(float(task.loss(Zeros(2), part)) for part in parts)
    assert float(task.loss(Zeros(2), whole)) == pytest.approx(total, rel=1e-6)
    assert whole.weight == sum(part.weight for part in parts)


def test_scores_are_those_of_the_verification_of_a_forecast_file(made: Forecasts) -> None:
    """The same forecasts, once scored as a run does, once written as a dataset and compared with the file."""
    task, data = made.prepared(predicts="state", climatology="all", lead_hours=[6, 12])
    draw = torch.Generator().manual_seed(0)
    predictions, parts = [], {}
    for example in data.test:
        said = torch.randn(1, 2, 8, 16, generator=draw)
        batch = batch_of(task, [example], None)
        predictions += task.predict(Says(said), batch)
        parts[example.text, example.lead] = task.fields(Says(said), batch)[0]
    found = task.metrics(predictions, [])
    floors = task.floors(predictions)
    starts = sorted({start for start, _ in parts})
    values = np.stack([np.stack([parts[start, lead] for lead in (1, 2)]) for start in starts])
    truth = waves().sel(level=[500.0]).rename(t="temperature", z="geopotential")[["temperature", "geopotential"]]
    mean = task.learned.climatology
    usual = xr.Dataset(
        {
            name.removesuffix("_500"): (("level", "latitude", "longitude"), field[None])
            for name, field in zip(mean.names, mean.mean[0], strict=True)
        },
        {axis: truth[axis] for axis in ("level", "latitude", "longitude")},
    )
    forecast = forecast_dataset(
        task.targets_wanted, values, starts=[np.datetime64(s) for s in starts], lead_hours=[6, 12],
        latitudes=task.latitudes, longitudes=task.longitudes,
    )  # fmt: skip
    scores = evaluate(forecast, truth, usual, spectrum=False).sel(level=500.0)
    for name in ("temperature", "geopotential"):
        for lead in (6, 12):
            mine = scores[name].sel(prediction_timedelta=np.timedelta64(lead, "h"))
            for metric, ours in (("rmse", "rmse"), ("bias", "bias"), ("acc_uncentred", "acc")):
                value = float(mine.sel(metric=metric, system="forecast"))
                assert found[f"{ours}_{name}_500_{lead}h"] == pytest.approx(value, rel=1e-6), (name, lead, metric)
            for system in ("persistence", "climatology"):
                value = float(mine.sel(metric="rmse", system=system))
                assert floors[system][f"rmse_{name}_500_{lead}h"] == pytest.approx(value, rel=1e-6)


def test_a_summary_says_how_much_better_than_the_floors(made: Forecasts) -> None:
    task, data = made.prepared(lead_hours=[6, 12])
    found, predictions = scored(task, Zeros(2), data.test)
    floors = task.floors(predictions)
    for name in ("persistence", "climatology"):
        assert found[f"skill_{name}"] == pytest.approx(1 - found["nrmse"] / floors[name]["nrmse"])
    deviations = task.learned.states.of(VARIABLES).std
    parts = [found[f"rmse_{n}_{h}h"] / s for n, s in zip(VARIABLES, deviations, strict=True) for h in (6, 12)]
    assert found["nrmse"] == pytest.approx(np.mean(parts))


def test_leads_that_two_ways_lead_to_are_scored_once(made: Forecasts) -> None:
    """12 hours are two steps of 6 and one of 12: the one step counts."""
    _, data = made.prepared(lead_hours=[6, 12], rollout=2)
    starts = {example.text for example in data.test}
    ways = [(example.lead, example.steps) for example in data.test if example.text == min(starts)]
    assert ways == [(1, 1), (2, 1), (2, 2)]
    rows = [example.row for part in ("train", "valid", "test") for example in data.part(part)]
    assert rows == list(range(len(rows)))


# -------------------------------------------------------------------------------------------------- kinds of data


def test_a_region_is_weighed_by_its_own_cells(made: Forecasts) -> None:
    box = {"north": 80, "south": -10, "west": 90, "east": 179}
    task, data = made.prepared(box=box)
    assert task.head.grid == (4, 4)
    rows = np.array(task.latitudes)
    edges = np.deg2rad([*(rows - 11.25), rows[-1] + 11.25])
    expected = np.diff(np.sin(edges))
    assert latitude_weights(task.latitudes, "area") == pytest.approx(expected / expected.mean())
    assert Box(**box).north == 80
    assert batch_of(task, data.train[:1]).inputs["fields"].shape == (1, 2, 4, 4)


def test_the_outermost_cells_reach_the_pole_where_no_row_has_room() -> None:
    """Of whole globes: with and without rows on the poles, and on Gaussian latitudes."""
    for rows in ((np.arange(8) + 0.5) * 22.5 - 90, np.linspace(-90, 90, 9), np.array([-85.76, -80.27, 80.27, 85.76])):
        bounds = np.concatenate([[-90], (rows[:-1] + rows[1:]) / 2, [90]])
        area = np.diff(np.sin(np.deg2rad(bounds)))
        assert latitude_weights(rows, "area") == pytest.approx(area / area.mean())
        assert latitude_weights(rows[::-1], "area") == pytest.approx((area / area.mean())[::-1])
    assert latitude_weights([45.0], "area").tolist() == [1.0]


def test_a_region_of_a_released_model_begins_where_it_is_on_its_globe(made: Forecasts) -> None:
    made.data(waves(30, rows=32, columns=64, latitudes=((np.arange(32) + 0.5) * 5.625 - 90)[::-1]))
    task, _ = made.prepared(
        {"model": "climax_5_625deg"}, box={"north": 60, "south": 0, "west": 45, "east": 129},
    )  # fmt: skip
    top, left = task.corner
    assert (np.arange(32)[top] + 0.5) * 5.625 - 90 == task.latitudes[0]
    assert left * 5.625 == task.longitudes[0]


def test_missing_values_are_an_error_or_left_out_and_listed(made: Forecasts) -> None:
    data = waves()
    data["t"][10, 0, 2, 3] = np.nan
    made.data(data)
    task, data_before = made.prepared()
    with pytest.raises(InputError) as error:
        task.collate(data_before.train[:1], [0], 0)
    assert "2001-01-03T12:00" in str(error.value)
    assert "1 times cannot be used; mend them, or say data.unreadable: skip" in str(error.value)
    task, found = made.prepared({"data.unreadable": "skip"})
    assert [(s.row, s.part) for s in found.skipped] == [(10, "all")]
    assert found.skipped[0].reason == "2001-01-03T12:00: values missing or not finite in temperature_500"
    assert found.notes["times with values that are missing"] == 1
    assert found.notes["initial times of train left out touching unreadable times"] == 2
    assert 10 not in task._opened.training_times[0]
    assert np.isfinite(batch_of(task, found.train).targets.numpy()).all()


def test_gaps_in_time_are_an_error_or_left_out(made: Forecasts) -> None:
    made.data(waves().isel(time=[i for i in range(60) if i != 20]))
    with pytest.raises(InputError, match="1 gaps with 1 missing times, at a step of 6 hours"):
        made.prepared()
    _, found = made.prepared({"data.unreadable": "skip"})
    assert found.notes["times missing in gaps"] == 1
    assert found.notes["initial times of train left out at gaps in time"] == 1


def test_months_have_leads_in_steps(made: Forecasts) -> None:
    made.data(months())
    with pytest.raises(InputError, match="the data has a step of 1 month; give the lead in steps instead"):
        made.prepared(lead_hours=[720])
    task, data = made.prepared(lead_hours=None, lead_steps=[1, 3], climatology="month", predicts="anomaly")
    assert set(batch_of(task, data.train).inputs["hours"].tolist()) <= {24.0 * days for days in range(28, 93)}
    found, _ = scored(task, Zeros(2), data.test)
    assert {"rmse_temperature_500_1steps", "rmse_temperature_500_3steps"} <= set(found)
    made.data(months(12))
    scarce, some = made.prepared(
        {"data.split.fractions": [0.75, 0.0, 0.25]},
        lead_hours=None, lead_steps=[1], climatology="month", predicts="anomaly",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"climatology: no training time for month 10 .*; train on whole years"):
        scored(scarce, Zeros(2), some.test)


def test_hourly_data(made: Forecasts) -> None:
    made.data(waves(72, hours=1))
    task, data = made.prepared(lead_hours=[1, 6])
    assert task.leads == (1, 6)
    assert set(batch_of(task, data.train).inputs["hours"].tolist()) == {1.0, 6.0}


def test_years_divide_the_times(made: Forecasts) -> None:
    made.data(months())
    _, data = made.prepared(
        lead_hours=None, lead_steps=[1], years={"train": [1990, 1992], "test": [1994, 1994]}, predicts="state",
    )  # fmt: skip
    assert {e.text[:4] for e in data.train} == {"1990", "1991", "1992"}
    assert {e.text[:4] for e in data.test} == {"1994"}
    assert data.valid == ()


def test_members_of_an_ensemble_stay_in_their_time(made: Forecasts) -> None:
    two = [waves(seed=seed)[["t", "z"]] for seed in (0, 1)]
    made.data(xr.concat(two, dim="number").assign_coords(number=[0, 1]))
    task, data = made.prepared()
    assert len(task._opened.series) == 2
    assert {e.text for e in data.train}.isdisjoint(e.text for e in data.test)
    fields = batch_of(task, [data.train[0], data.train[len(data.train) // 2]]).inputs["fields"]
    assert not torch.equal(fields[0], fields[1])


def scenarios(made: Forecasts, **changes: Any) -> tuple[Forecast, Data]:
    sources = {"data": {"source": "north_america_scenarios", "split": {"method": "series"}, **changes}}
    return made.prepared(
        sources, variables=["2m_temperature"], lead_hours=None, lead_steps=[5], predicts="anomaly", climatology="all",
        box={"north": 60, "south": 16, "west": 225, "east": 314}, series={"A1B": "train", "E1": "test"},
    )  # fmt: skip


def test_a_common_past_of_scenarios_is_not_trained_on(made: Forecasts) -> None:
    _, kept = scenarios(made)
    task, cut = scenarios(made, leaked="remove")
    assert kept.notes["states of train that are also in test"] == 140
    assert cut.notes["states of train that are also in test, samples of the first removed"] == 140
    assert len(kept.train) == 235
    assert len(cut.train) == 95
    assert min(e.text for e in cut.train) > "1999"
    assert task._opened.training_times[0][0] == 140
    assert task.head.grid == (36, 48)


def test_what_is_left_out_altogether_is_said(made: Forecasts) -> None:
    made.data()
    job = made.job(
        {"data": {"source": "north_america_scenarios", "split": {"method": "series"}, "leaked": "remove"}},
        variables=["2m_temperature"], lead_hours=None, lead_steps=[200], predicts="state",
        series={"A1B": "train", "E1": "test"},
    )  # fmt: skip
    with pytest.raises(InputError, match=r"no sample is left in the train part .*or say data.leaked: report"):
        job.task.prepare(job, fetch)


def test_series_of_one_task_share_grid_and_step(made: Forecasts) -> None:
    paths = [made.data(), made.data(waves(hours=12, rows=4), "other.nc")]
    series = [open_fields(str(path), ["temperature_500"])[0] for path in paths]
    with pytest.raises(InputError) as error:
        _check_alike(series)
    assert "other.nc: is on 4 x 16 points" in str(error.value)
    assert "other.nc: has a step of 12 hours, and waves.nc 6 hours; series of one task must share" in str(error.value)


def test_monthly_heights_are_geopotential_from_year_to_year(made: Forecasts) -> None:
    folder = Path(z_files()[500]).parent
    task, data = made.prepared(
        {"data.path": str(folder / "z*_monthly.nc")},
        variables=["geopotential_500", "geopotential_200"], lead_hours=None, lead_steps=[1],
        predicts="anomaly", climatology="month", forcings=["year_progress_sin"],
        box={"north": 90, "south": -88, "west": 0, "east": 359},
        files={f"z{level}*.nc": {"hgt": {"name": "geopotential", "level": level, "unit": "m"}} for level in (500, 200)},
    )  # fmt: skip
    assert task.head.grid == (72, 144)
    assert len(data.train) == 362  # 43 years of months less a quarter, less the lead at the end
    assert task.learned.climatology.mean[0].mean(axis=(1, 2)) == pytest.approx([53900, 115400], rel=0.01)
    normal = batch_of(task, data.train[:24]).inputs["fields"][:, :2]
    assert normal.std() == pytest.approx(1, abs=0.3)


# ---------------------------------------------------------------------------------------------------------- memory


def test_predicted_memory_is_measured_memory_with_checkpoints(made: Forecasts) -> None:
    made.data(waves(24, rows=32, columns=64))
    task, _ = made.prepared(variables=["t_500", "z_500", "t_850", "z_850"], forcings=["year_progress_sin"])
    card = changed(find_model("climax_small"), depth=3)
    peaks: dict[str, dict[str, int]] = {}
    for name, techniques in (
        ("plain", defaults()), ("block", defaults(checkpointing=BlockCheckpointing())),
    ):  # fmt: skip
        fake = predicted(card, task, techniques, 6, task.length(None)).peaks()
        real = measured(card, task, techniques, 6, task.length(None))
        assert set(real) == set(PHASES)
        for phase in PHASES:
            assert fake[phase] == pytest.approx(real[phase], rel=0.01), (name, phase)
        peaks[name] = real
    assert peaks["block"]["backward"] < 0.75 * peaks["plain"]["backward"]


def test_a_rollout_is_predicted_too(made: Forecasts) -> None:
    made.data(waves(24, rows=16, columns=32))
    one, _ = made.prepared({"data.split.fractions": [1, 0, 0]})
    three, _ = made.prepared({"data.split.fractions": [1, 0, 0]}, rollout=3)
    card = changed(find_model("climax_small"), depth=2)
    chosen = defaults(checkpointing=BlockCheckpointing())
    fake, real = (
        predicted(card, three, chosen, 24, three.length(None)).peaks(),
        measured(card, three, chosen, 24, three.length(None)),
    )
    for phase in PHASES:
        assert fake[phase] == pytest.approx(real[phase], rel=0.01), phase
    assert predicted(card, one, chosen, 24, one.length(None)).peaks()["forward"] < fake["forward"]
