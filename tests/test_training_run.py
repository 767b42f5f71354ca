"""One run from recipe to summary: what it learns, what it leaves behind, and that its numbers are true."""

from __future__ import annotations

import csv
import json
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MASKED, Recipes, peptides
from small_models import SCRATCH

from zoo.recipe import Train
from zoo.training import loop
from zoo.training.files import RunFolder
from zoo.training.loop import Loop
from zoo.training.run import Finished, train
from zoo.training.schedule import learning_rate
from zoo.training.watcher import Watcher

pytestmark = pytest.mark.usefixtures("traced_once")

EVERYTHING = {"data.split.fractions": [1.0, 0.0, 0.0]}
CONSTANT = {"train.schedule": "constant", "train.warmup": 0.0}


def run(recipes: Recipes, name: str, changes: dict[str, Any] | None = None, **how: Any) -> Finished:
    return train(recipes.job(changes), output=recipes.folder / name, **how)


def log(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.log.read_text().splitlines()]


def last_weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = torch.load(folder.checkpoint, weights_only=True)["tensors"]
    return tensors


def saved(folder: RunFolder) -> bytes:
    return (folder.model / "model.safetensors").read_bytes()


# ------------------------------------------------------------------------------------------- learning


def test_a_small_batch_is_learned_by_heart(recipes: Recipes) -> None:
    draw = random.Random(1)
    rows = [{**row, "label": draw.choice(["x", "y"])} for row in peptides(8)]
    changes = {**EVERYTHING, **CONSTANT, "train.max_steps": 60, "train.learning_rate": 2e-3, "train.evaluate_every": 60}
    done = train(recipes.job(changes, path=recipes.csv(rows)), output=recipes.folder / "run")
    losses = [entry["loss"] for entry in log(done.folder) if "loss" in entry]
    assert abs(losses[0] - math.log(2)) < 0.3
    assert max(losses[-5:]) < 0.1


def test_a_seed_gives_the_same_run_to_the_bit_and_another_seed_another(recipes: Recipes) -> None:
    first, again = run(recipes, "first"), run(recipes, "again")
    other = run(recipes, "other", {"train.seed": 4})
    assert saved(first.folder) == saved(again.folder)
    assert first.folder.log.read_text() == again.folder.log.read_text()
    assert first.folder.predictions.read_text() == again.folder.predictions.read_text()
    assert first.summary["metrics"] == again.summary["metrics"]
    assert saved(first.folder) != saved(other.folder)


def test_evaluating_more_often_changes_nothing_in_the_weights(recipes: Recipes) -> None:
    """Dropout is on: an evaluation that drew a random number would change every update after it."""
    often, once = run(recipes, "often", {"train.evaluate_every": 1}), run(recipes, "once", {"train.evaluate_every": 6})
    a, b = last_weights(often.folder), last_weights(once.folder)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [e["loss"] for e in log(often.folder) if "loss" in e] == [e["loss"] for e in log(once.folder) if "loss" in e]
    assert sum("valid" in e for e in log(often.folder)) == 6
    assert sum("valid" in e for e in log(once.folder)) == 1


class Heard(Watcher):
    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.best: list[bool] = []
        self.phases: list[str] = []

    def stopped(self, reason: str) -> None:
        self.reasons.append(reason)

    def evaluated(self, step: int, metrics: dict[str, float], best: bool) -> None:
        self.best.append(best)

    def measured(self, by_phase: dict[str, int]) -> None:
        self.phases += by_phase


