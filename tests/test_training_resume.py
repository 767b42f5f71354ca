"""Killed at any moment and resumed, a run ends to the bit as one that was never killed."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import MASKED, Recipes
from processes import Moment, zoo

from zoo import planner as zoo_planner
from zoo.errors import InputError
from zoo.resolve import load_job
from zoo.training.run import train

pytestmark = pytest.mark.usefixtures("traced_once")

LORA = {"adapter": {"lora": {"rank": 4, "dropout": 0.1}}, "checkpointing": "none"}


def result(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves and that must not depend on how often it was killed."""
    summary = json.loads((folder / "summary.json").read_text())
    summary.pop("seconds")
    files = {path.name: path.read_bytes() for path in sorted((folder / "model").iterdir())}
    assert any(name.endswith(".safetensors") for name in files)
    texts = {name: (folder / name).read_text() for name in ("metrics.jsonl", "predictions.csv", "resolved.json")}
    return {"summary": summary, **files, **texts}


def killed_and_resumed(recipes: Recipes, recipe: Path, moments: list[Moment]) -> None:
    said = recipes.folder / "said.txt"
    whole, killed = recipes.folder / "whole", recipes.folder / "killed"
    assert zoo(["train", str(recipe), "--output", str(whole), "--json"], said) == 0, said.read_text()
    for number, moment in enumerate(moments):
        resume = ["--resume"] if number else []
        code = zoo(["train", str(recipe), "--output", str(killed), "--json", *resume], said, moment)
        if moment[0] != "interrupt":
            assert code == -signal.SIGKILL, (moment, said.read_text())
            continue
        assert code == 130, said.read_text()
        assert f"stopped after step {moment[2]} of " in said.read_text()
        assert f"the state is saved: go on with --resume --output {killed}" in said.read_text()
    assert zoo(["train", str(recipe), "--output", str(killed), "--json", "--resume"], said) == 0, said.read_text()
    expected, found = result(whole), result(killed)
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        assert found[name] == content, name
    assert not list(killed.rglob("*.partial"))


def test_a_full_fine_tuning_in_fp32_that_stops_early(recipes: Recipes) -> None:
    """Evaluated every 2 updates, it gives up at the third evaluation: killed there too, it must not go on training."""
    changes = {"train.max_steps": 40, "train.evaluate_every": 2, "train.early_stopping": 2, "train.max_grad_norm": 1.0}
    moments: list[Moment] = [
        ("step", "", 1),  # only the checkpoint of step 0 is there
        ("step", "", 2),  # the log knows an update that no checkpoint knows
        ("half", "last.pt", 2),  # the first evaluation's checkpoint is half written
        ("replace", "last.pt", 3),  # the best model is newer than the checkpoint
        ("step", "", 6),
        ("call", "stopped", 1),
        ("replace", "model", 1),
        ("replace", "summary.json", 1),
    ]
    killed_and_resumed(recipes, recipes.write(changes), moments)
    summary = json.loads((recipes.folder / "killed/summary.json").read_text())
    assert summary["steps"] < 40


def test_a_lora_adaptation_in_bf16_with_master_weights(recipes: Recipes) -> None:
    changes = {
        **MASKED, "techniques": {"precision": "bf16", **LORA}, "train.max_steps": 12, "train.evaluate_every": 4,
        "train.schedule": "cosine",
    }  # fmt: skip
    moments: list[Moment] = [("half", "best.pt", 1), ("interrupt", "", 6), ("replaced", "last.pt", 1)]
    killed_and_resumed(recipes, recipes.write(changes), moments)


def test_an_override_that_changes_nothing_resumes_a_run_without_a_budget(recipes: Recipes, monkeypatch: Any) -> None:
    """Nor does it matter to what is reported that less memory is free by then."""
    path, run = recipes.csv(), recipes.folder / "run"
    recipe = recipes.write({"train.max_steps": 1, "budget": None}, path=path)
    train(load_job(recipe), output=run)
    before = result(run)
    (run / "summary.json").unlink()
    limits = zoo_planner.limits_of
    monkeypatch.setattr(
        "zoo.training.run.limits_of",
        lambda budget: replace(limits(budget), device_bytes=limits(budget).device_bytes - 4096),
    )
    train(load_job(recipe, ["train.seed=3"]), output=run, resume=True)
    again = result(run)
    assert json.loads(again.pop("resolved.json")) == {
        **json.loads(before.pop("resolved.json")), "overrides": ["train.seed=3"],
    }  # fmt: skip
    assert again == before


def test_another_recipe_does_not_resume_a_run(recipes: Recipes) -> None:
    path, run = recipes.csv(), recipes.folder / "run"
    train(recipes.job({"train.max_steps": 1}, path=path), output=run)
    before = result(run)
    for key, value in {"train.learning_rate": 0.5, "data.split.seed": 9, "train.max_steps": 2}.items():
        with pytest.raises(InputError) as error:
            train(recipes.job({"train.max_steps": 1, key: value}, path=path), output=run, resume=True)
        assert str(error.value) == (
            f"{run}: the recipe differs from the one that this run was started with in {key}; "
            "resume with the same recipe and overrides, or start in another --output"
        )
    assert result(run) == before
