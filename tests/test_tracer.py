"""A plan for the CPU is confirmed by traces that cost little, which fake tensors of the CPU have to agree with."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import Recipes

from zoo import tracer as tracing
from zoo.memory import trace
from zoo.memory.devices import find
from zoo.memory.ledger import ALIKE, CONSTANT, Record, alike
from zoo.plans import Limits, Plan, Workload
from zoo.resolve import Job
from zoo.techniques import Technique
from zoo.tracer import Steps, Tracer
from zoo.units import GIB, MIB

ROWS = 8
COMBINATIONS = (
    "fp32 full none none adamw",
    "bf16 full none block adamw",
    "bf16 full none none adamw-8bit",
    "bf16 lora none selective adamw",
    "bf16 lora nf4 block adamw",
    "fp32 head nf4-double none adamw-8bit",
)
KEYS = ("precision", "adapter", "quantization", "checkpointing", "optimizer")
DEEP = 14
"""Layers of a model whose own trace is put together from those of shallow ones."""


@pytest.fixture(scope="module", name="job")
def _job(session_recipes: Callable[[str], Recipes]) -> Job:
    changes = {"techniques": {"adapter": None}, "train.global_batch_size": ROWS, "budget": {}}
    return session_recipes("tracer").job({**changes, "techniques": "auto"})


def _tracer(job: Job, layers: int) -> Tracer:
    """Of a model with so many blocks."""
    card = job.card.model_copy(update={"config": {**job.card.config, "num_hidden_layers": layers}})
    limits = Limits(find("cpu"), 64 * GIB, None, "a test")
    return Tracer(replace(job, card=card), Workload(40, ROWS, "a test"), limits)


def _techniques(job: Job, named: str) -> tuple[Technique, ...]:
    wanted = dict(zip(KEYS, named.split(), strict=True))
    return tuple(
        next(o for o in job.choices[k] if o.name == wanted.get(k, options[0].name))
        for k, options in job.choices.items()
    )


def _plan(tracer: Tracer, named: str) -> Plan:
    return next(p for p in tracer.plans(_techniques(tracer.job, named)) if p.micro_batch_size == ROWS // 2)


def _whole(tracer: Tracer, plan: Plan) -> dict[str, int]:
    """Peaks of the model's own trace on fake tensors."""
    peaks = tracer._steps(Steps.of(plan, None, 2, "fake")).peaks()
    return {phase: peaks[phase] for phase in plan.estimate.peak_by_phase}


@pytest.mark.parametrize(
    ("layers", "named"), [*((4, named) for named in COMBINATIONS), (DEEP, COMBINATIONS[1]), (DEEP, COMBINATIONS[-1])]
)
def test_what_is_confirmed_is_what_a_whole_trace_on_the_cpu_says(job: Job, layers: int, named: str) -> None:
    tracer = _tracer(job, layers)
    plan = _plan(tracer, named)
    worlds = [question.world for question in tracer.to_confirm(plan)]
    assert worlds.count("fake") == 1, "one shallow trace vouches for the others"
    confirmed = tracer.confirm(plan)
    for phase, peak in _whole(tracer, plan).items():
        assert confirmed.estimate.peak_by_phase[phase] == pytest.approx(peak, abs=layers * ALIKE), phase


def test_where_meta_tensors_are_not_those_of_the_cpu_fake_ones_are_traced(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = _tracer(job, 4)
    plan = _plan(tracer, COMBINATIONS[0])
    right = _whole(tracer, plan)
    plain = trace._MetaHostLedger._run

    def wasteful(self: Any, known: Any, args: Any, kwargs: Any) -> Any:
        """A stand-in for kernels that nobody has thought of: GELU keeps a second result."""
        out, cost = plain(self, known, args, kwargs)
        if known.name == "aten::gelu":
            out = torch.empty((2, *out.shape), device="meta")[0]
        return out, cost

    monkeypatch.setattr(trace._MetaHostLedger, "_run", wasteful)
    asked: list[Steps] = []

    def ask(questions: Any) -> Any:
        asked.extend(questions)
        return [tracer._steps(question) for question in questions]

    first = tracer.to_confirm(plan)
    confirmed = tracer.confirmed(plan, ask(first), ask)
    assert [q.world for q in asked[len(first) :]] == ["fake"]
    assert confirmed.estimate.peak_by_phase == right


def _record(*temporaries: int) -> Record:
    """A forward pass that holds a MiB, and these storages one after the other beside it."""
    events = [1, *itertools.chain(*((index + 2, -(index + 2)) for index in range(len(temporaries))))]
    return Record([MIB, *temporaries], ["meta"] * (1 + len(temporaries)), events, [(0, "outside"), (0, "forward")])


def test_worlds_are_alike_when_their_storages_are_and_their_peaks() -> None:
    assert alike(_record(MIB, 5000), _record(5000, MIB))
    assert alike(_record(MIB, CONSTANT), _record(MIB)), "a constant that one of them copies"
    assert not alike(_record(MIB, 5000), _record(MIB)), "it shows at no peak"
    assert not alike(_record(MIB, 5000), _record(MIB, 5001))
    one, other = _record(*[CONSTANT] * 5), _record()
    one.events = sorted(one.events, reverse=True, key=lambda event: event > 0)  # all alive at once
    assert one.peaks()["forward"] - other.peaks()["forward"] > ALIKE
    assert not alike(one, other)


def test_a_model_that_has_no_use_for_one_block_is_planned(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are counted from two blocks on, and nothing vouches for its plan but a trace on fake tensors."""
    tracer = _tracer(job, 4)
    plan = _plan(tracer, COMBINATIONS[0])
    standing, plain = tracer._standing(plan.techniques), tracing.build

    def at_least_two(card: Any, *args: Any, **options: Any) -> Any:
        if card.config["num_hidden_layers"] < 2:
            raise ValueError("a first and a last block")
        return plain(card, *args, **options)

    monkeypatch.setattr(tracing, "build", at_least_two)
    assert tracer._standing(plan.techniques) == standing
    assert tracer.confirm(plan).estimate.peak_by_phase == _whole(tracer, plan)