def judged(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Validation during training comes out as `values`, one after the other; what is tested at the end is real."""
    told = iter(values)
    monkeypatch.setattr(loop.Loop, "_score", lambda self: {self.task.monitor: next(told)})


def test_memory_beyond_the_budget_that_no_tensor_holds_is_told(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels take some inside themselves, which the guard of the budget cannot see, and the profiler does."""
    original = Loop.run

    def more(self: Loop) -> Any:
        done = original(self)
        done.measured["forward"] += 2**30
        return done

    changes = {"budget.device": "1GiB", "train.max_steps": 2}
    assert not [note for note in run(recipes, "usual", changes).summary["notes"] if note.startswith("memory:")]
    monkeypatch.setattr(Loop, "run", more)
    (note,) = [n for n in run(recipes, "more", changes).summary["notes"] if n.startswith("memory:")]
    assert "MiB beyond the budget: what kernels took inside" in note


def test_the_best_model_is_the_one_that_is_saved_and_tested(recipes: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {**CONSTANT, "train.evaluate_every": 1}
    two = run(recipes, "two", {**changes, "train.max_steps": 2})
    judged(monkeypatch, [0.1, 0.9, 0.3, 0.9])
    watcher = Heard()
    four = run(recipes, "four", {**changes, "train.max_steps": 4}, watcher=watcher)
    assert watcher.best == [True, True, False, False]  # as good as the best is no better
    assert (four.summary["best_step"], four.summary["steps"]) == (2, 4)
    # `two` ended with the weights that `four` had after its second update
    weights = last_weights(two.folder)
    best = torch.load(four.folder.best, weights_only=True)
    assert all(torch.equal(weights[name], best[name]) for name in weights)
    from safetensors.torch import load_file

    stored = load_file(four.folder.model / "model.safetensors")
    assert all(torch.equal(stored[name], best[name]) for name in stored)
    if two.summary["best_step"] == 2:
        assert two.folder.predictions.read_text() == four.folder.predictions.read_text()


def test_a_lower_value_is_better_where_the_task_says_so(recipes: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(monkeypatch, [2.0, 1.0, 1.5])
    changes = {"task": "sequence_regression", "data.columns.target": "charge", "train.evaluate_every": 1}
    assert run(recipes, "run", {**changes, "train.max_steps": 3}).summary["best_step"] == 2


def test_training_stops_when_nothing_improves_for_long_enough(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, [0.5, 0.4, 0.6, 0.6, 0.1, 0.7])
    watcher = Heard()
    changes = {"train.max_steps": 40, "train.evaluate_every": 1, "train.early_stopping": 2}
    done = run(recipes, "run", changes, watcher=watcher)
    assert (done.summary["steps"], done.summary["best_step"]) == (5, 3)
    assert watcher.reasons == ["no improvement in 2 evaluations"]


def test_a_first_evaluation_that_says_nothing_still_leaves_a_model(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, [math.nan, 0.1, math.nan])
    done = run(recipes, "run", {"train.max_steps": 3, "train.evaluate_every": 1})
    assert done.summary["best_step"] == 2


def test_without_a_validation_part_the_last_model_is_kept(recipes: Recipes) -> None:
    done = run(recipes, "run", {"data.split.fractions": [0.8, 0.0, 0.2]})
    assert done.summary["best_step"] == done.summary["steps"] == 6
    assert done.summary["metrics"].keys() == {"test"}


def test_epochs_are_as_many_updates_as_the_rows_need(recipes: Recipes) -> None:
    done = run(recipes, "run", {"train.max_steps": None, "train.epochs": 2})
    assert done.summary["rows"]["train"] == 17
    assert done.summary["steps"] == 2 * 3
    assert [e["step"] for e in log(done.folder) if "valid" in e] == [3, 6]  # once per epoch
    assert [e["rows"] for e in log(done.folder) if "rows" in e][:3].count(8) == 2


# ------------------------------------------------------------------------------------------- what a run leaves


def test_the_summary_has_what_others_rely_on(regression_run: Path) -> None:
    summary = json.loads((regression_run / "summary.json").read_text())
    for kind in ("predicted_bytes", "measured_bytes"):
        assert summary["memory"][kind].keys() == {"peak", "forward", "backward", "optimizer"}
        phases = [summary["memory"][kind][phase] for phase in ("forward", "backward", "optimizer")]
        assert summary["memory"][kind]["peak"] == max(phases) > 0
    assert summary["metrics"].keys() == {"valid", "test"}
    assert summary["metrics"]["test"].keys() >= {"rmse", "mae", "r2"}
    assert summary["steps"] == 6
    assert summary["seconds"] > 0
    assert summary["techniques"].keys() >= {"precision", "adapter", "checkpointing", "optimizer"}
    assert summary["split"] == "random (seed 1)"
    assert summary["rows"] == {"train": 17, "valid": 4, "test": 3}


@pytest.mark.parametrize("name", ["regression_run", "lora_run"])
def test_measured_memory_is_what_was_predicted(name: str, request: pytest.FixtureRequest) -> None:
    summary = json.loads((request.getfixturevalue(name) / "summary.json").read_text())
    predicted, measured = summary["memory"]["predicted_bytes"], summary["memory"]["measured_bytes"]
    scratch = SCRATCH if summary["techniques"]["precision"] == "bf16" else 0
    for phase, amount in measured.items():
        assert abs(amount - predicted[phase]) <= max(0.01 * amount, scratch), (
            f"{phase}: {predicted[phase]} for {amount}"
        )


def test_a_run_folder_tells_everything_about_the_run(regression_run: Path) -> None:
    folder = RunFolder(regression_run)
    recipe = regression_run.parent / "tiny.yaml"
    assert folder.recipe.read_text() == recipe.read_text()
    plan = json.loads(folder.plan.read_text())
    assert plan["fits"] is True
    summary = json.loads(folder.summary.read_text())
    assert plan["chosen"]["techniques"] == summary["techniques"]
    assert json.loads(folder.environment.read_text())["versions"].keys() >= {"torch", "science-zoo", "transformers"}
    assert [e["step"] for e in log(folder) if "loss" in e] == [1, 2, 3, 4, 5, 6]
    assert all(e["split"] == "random (seed 1)" for e in log(folder) if "valid" in e)
    assert list(folder.tensorboard.glob("events.out.tfevents.*"))
    with folder.predictions.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert rows[0].keys() == {"row", "input", "target", "prediction"}
    data = peptides(24)
    assert all(data[int(r["row"]) - 1]["sequence"] == r["input"] for r in rows)
    errors = [(float(r["prediction"]) - float(r["target"])) ** 2 for r in rows]
    assert math.sqrt(sum(errors) / 3) == pytest.approx(summary["metrics"]["test"]["rmse"])
    assert not folder.skipped.exists()
    assert not [path for path in regression_run.rglob("*") if path.name.startswith(".")]


def test_rows_that_are_not_used_are_listed_in_a_file_and_counted_in_the_summary(recipes: Recipes) -> None:
    rows = peptides(24)
    bad = [{"sequence": "A1", "label": "basic", "charge": 0}, {**rows[0]}]
    changes = {"data.unreadable": "skip", "data.duplicates": "remove", "train.max_steps": 1}
    job = recipes.job(changes, path=recipes.csv([*rows, *bad]))
    done = train(job, output=recipes.folder / "run")
    with done.folder.skipped.open() as file:
        assert list(csv.DictReader(file)) == [
            {"row": "25", "part": "all", "reason": "'1' at position 2 is not a residue (residues: letters A to Z)"},
            {"row": "26", "part": "all", "reason": "repeats row 1"},
        ]
    assert done.summary["data_notes"] == {"rows that cannot be read": 1, "repeated rows, removed": 1}
    assert sum(done.summary["rows"].values()) + 2 == 26


def test_windows_count_as_the_one_row_that_they_are(recipes: Recipes) -> None:
    done = run(recipes, "run", {"data.max_length": 8, "data.too_long": "window", "train.max_steps": 1})
    assert sum(done.summary["rows"].values()) == 24
    assert done.summary["data_notes"]["inputs beyond 8 tokens, cut into windows"] > 10
    with done.folder.predictions.open() as file:
        assert len(list(csv.DictReader(file))) == done.summary["rows"]["test"]


def test_baselines_stand_beside_the_run_also_when_it_is_resumed(recipes: Recipes) -> None:
    """The second call finds both runs finished: the main one and that from random weights inside it."""
    changes = {**MASKED, "train.max_steps": 2}
    first = run(recipes, "run", changes, with_baselines=True).summary
    assert first["baselines"].keys() == {"unadapted", "random_initialisation"}
    assert first["baselines"]["unadapted"].keys() == first["metrics"]["test"].keys()
    again = run(recipes, "run", changes, with_baselines=True, resume=True).summary
    assert again == first


@pytest.mark.parametrize("classes", [None, ["long", "middling", "short"]])
def test_floors_know_classes_by_any_name(recipes: Recipes, classes: list[str] | None) -> None:
    """Also one that was given, and that the data does not have."""
    changes: dict[str, Any] = {"train.max_steps": 1}
    rows = [{**row, "label": "short" if len(row["sequence"]) < 12 else "long"} for row in peptides(24)]
    if classes is not None:
        changes["task"] = {"sequence_classification": {"classes": classes}}
    done = train(recipes.job(changes, path=recipes.csv(rows)), output=recipes.folder / "run", with_baselines=True)
    baselines = done.summary["baselines"]
    assert baselines.keys() == {"constant", "composition", "random_initialisation"}
    assert baselines["composition"]["accuracy"] > 0.5
    assert {frozenset(scores) for scores in baselines.values()} == {frozenset(done.summary["metrics"]["test"])}


def test_training_leaves_the_settings_of_torch_as_they_were(recipes: Recipes) -> None:
    def settings() -> tuple[object, ...]:
        filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        return torch.are_deterministic_algorithms_enabled(), filled, os.environ.get("CUBLAS_WORKSPACE_CONFIG")

    before = settings()
    seen: list[tuple[object, ...]] = []

    class Looks(Watcher):
        def stepped(self, step: int, loss: float, rows: int) -> None:
            seen.append(settings())

    run(recipes, "run", {"train.max_steps": 1}, watcher=Looks())
    assert seen == [(True, False, ":4096:8")]
    assert settings() == before == (False, True, None)


# ------------------------------------------------------------------------------------------- learning rate


def rates(**settings: Any) -> list[float]:
    spec = Train(max_steps=10, learning_rate=1.0, **settings)
    return [learning_rate(spec, step, 10) for step in range(10)]


def test_learning_rates_are_their_closed_forms() -> None:
    assert rates(schedule="constant") == [1.0] * 10
    assert rates(schedule="linear") == pytest.approx([1 - step / 10 for step in range(10)])
    cosine = [0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    assert rates(schedule="cosine") == pytest.approx(cosine)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_rises_evenly_during_warm_up_and_starts_its_schedule_at_the_top(schedule: str) -> None:
    found = rates(schedule=schedule, warmup=0.4)
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[4] == pytest.approx(1.0)
    assert all(0 < rate <= 1 for rate in found)
