"""Plans that say that they fit, train: a few of the random pairs of ``python -m tests.benchmarks.false_fits``."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks import false_fits
from benchmarks.models import registered, shallow

from zoo.planner import decide, limits_of, survey
from zoo.weights import fetch

PAIRS = 5


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: false_fits.MODELS[name] for name in ("esm2_t6_8m_of_2", "sapiens_vh")}
    monkeypatch.setattr(false_fits, "MODELS", few)
    monkeypatch.setattr(false_fits, "GIVEN", 0.7)  # fewer combinations to try


def test_plans_that_fit_train_within_their_budgets(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    found = list(false_fits.pairs(PAIRS, seed=1, results=results))
    assert [pair.said for pair in found if pair.outcome == "false fit"] == []
    trained = [pair for pair in found if pair.outcome == "trained"]
    assert len(trained) > PAIRS // 2, "budgets are not all too small"
    assert any(pair.budget == pair.needed for pair in trained), "some have no byte to spare"
    assert list(false_fits.pairs(PAIRS, seed=1, results=results)) == found, "what is in the file is not tried again"
    assert f"| **{0}** |" in "\n".join(false_fits.summary(found))


@pytest.mark.usefixtures("traced_once")
def test_a_plan_that_takes_more_than_its_budget_is_a_false_fit(tmp_path: Path) -> None:
    with registered(shallow("esm2_t6_8m", 2)):
        recipe = false_fits.draw_recipe(random.Random(5), tmp_path)
        recipe |= {"techniques": {"precision": "fp32", "adapter": "full", "checkpointing": "none"}}
        job = false_fits.job_of(recipe, tmp_path, false_fits.ENOUGH)
        workload, data = survey(job, fetch, local=True)
        chosen = decide(job, workload, limits_of(job.recipe.budget)).chosen
        one_row = replace(chosen, micro_batch_size=1, accumulation_steps=job.recipe.train.global_batch_size)
        limits = limits_of(job.recipe.budget)
        less = replace(limits, device_bytes=round(0.9 * chosen.peak_bytes))
        outcome, _, said = false_fits.run(job, chosen, data, tmp_path / "a", less)
        assert outcome == "false fit"
        assert "memory ran out at step" in said
        outcome, _, said = false_fits.run(job, one_row, data, tmp_path / "b", replace(limits, device_bytes=1024))
        assert outcome == "false fit"
        assert "a micro-batch cannot be smaller than one row" in said
        exact = replace(limits, device_bytes=chosen.needed_bytes)
        outcome, measured, said = false_fits.run(job, chosen, data, tmp_path / "c", exact)
    assert (outcome, said) == ("trained", "")
    assert measured == pytest.approx(chosen.peak_bytes, rel=0.01)
    assert torch.is_grad_enabled()
