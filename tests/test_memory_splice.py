"""A trace put together from three others is the trace that there would be; what they do not bear out is not made."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from conftest import Recipes
from small_models import changed

from zoo.combinations import Combination, Corners
from zoo.memory.devices import find
from zoo.memory.splice import spliced
from zoo.plans import Limits, Workload
from zoo.resolve import Job
from zoo.techniques import Technique
from zoo.tracer import Tracer, Whole
from zoo.units import GIB

WORK = Workload(40, 64, "64 inputs of 40 tokens")


@pytest.fixture(scope="module", name="job")
def _job(session_recipes: Callable[[str], Recipes]) -> Job:
    return session_recipes("splice").job({"techniques": {}, "train.global_batch_size": 4, "budget": {}})


@pytest.fixture(name="tracer", params=["cpu", "rtx-3060-12gb"])
def _tracer(job: Job, request: Any) -> Tracer:
    return Tracer(job, WORK, Limits(find(request.param), 64 * GIB, None, "a test"))


def _combination(job: Job, **names: str) -> Combination:
    """Named techniques, and the first option of all other keys."""
    picked: list[Technique] = []
    for key, options in job.choices.items():
        picked.append(next(t for t in options if t.name == names.get(key, options[0].name)))
    return tuple(picked)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_equals_a_trace_of_its_own(job: Job, tracer: Tracer, precision: str) -> None:
    def traced(checkpointing: str, optimizer: str) -> Any:
        combination = _combination(job, precision=precision, checkpointing=checkpointing, optimizer=optimizer)
        return combination, tracer.answer(combination)

    base = traced("none", "adamw")[1].family
    for checkpointing in ("block", "selective"):
        combination, whole = traced(checkpointing, "adamw-8bit")
        parts = traced(checkpointing, "adamw")[1].family, traced("none", "adamw-8bit")[1].family
        made = tracer.spliced(combination, base, *parts)
        assert made is not None
        assert made.plans == whole.plans
        assert made.plans != traced("none", "adamw-8bit")[1].plans


def test_of_passes_that_have_ended_it_has_what_there_is(job: Job) -> None:
    tracer = Tracer(replace(job, card=changed(job.card, num_hidden_layers=2)), WORK, Limits(find("cpu"), 1, None, "a"))

    def traced(checkpointing: str, optimizer: str, *, whole: bool = True) -> Any:
        combination = _combination(job, checkpointing=checkpointing, optimizer=optimizer)
        return tracer.answer(Whole(combination) if whole else combination)

    base, steps = traced("none", "adamw").family, traced("none", "adamw-8bit").family
    made = spliced(base, traced("block", "adamw", whole=False).family, steps)
    own = traced("block", "adamw-8bit", whole=False)
    assert made is not None
    assert made.shallow.ended == "forward"
    assert made.estimate(0, 4, 1, tracer.rates) == own.family.estimate(0, 4, 1, tracer.rates)
    assert own.plans[0].ended == "forward"
    for ended in ((own.family, base, steps), (base, base, own.family)):
        assert spliced(*ended) is None, "of these the end is needed"


def test_traces_that_differ_in_more_are_not_put_together(job: Job, tracer: Tracer) -> None:
    """Weights, passes or the step of the third are not those of the base: nothing is known of what was asked."""

    def family(**names: str) -> Any:
        answer: Any = tracer.answer(_combination(job, **names))
        return answer.family

    base, passes, steps = family(), family(checkpointing="block"), family(optimizer="adamw-8bit")
    assert spliced(base, passes, steps) is not None
    assert spliced(base, family(precision="bf16", checkpointing="block"), steps) is None
    assert spliced(base, passes, family(precision="bf16", optimizer="adamw-8bit")) is None
    assert spliced(base, passes, family(checkpointing="block", optimizer="adamw-8bit")) is None
    assert spliced(base, family(adapter="lora", checkpointing="block"), steps) is None


def test_only_what_has_three_corners_waits_for_them(job: Job) -> None:
    names = itertools.product(("none", "block"), ("fp32", "bf16"), ("adamw", "adamw-8bit"))
    asked = [_combination(job, checkpointing=c, precision=p, optimizer=o) for c, p, o in names]
    corners = Corners()
    apart, together = corners.divide(asked)
    assert together == [
        _combination(job, checkpointing="block", precision=precision, optimizer="adamw-8bit")
        for precision in ("fp32", "bf16")
    ]
    assert sorted(map(str, apart + together)) == sorted(map(str, asked))
    for combination in together:
        base, passes, steps = corners.of(combination) or pytest.fail("its corners are not known")
        assert len({*base, *passes}) == len({*base, *steps}) == len(base) + 1
        assert set(passes) | set(steps) == set(combination) | set(base)
    assert all(corners.of(combination) is None for combination in Corners().divide(asked[:3])[0])
