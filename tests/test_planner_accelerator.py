"""Plans for accelerators keep room for what is reserved, for the device's context and for the prediction's error."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Recipes

from zoo.errors import InputError
from zoo.memory.allocator import replay
from zoo.memory.devices import find
from zoo.memory.predict import ASSUMED_CONTEXT, CPU_MARGIN, PLAN_MARGIN, Footprint
from zoo.planner import decide
from zoo.plans import Decision, Limits, Workload
from zoo.resolve import Job
from zoo.step import reproducible
from zoo.tracer import Tracer
from zoo.units import GIB

T4 = find("t4")
WORK = Workload(100, 64, "64 inputs of 100 tokens")
PLAIN = {"precision": "fp32", "adapter": "full", "quantization": "none", "optimizer": "adamw"}
OPEN: dict[str, Any] = {"techniques": PLAIN, "train.global_batch_size": 16}


@pytest.fixture(scope="module", name="job")
def _job(session_recipes: Callable[[str], Recipes]) -> Job:
    """Checkpointing and the division of the batch are left open."""
    return session_recipes("accelerator").job({**OPEN, "budget": {}})


@pytest.fixture(scope="module", name="generous")
def _generous(job: Job) -> Decision:
    return _decide(job, 64 * GIB)


def _decide(job: Job, budget: int) -> Decision:
    return decide(job, WORK, Limits(T4, budget, None, "a test"))


def test_a_footprint_is_the_least_it_can_be_until_more_is_known() -> None:
    assert T4.context_bytes is not None
    least = Footprint.of(T4, 1000 * 2**20)
    known = Footprint.of(T4, 1000 * 2**20, 1100 * 2**20)
    assert least.reserved == least.allocated
    assert known.process == 1100 * 2**20 + T4.context_bytes
    segment = 20 * 2**20
    assert known.interval[0] == pytest.approx(1100 * 2**20 * (1 - PLAN_MARGIN) - segment + T4.context_bytes, abs=1)
    assert known.interval[1] == pytest.approx(1100 * 2**20 * (1 + PLAN_MARGIN) + segment + T4.context_bytes, abs=1)
    assert Footprint.of(T4, 10).interval[0] == T4.context_bytes
    assert least.interval[1] < known.interval[1]
    stranger = T4.model_copy(update={"context_bytes": None})
    assert Footprint.of(stranger, 10).process == 10 + ASSUMED_CONTEXT


def test_on_the_cpu_the_interval_is_the_error_that_was_measured() -> None:
    held = Footprint.of(find("cpu"), 1_000_000)
    assert (held.allocated, held.reserved, held.process) == (1_000_000, 1_000_000, 1_000_000)
    assert held.interval == (1_000_000 * (1 - CPU_MARGIN), 1_000_000 * (1 + CPU_MARGIN))


def test_a_chosen_plan_tells_what_is_reserved_and_held(generous: Decision) -> None:
    chosen = generous.chosen
    held = chosen.footprint
    assert T4.context_bytes is not None
    assert chosen.confirmed
    assert held.allocated < held.reserved
    assert held.process == held.reserved + T4.context_bytes
    assert held.interval[0] < held.process < held.interval[1]
    told = chosen.to_json()
    assert told["peak_bytes"] == {
        "allocated": held.allocated,
        "reserved": held.reserved,
        "process": held.process,
        "interval": list(held.interval),
    }
    assert told["needed_bytes"] == held.interval[1]
    assert held.allocated == max(told["peak_by_phase"].values())
    assert sum(told["peak_by_category"].values()) == held.allocated


def test_a_budget_must_hold_the_upper_end_of_the_interval(job: Job, generous: Decision) -> None:
    enough = generous.chosen.needed_bytes
    assert _decide(job, enough).chosen == generous.chosen
    less = _decide(job, enough - 1)
    assert less.fits
    assert less.chosen.needed_bytes < enough
    assert (less.chosen.techniques, less.chosen.micro_batch_size) != (
        generous.chosen.techniques,
        generous.chosen.micro_batch_size,
    )


def test_a_plan_that_only_seemed_to_fit_is_refused_with_the_confirmed_number(job: Job, generous: Decision) -> None:
    """Its tensors alone would fit; what is reserved for them would not."""
    chosen = generous.chosen
    plans = Tracer(job, WORK, generous.limits).plans(chosen.techniques)
    rough = next(p for p in plans if p.micro_batch_size == chosen.micro_batch_size)
    assert rough.needed_bytes < chosen.needed_bytes
    between = _decide(job, (rough.needed_bytes + chosen.needed_bytes) // 2)
    assert between.fits
    assert between.chosen.needed_bytes <= between.limits.device_bytes
    assert (between.chosen.techniques, between.chosen.micro_batch_size) != (chosen.techniques, chosen.micro_batch_size)


def test_the_smallest_budget_that_is_named_does(job: Job) -> None:
    nothing = _decide(job, 1000)
    assert not nothing.fits
    assert f"{nothing.chosen.needed_bytes} bytes" in nothing.reasons[0]
    assert _decide(job, nothing.chosen.needed_bytes).fits


@pytest.mark.parametrize("techniques", [{}, {"adapter": "lora", "checkpointing": "block"}])
def test_deep_models_are_confirmed_to_the_byte_without_being_traced(
    session_recipes: Callable[[str], Recipes], techniques: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "deep" + "".join(techniques.values())
    chosen = {**PLAIN, "checkpointing": "none", **techniques}
    job = session_recipes(name).job({**OPEN, "budget": {}, "model": "esm2_t30_150m", "techniques": chosen})
    tracer = Tracer(job, WORK, Limits(T4, 64 * GIB, None, "a test"))
    (combination,) = itertools.product(*job.choices.values())
    rough = next(p for p in tracer.plans(combination) if p.micro_batch_size == 4)
    depths = []
    plain = Tracer._trace

    def watched(self: Tracer, techniques: Any, card: Any, *args: Any, **kwargs: Any) -> Any:
        depths.append(card.config[card.depth])
        return plain(self, techniques, card, *args, **kwargs)

    monkeypatch.setattr(Tracer, "_trace", watched)
    confirmed = tracer.confirm(rough)
    assert max(depths) < 10
    record = plain(tracer, combination, job.card, 4, 2, "accelerator", costs=False, steps=2)
    whole = replay(record, expandable=True)
    phases = {
        phase: peak.allocated for phase, peak in whole.phases.items() if phase in ("forward", "backward", "optimizer")
    }
    assert confirmed.estimate.peak_by_phase == phases
    assert confirmed.footprint.reserved == max(peak.reserved for peak in whole.phases.values())
    assert (confirmed.techniques, confirmed.estimate.seconds) == (rough.techniques, rough.estimate.seconds)


def test_a_model_that_cannot_be_trained_on_a_gpu_is_refused_for_that_alone(
    session_recipes: Callable[[str], Recipes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for what the recipe has never asked for: codes, beside training in full."""
    open_ = {"techniques": {"precision": "fp32", "adapter": "full", "checkpointing": "none", "optimizer": "adamw"}}
    job = session_recipes("refused").job({**open_, "budget": {}})
    plain = type(job.task).loss

    def loss(self: Any, *given: Any) -> Any:
        torch.ones(4, device=given[0].device if isinstance(given[0], torch.Tensor) else "meta").cumsum(0)
        return plain(self, *given)

    monkeypatch.setattr(type(job.task), "loss", loss)
    with pytest.raises(InputError, match="the model uses cumsum") as refused:
        _decide(job, 8 * GIB)
    assert "quantization" not in str(refused.value)


def test_models_are_not_compiled() -> None:
    """A compiled function takes a ledger, or a budget, down with it."""

    def plain(x: int) -> int:
        return x + 1

    with reproducible():
        assert torch.compile(plain) is plain
        assert torch.compile(fullgraph=True)(plain) is plain
