"""A trace ends where what there is of it is too much already: nothing else about the answer may change by that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from conftest import Recipes
from small_models import NAMES, changed, small, task_of

from zoo import search
from zoo.combinations import rungs
from zoo.memory import trace as tracing
from zoo.memory.allocator import replay
from zoo.memory.devices import find
from zoo.memory.ledger import OUTSIDE, Record
from zoo.planner import decide
from zoo.plans import Decision, Limits, Workload
from zoo.resolve import Job
from zoo.step import Setup, build
from zoo.techniques import registry
from zoo.tracer import Tracer
from zoo.units import format_bytes

WORK = Workload(400, 64, "64 inputs of 400 tokens")


@pytest.fixture(scope="module", name="job")
def _job(session_recipes: Callable[[str], Recipes]) -> Job:
    """A model that is traced as it is, for it has no more blocks than the deeper one of two shallow models."""
    given = {"precision": "fp32", "quantization": "none", "offload": "none"}
    job = session_recipes("ends").job({"techniques": given, "train.global_batch_size": 4, "budget": {}})
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    return replace(job, card=changed(job.card, num_hidden_layers=2, **wide))


@pytest.fixture(name="to_the_end")
def _to_the_end() -> Iterator[None]:
    """Traces that do not end early."""
    original = Tracer._family
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracer, "_family", lambda self, techniques, whole, most: original(self, techniques, True, None))
        yield


def _decide(job: Job, device: int, gpu: str | None, *, exhaustive: bool = False) -> Decision:
    return decide(job, WORK, Limits(find(gpu or "cpu"), device, None, "a test"), exhaustive=exhaustive)


@pytest.fixture(scope="module", name="everything", params=[None, "rtx-3060-12gb"])
def _everything(job: Job, request: Any) -> tuple[str | None, Decision]:
    return request.param, _decide(job, 2**40, request.param, exhaustive=True)


def test_the_decision_is_that_of_whole_traces(
    job: Job, everything: tuple[str | None, Decision], request: pytest.FixtureRequest
) -> None:
    gpu, known = everything
    needs = sorted(p.needed_bytes for p in known.considered)
    full = min(p.needed_bytes for p in known.considered if p.techniques in rungs(job)[0])
    budgets = [needs[0] // 2, needs[len(needs) // 8], full + 1]
    early = [_decide(job, budget, gpu) for budget in budgets]
    request.getfixturevalue("to_the_end")
    late = [_decide(job, budget, gpu) for budget in budgets]
    for one, other in zip(early, late, strict=True):
        assert one.fits == other.fits
        assert one.chosen.needed_bytes == other.chosen.needed_bytes
        assert one.chosen.techniques == other.chosen.techniques or not one.fits
    ended = [[r for r in decision.rejected if r.plan is not None and r.plan.ended] for decision in early]
    # of so small a model a GPU holds little more than its context, so that nothing there is clearly too much
    assert gpu is not None or ended[-1]
    assert not any(r.plan is not None and r.plan.ended for decision in late for r in decision.rejected)
    assert all(not plan.ended for decision in early for plan in decision.considered)


def test_what_is_said_of_those_that_have_ended_is_true_of_the_whole(
    job: Job, everything: tuple[str | None, Decision]
) -> None:
    gpu, known = everything
    whole = {(p.techniques, p.micro_batch_size): p for p in known.considered}
    budget = min(p.needed_bytes for p in known.considered if p.techniques in rungs(job)[0]) + 1
    decision = _decide(job, budget, gpu)
    said = 0
    for rejected in decision.rejected:
        plan = rejected.plan
        if plan is None or not plan.ended:
            continue
        said += 1
        true = whole[plan.techniques, plan.micro_batch_size]
        assert rejected.reason.startswith("does not fit: at least ")
        assert plan.peak_bytes <= true.peak_bytes
        assert plan.estimate.seconds < true.estimate.seconds
        assert min(p.needed_bytes for p in known.considered if p.techniques == plan.techniques) > budget
        assert rejected.to_json()["at_least"] is True
    assert said or gpu is not None


def test_what_has_no_room_beside_weights_and_states_ends_there(
    job: Job, everything: tuple[str | None, Decision], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that is traced as it is, a look at weights and states would take as long as the trace's beginning."""
    gpu, known = everything
    needs = sorted(p.needed_bytes for p in known.considered)
    full = rungs(job)[0][0]
    standing = Tracer(job, WORK, Limits(find(gpu or "cpu"), 2**40, None, "a test"))._standing(full)
    budgets = [needs[0] // 2, standing - 1, standing]
    monkeypatch.setattr(search, "LARGE", 0)
    plain = [_decide(job, budget, gpu) for budget in budgets]
    monkeypatch.setattr(search, "LARGE", 10**9)
    monkeypatch.setattr(Tracer, "_standing", None)
    ended = [_decide(job, budget, gpu) for budget in budgets]
    for one, other in zip(plain, ended, strict=True):
        assert one.fits == other.fits
        assert one.chosen.needed_bytes == other.chosen.needed_bytes
        assert one.chosen.techniques == other.chosen.techniques or not one.fits
    alone = "weights and optimizer states alone take"
    said = [{r.techniques: r.reason for r in decision.rejected} for decision in ended]
    # on a GPU its context alone takes more: nothing fits, and what is told of the smallest is all that it takes
    assert ended[-2].fits == (gpu is None)
    assert (f"{alone} {format_bytes(standing)} of" in said[-2][full]) == (gpu is None)
    assert alone not in said[-1][full]
    assert alone not in "".join(r.reason for decision in plain for r in decision.rejected)


def test_a_trace_that_ends_is_the_beginning_of_the_whole_one(job: Job) -> None:
    tracer = Tracer(job, WORK, Limits(find("cpu"), 1000, None, "a test"))
    combination = rungs(job)[0][0]

    def traced(enough: Callable[[Record], bool] | None) -> Record:
        return tracer._trace(combination, job.card, 2, 2, "meta", costs=True, enough=enough)

    asked = []
    whole = traced(None)
    never = traced(lambda record: asked.append(len(record.events)) or False)
    assert len(asked) == 2, "after the first forward and the first backward pass"
    assert (never.events, never.ended) == (whole.events, "")
    for count, name in enumerate(("forward", "backward"), 1):
        answers = iter([False] * (count - 1) + [True])
        ended = traced(lambda record, answers=answers: next(answers))  # type: ignore[misc]
        assert ended.ended == name
        assert len(ended.events) == asked[count - 1]
        assert ended.events == whole.events[: len(ended.events)]
        assert [phase for _, phase in ended.marks if phase != OUTSIDE] == ["forward", "backward"][:count]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "adamw-in-backward"])
@pytest.mark.parametrize("name", NAMES)
def test_one_micro_batch_of_an_earlier_step_leaves_behind_what_all_do(
    name: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = small(name, dropout=0.1, hidden_size=256, intermediate_size=1024)
    task = task_of("sequence_classification", card)
    options = {**{key: kinds[0]() for key, kinds in registry().items()}}
    options["optimizer"] = next(kind() for kind in registry()["optimizer"] if kind().name == optimizer)

    def make(device: Any) -> Setup:
        return build(card, task, tuple(options.values()), device, micro_batch_size=3)

    def peaks() -> Any:
        lengths = (90, 60, 40)
        record = tracing.trace(make, lambda setup: [task.blank_batch(card, 3, n) for n in lengths], "accelerator")
        played = replay(record, expandable=True)
        return len(record.events), {phase: peak for phase, peak in played.phases.items() if phase != OUTSIDE}

    shorter, found = peaks()
    monkeypatch.setattr(tracing, "EARLIER", None)
    longer, expected = peaks()
    assert shorter < longer
    assert found == expected
