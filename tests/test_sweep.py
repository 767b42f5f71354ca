"""The largest form of a recipe that a device holds, and the recipe on every device."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import Recipes

from zoo.planner import decide, limits_of
from zoo.plans import Workload
from zoo.resolve import Job, load_job
from zoo.sweep import CLOSE, largest, on_every_device
from zoo.training.run import workload_of


@pytest.fixture
def job(recipes: Recipes) -> Job:
    named = {"adapter": "full", "precision": "fp32", "checkpointing": "none", "optimizer": "adamw"}
    return load_job(recipes.write({"techniques": named}))


def test_the_largest_micro_batch_and_the_longest_input_fit_and_a_little_more_does_not(job: Job) -> None:
    workload = workload_of(job)
    limits = limits_of(job.recipe.budget.model_copy(update={"device": 64 * 2**20}))
    found = largest(job, workload, limits)
    assert found.widest is not None
    assert found.widest.chosen.needed_bytes <= limits.device_bytes
    assert found.widest.chosen.micro_batch_size == found.rows
    more = found.rows + max(1, found.rows // CLOSE) + 1
    train = job.recipe.train.model_copy(update={"global_batch_size": more})
    wider = replace(job, recipe=job.recipe.model_copy(update={"train": train}))
    beyond = decide(wider, Workload(workload.tokens, more, "a test"), limits)
    assert not beyond.fits or beyond.chosen.accumulation_steps > 1
    assert found.tokens is not None
    assert found.longest is not None
    assert found.longest.chosen.tokens == found.tokens <= job.card.max_length
    assert found.longest.chosen.needed_bytes <= limits.device_bytes


def test_the_largest_micro_batch_is_of_the_smallest_plan_and_not_of_the_fastest(recipes: Recipes) -> None:
    """Where recomputing is open, the fastest plan of a batch divides it; undivided it fits as well."""
    rows = {}
    for checkpointing in ("none", "block", {"none": {}, "block": {}}):
        named = {"adapter": "full", "precision": "fp32", "optimizer": "adamw", "checkpointing": checkpointing}
        job = load_job(recipes.write({"techniques": named}))
        limits = limits_of(job.recipe.budget.model_copy(update={"device": 16 * 2**20}))
        rows[str(checkpointing)] = largest(job, workload_of(job), limits).rows
    assert rows["none"] < rows["block"] == max(rows.values()) == list(rows.values())[-1]


def test_where_nothing_fits_the_largest_is_none(job: Job) -> None:
    limits = replace(limits_of(job.recipe.budget), device_bytes=2**20)
    found = largest(job, workload_of(job), limits)
    assert (found.rows, found.tokens, found.widest, found.longest) == (0, 0, None, None)


def test_every_device_gets_a_decision_of_its_own(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import sweep
    from zoo.memory.devices import find

    known = {name: find(name) for name in ("t4", "rtx-3060-12gb", "a100-80gb")}
    monkeypatch.setattr(sweep, "devices", lambda: known)
    decisions = list(on_every_device(job, workload_of(job)))
    assert [decision.limits.device.name for decision in decisions] == ["rtx-3060-12gb", "t4", "a100-80gb"]
    assert all(decision.fits for decision in decisions)
    seconds = [decision.chosen.estimate.seconds for decision in decisions]
    assert len(set(seconds)) > 1
    assert min(seconds) == seconds[-1], "the largest is the fastest, too, if only by a little for so small a model"
