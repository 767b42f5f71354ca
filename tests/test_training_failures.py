"""What stops a run: it says where and why, and what was good stays good."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import shutil
import signal
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Recipes, peptides

from zoo.errors import DoesNotFit, InputError, TrainingError, WeightsError, ZooError
from zoo.planner import limits_of
from zoo.plans import Limits
from zoo.recipe import Budget
from zoo.tasks.classification import SequenceClassification
from zoo.training import files, run
from zoo.training.files import RunFolder, write_atomically, write_json
from zoo.training.finished import Run
from zoo.training.loop import _ctrl_c
from zoo.training.run import train

pytestmark = pytest.mark.usefixtures("traced_once")


def fails(kind: type[ZooError], recipes: Recipes, changes: dict[str, Any] | None = None, **how: Any) -> str:
    how.setdefault("output", recipes.folder / "run")
    with pytest.raises(kind) as error:
        train(recipes.job(changes), **how)
    return str(error.value)


# ------------------------------------------------------------------------------------------- numbers


def test_a_loss_that_is_not_finite_stops_with_where_and_the_last_good_checkpoint(recipes: Recipes) -> None:
    changes = {"train.learning_rate": 1e38, "train.warmup": 0.0, "train.schedule": "constant"}
    said = fails(TrainingError, recipes, changes)
    folder = RunFolder(recipes.folder / "run")
    assert said.startswith("the loss is nan at step 2 (learning rate 1e+38, data rows [")
    assert said.endswith(
        f"; the last good checkpoint is {folder.checkpoint} (step 0); "
        "try a lower learning rate, a longer warm-up, max_grad_norm or precision: fp32"
    )
    assert TrainingError.exit_code == 1
    kept = torch.load(folder.checkpoint, weights_only=True)
    assert kept["progress"]["step"] == 0
    assert all(bool(tensor.isfinite().all()) for tensor in kept["tensors"].values())
    assert not folder.model.exists()
    # and the process is as good as before: another run starts and ends
    assert train(recipes.job({"train.max_steps": 1}), output=recipes.folder / "after").summary["steps"] == 1


def bad_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The square root of zero: its value is fine, its gradient is not."""
    plain = SequenceClassification.loss

    def loss(self: Any, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        one = next(p for p in model.parameters() if p.requires_grad)
        return plain(self, model, batch) + torch.sqrt((one * 0).sum())

    monkeypatch.setattr(SequenceClassification, "loss", loss)


def test_a_gradient_that_is_not_finite_stops_where_it_is_looked_at(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_gradient(monkeypatch)
    said = fails(TrainingError, recipes, {"train.max_grad_norm": 1.0})
    assert said.startswith("the gradient norm is nan at step 1 (learning rate ")


def test_weights_that_are_not_finite_are_never_saved(recipes: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_gradient(monkeypatch)
    said = fails(TrainingError, recipes, {"train.evaluate_every": 1})
    folder = RunFolder(recipes.folder / "run")
    assert said.startswith("weights are not finite after step 1: ")
    assert f"; the last good checkpoint is {folder.checkpoint} (step 0); " in said
    assert torch.load(folder.checkpoint, weights_only=True)["progress"]["step"] == 0
    assert not folder.best.exists()


# ------------------------------------------------------------------------------------------- folders and disks


def test_a_folder_that_cannot_be_written_is_an_error_before_training(recipes: Recipes) -> None:
    said = fails(TrainingError, recipes, output=Path("/dev/null/run"))
    assert said == "/dev/null/run: cannot be written: Not a directory; choose another --output"


def test_a_run_that_was_killed_before_it_left_anything_is_started_by_resuming_it(recipes: Recipes) -> None:
    job, folder = recipes.job({"train.max_steps": 1}), recipes.folder / "run"
    folder.mkdir()
    done = train(job, output=folder, resume=True)
    assert f"{folder}: there was no run to go on with, so it was started" in done.summary["notes"]
    assert train(job, output=folder, resume=True).summary["metrics"] == done.summary["metrics"]


def test_a_run_is_not_overwritten(recipes: Recipes) -> None:
    job, folder = recipes.job({"train.max_steps": 1}), recipes.folder / "run"
    train(job, output=folder)
    before = (folder / "summary.json").read_bytes()
    with pytest.raises(InputError) as error:
        train(job, output=folder)
    assert str(error.value) == f"{folder}: holds a run already; go on with --resume, or choose another --output"
    assert (folder / "summary.json").read_bytes() == before
    assert InputError.exit_code == 2


def test_a_disk_without_room_is_an_error_before_training(recipes: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    folder = recipes.folder / "run"
    said = fails(TrainingError, recipes)
    assert said.startswith(f"{folder}: the disk has 977 KiB free, checkpoints and the model need ")
    assert said.endswith("; make room or choose another --output")
    assert not folder.exists()
    monkeypatch.undo()
    assert train(recipes.job({"train.max_steps": 1}), output=folder).summary["steps"] == 1


@contextlib.contextmanager
def files_of_at_most(limit: int) -> Iterator[None]:
    """The operating system refuses to let a file grow beyond `limit` bytes, in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def nothing_half_written(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if "partial" in path.name]


def test_a_disk_that_fills_up_during_training_leaves_what_was_there(recipes: Recipes) -> None:
    """The checkpoint grows with the optimizer's states: the first fits, the second does not. With room, it goes on."""
    job, folder = recipes.job({"train.evaluate_every": 2}), RunFolder(recipes.folder / "run")
    with files_of_at_most(4_000_000), pytest.raises(TrainingError) as error:
        train(job, output=folder.path)
    assert str(error.value).startswith(f"{folder.checkpoint} cannot be written: is the disk full? ")
    assert str(error.value).endswith("; what was there before is untouched")
    assert torch.load(folder.checkpoint, weights_only=True)["progress"]["step"] == 0
    assert nothing_half_written(folder.path)
    resumed = train(job, output=folder.path, resume=True)
    whole = train(recipes.job({"train.evaluate_every": 2}), output=recipes.folder / "whole")
    assert resumed.summary["metrics"] == whole.summary["metrics"]
    assert folder.log.read_text() == whole.folder.log.read_text()


def test_a_model_that_cannot_be_written_leaves_no_half_model(recipes: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run.save_model

    def save(setup: Any, folder: Path, checkpoint: str) -> None:
        with files_of_at_most(10_000):
            plain(setup, folder, checkpoint)

    monkeypatch.setattr(run, "save_model", save)
    said = fails(TrainingError, recipes, {"train.max_steps": 1})
    folder = recipes.folder / "run"
    assert said.startswith(f"{folder / 'model'} cannot be written: ")
    assert not (folder / "model").exists()
    assert nothing_half_written(folder)


def test_a_log_that_cannot_be_written_is_an_error(recipes: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(recipes.folder / "run")
    plain = run.Loop.run

    def replaced(self: Any) -> Any:  # by a folder, between the start and the first update
        monkeypatch.setattr(self.watcher, "started", lambda *_: folder.log.mkdir())
        return plain(self)

    monkeypatch.setattr(run.Loop, "run", replaced)
    said = fails(TrainingError, recipes)
    assert said == f"{folder.log} cannot be written: Is a directory; go on with --resume once that is mended"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.json"
    write_json(path, {"old": True})
    with files_of_at_most(100), pytest.raises(TrainingError) as error:
        write_json(path, {"new": "x" * 1000})
    assert str(error.value) == (
        f"{path} cannot be written: [Errno 27] File too large; what was there before is untouched"
    )
    assert json.loads(path.read_text()) == {"old": True}
    assert list(path.parent.iterdir()) == [path]

    def fill(partial: Path) -> None:
        raise RuntimeError("disk is full")  # as torch.save says it

    with pytest.raises(TrainingError, match="disk is full"):
        write_atomically(path, fill)


# ------------------------------------------------------------------------------------------- budgets, data, splits


def test_what_does_not_fit_is_refused_before_anything_is_written(recipes: Recipes) -> None:
    said = fails(DoesNotFit, recipes, {"budget.device": "1MiB"})
    assert said.startswith("nothing fits 1.00 MiB (1.00 MiB as the budget says); the smallest budget that would do is ")
    assert "; it would use " in said
    assert re.search(r"it would use .*precision fp32, .*adapter full, .*, micro-batch 1 x 8, [\d.]+ MiB\Z", said)
    assert not (recipes.folder / "run").exists()
    assert DoesNotFit.exit_code == 1


def machine(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """A machine without a budget in the recipe, with `free` bytes."""
    device = limits_of(Budget(device=free)).device
    monkeypatch.setattr(run, "limits_of", lambda budget: Limits(device, free, None, "this machine"))


def test_a_resumed_run_keeps_its_plan_whatever_memory_is_free_now(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"budget": None, "techniques": {"adapter": "full", "precision": "fp32"}, "train.max_steps": 3}
    folder = recipes.folder / "run"
    machine(monkeypatch, 11_500_000)
    tight = train(recipes.job(changes), output=folder).summary
    machine(monkeypatch, 10**9)
    free = train(recipes.job(changes), output=recipes.folder / "free").summary
    chosen = ("techniques", "micro_batch_size", "accumulation_steps")
    assert [tight[key] for key in chosen] != [free[key] for key in chosen]
    resumed = train(recipes.job(changes), output=folder, resume=True).summary
    assert [resumed[key] for key in chosen] == [tight[key] for key in chosen]
    assert resumed["memory"]["predicted_bytes"] == tight["memory"]["predicted_bytes"]
    assert resumed["metrics"] == tight["metrics"]
    machine(monkeypatch, 5_000_000)
    said = fails(DoesNotFit, recipes, changes, resume=True)
    assert said.startswith(f"{folder}: the plan that this run was started with (")
    assert said.endswith(" of 4.77 MiB")


def test_a_plan_that_is_no_longer_possible_is_not_resumed(recipes: Recipes) -> None:
    folder = RunFolder(recipes.folder / "run")
    train(recipes.job({"train.max_steps": 1}), output=folder.path)
    plan = json.loads(folder.plan.read_text())
    plan["chosen"]["techniques"]["optimizer"] = "another"
    write_json(folder.plan, plan)
    said = fails(InputError, recipes, {"train.max_steps": 1}, resume=True)
    assert said == (
        f"{folder.plan}: the plan that this run was started with is not one that its recipe allows now; "
        "start in another --output"
    )


def test_a_damaged_checkpoint_is_named_and_resuming_without_it_starts_anew(recipes: Recipes) -> None:
    folder, path = recipes.folder / "run", recipes.csv()
    summary = train(recipes.job({"train.max_steps": 1}, path=path), output=folder).summary
    for name in ("last.pt", "best.pt"):
        damaged = folder / "checkpoint" / name
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(TrainingError) as error:
            train(recipes.job({"train.max_steps": 1}, path=path), output=folder, resume=True)
        assert str(error.value).startswith(f"{damaged}: is damaged or missing (PytorchStreamReader failed")
        assert str(error.value).endswith(
            f"delete the folder {damaged.parent} and resume, which trains from the first step again"
        )
        damaged.write_bytes(whole)
    shutil.rmtree(folder / "checkpoint")
    again = train(recipes.job({"train.max_steps": 1}, path=path), output=folder, resume=True).summary
    assert again["metrics"] == summary["metrics"]


def test_damaged_descriptions_of_a_run_are_named(recipes: Recipes) -> None:
    folder, path = recipes.folder / "run", recipes.csv()
    train(recipes.job({"train.max_steps": 1}, path=path), output=folder)
    advice = "put it back, or train again in another --output"
    for name in ("resolved.json", "plan.json"):
        file = folder / name
        whole = file.read_text()
        for damaged, reason in (("{", "Expecting"), ("[]", "it lacks ")):
            file.write_text(damaged)
            for use in (
                lambda: Run.open(folder),
                lambda: train(recipes.job({"train.max_steps": 1}, path=path), output=folder, resume=True),
            ):
                with pytest.raises(InputError) as error:
                    use()
                assert str(error.value).startswith(f"{file}: is damaged ({reason}")
                assert str(error.value).endswith(advice)
        file.write_text(whole)
    (folder / "resolved.json").write_text('{"recipe": {}, "overrides": [], "task": {}}')
    with pytest.raises(InputError, match=r"resolved\.json: holds no recipe of this version of the zoo: "):
        Run.open(folder)
    (folder / "summary.json").unlink()
    with pytest.raises(InputError, match=r"this run did not finish; finish it with zoo train --resume --output "):
        Run.open(folder)


def test_a_task_that_learns_something_else_does_not_resume_a_run(recipes: Recipes) -> None:
    folder, path = recipes.folder / "run", recipes.csv()
    train(recipes.job({"train.max_steps": 1}, path=path), output=folder)
    resolved = json.loads((folder / "resolved.json").read_text())
    (folder / "resolved.json").write_text(json.dumps({**resolved, "task": {"classes": ["acidic", "neutral"]}}))
    with pytest.raises(InputError) as error:
        train(recipes.job({"train.max_steps": 1}, path=path), output=folder, resume=True)
    assert str(error.value) == (
        f"{folder}: sequence_classification takes something else from {path} than when this run was started (classes); "
        "start in another --output"
    )


def test_a_start_that_fails_leaves_no_folder_behind(recipes: Recipes) -> None:
    """But one that was there before stays."""
    job = recipes.job({"data.columns.target": "sequence"})
    with pytest.raises(InputError, match="are not among the classes"):
        train(job, output=recipes.folder / "runs" / "a" / "b")
    assert not (recipes.folder / "runs").exists()
    (recipes.folder / "mine").mkdir()
    with pytest.raises(InputError, match="are not among the classes"):
        train(job, output=recipes.folder / "mine")
    assert (recipes.folder / "mine").exists()


def test_other_data_does_not_resume_a_run(recipes: Recipes) -> None:
    folder, path = recipes.folder / "run", recipes.csv()
    train(recipes.job({"train.max_steps": 1}, path=path), output=folder)
    rows = peptides(24)
    recipes.csv([*rows[1:], rows[0]])
    with pytest.raises(InputError) as error:
        train(recipes.job({"train.max_steps": 1}, path=path), output=folder, resume=True)
    assert str(error.value) == (
        f"{folder}: the data is not what this run was started with ({path} has changed); "
        "put it back, or start in another --output"
    )


def test_a_checkpoint_of_another_model_is_not_restored(recipes: Recipes) -> None:
    folder = RunFolder(recipes.folder / "run")
    train(recipes.job({"train.max_steps": 3}), output=folder.path)
    content = torch.load(folder.checkpoint, weights_only=True)
    content["tensors"]["another.weight"] = content["tensors"].pop("classifier.dense.weight")
    torch.save(content, folder.checkpoint)
    said = fails(WeightsError, recipes, {"train.max_steps": 3}, resume=True)
    assert said == (
        f"{folder.checkpoint}: is of another model or adapter; another.weight, classifier.dense.weight "
        "are in only one of them"
    )


def test_early_stopping_needs_something_to_look_at(recipes: Recipes) -> None:
    said = fails(InputError, recipes, {"train.early_stopping": 3, "data.split.fractions": [0.8, 0.0, 0.2]})
    assert said == (
        "train.early_stopping: 3 needs a validation part to look at, and the split random (seed 1) has none; "
        "give data.split.fractions a second number above 0"
    )


# ------------------------------------------------------------------------------------------- Ctrl-C


def test_the_first_ctrl_c_is_remembered_and_the_second_interrupts_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with _ctrl_c() as interrupted:
        assert not interrupted
        signal.raise_signal(signal.SIGINT)
        assert interrupted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    seen: list[bool] = []

    def work() -> None:
        with _ctrl_c() as interrupted:
            seen.append(bool(interrupted))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
