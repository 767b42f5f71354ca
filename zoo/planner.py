"""From a budget to a plan: try what the recipe leaves open, keep what fits, prefer what changes least and runs fastest.

The planner has no formula for any technique. It runs the very build and step that training runs, without storage,
and reads peaks and times off the ledger.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zoo.card import Exactness, ModelCard, Source, load_ref
from zoo.data.prepare import Data
from zoo.domain import Batch
from zoo.errors import InputError
from zoo.memory.accelerator import Kind
from zoo.memory.devices import Device, detect, find
from zoo.memory.ledger import Record
from zoo.memory.scaling import MANY, Estimate, Family, Irregular, Tape
from zoo.memory.trace import World, trace
from zoo.memory.workers import spread
from zoo.recipe import Budget
from zoo.resolve import Job
from zoo.step import PHASES, Setup, build, describe, storage_free
from zoo.techniques import Technique, registry
from zoo.units import format_bytes

SHALLOW = (2, 3)
"""Depths of the two shallow models that tell any depth: the first has an own first and last block."""
FULL_TRACE_DEPTH = 12
"""Models up to this depth are confirmed by a full trace on fake CPU tensors, deeper ones by the two shallow models."""

_RANK: Mapping[Exactness, int] = {"bitwise": 0, "rounding": 1, "changes-model": 2}


@dataclass(frozen=True)
class Workload:
    """What the data demands of a step: `tokens` of the longest training input, `rows` of training data, and whence."""

    tokens: int
    rows: int
    origin: str


@dataclass(frozen=True)
class Limits:
    """A budget in bytes, on a device with known rates."""

    device: Device
    device_bytes: int
    host_bytes: int | None
    origin: str

    def why_not(self, plan: Plan) -> str | None:
        if plan.peak_bytes > self.device_bytes:
            return f"does not fit: {format_bytes(plan.peak_bytes)} of {format_bytes(self.device_bytes)}"
        if self.host_bytes is not None and plan.host_bytes > self.host_bytes:
            return f"does not fit the host: {format_bytes(plan.host_bytes)} of {format_bytes(self.host_bytes)}"
        return None


@dataclass(frozen=True)
class Plan:
    """One way to run a recipe, with what it would hold and take."""

    techniques: tuple[Technique, ...]
    micro_batch_size: int
    accumulation_steps: int
    estimate: Estimate
    host_bytes: int
    tokens: int

    @property
    def peak_bytes(self) -> int:
        return self.estimate.peak

    @property
    def exactness(self) -> Exactness:
        """That of its least exact technique; dividing the batch is exact up to rounding."""
        kinds = [t.exactness for t in self.techniques] + (["rounding"] if self.accumulation_steps > 1 else [])
        return max(kinds, key=lambda kind: _RANK[kind])

    def to_json(self) -> dict[str, Any]:
        return {
            "techniques": dict(describe(self.techniques)),
            "micro_batch_size": self.micro_batch_size,
            "accumulation_steps": self.accumulation_steps,
            "exactness": self.exactness,
            "peak_bytes": {"allocated": self.peak_bytes},
            "peak_by_phase": {phase: self.estimate.peak_by_phase.get(phase, 0) for phase in PHASES},
            "peak_by_category": self.estimate.peak_by_category,
            "host_bytes": self.host_bytes,
            "step_seconds": self.estimate.seconds,
            "tokens_per_row": self.tokens,
        }


@dataclass(frozen=True)
class Rejected:
    """A combination that was not chosen, at its best micro-batch, and why. `plan` is None where it cannot be built."""

    techniques: tuple[Technique, ...]
    reason: str
    plan: Plan | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "techniques": dict(describe(self.techniques)),
            "reason": self.reason,
            "peak_bytes": None if self.plan is None else self.plan.peak_bytes,
            "micro_batch_size": None if self.plan is None else self.plan.micro_batch_size,
            "step_seconds": None if self.plan is None else self.plan.estimate.seconds,
        }


@dataclass(frozen=True)
class Decision:
    """The planner's answer. Where nothing fits, `chosen` is the smallest plan there is."""

    fits: bool
    limits: Limits
    workload: Workload
    chosen: Plan
    rejected: tuple[Rejected, ...] = ()
    reasons: tuple[str, ...] = ()
    considered: tuple[Plan, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "fits": self.fits,
            "budget_bytes": self.limits.device_bytes,
            "device": self.limits.device.name,
            "chosen": self.chosen.to_json(),
            "reasons": list(self.reasons),
            "rejected": [r.to_json() for r in self.rejected],
        }


def limits_of(budget: Budget) -> Limits:
    """What a recipe's budget allows. Without one, the machine's own device and all of its free memory.

    Raises `InputError` for more than one device, and for a GPU that is not known.
    """
    if budget.count > 1:
        raise InputError(f"budget.count: got {budget.count}; training is on one device so far, set count: 1")
    device = detect() if budget.gpu in (None, "auto") else find(str(budget.gpu))
    if budget.device is not None:
        return Limits(device, budget.device, budget.host, f"{format_bytes(budget.device)} as the budget says")
    origin = "the budget's gpu" if budget.gpu else "no budget given: this machine"
    return Limits(device, device.memory_bytes, budget.host, f"{device.title}, {origin}")


def survey(job: Job, fetch: Callable[[Source], Path], *, local: bool) -> tuple[Workload, Data | None]:
    """What the data demands. Without the data at hand (`local` false), the longest input that is allowed."""
    train = job.recipe.train
    if not local:
        tokens = min(job.recipe.data.max_length or job.card.max_length, job.card.max_length)
        origin = f"the data is not fetched yet: planned for inputs of {tokens} tokens, the longest allowed"
        return Workload(tokens, train.global_batch_size, origin), None
    data = job.task.prepare(job, fetch)
    tokens = max(job.task.length(example) for example in data.train)
    return Workload(tokens, len(data.train), f"the longest of {len(data.train)} training inputs"), data


def decide(job: Job, workload: Workload, limits: Limits) -> Decision:
    """Try every combination that the recipe leaves open. Raises `InputError` when none can be built at all."""
    tracer = _Tracer(job, workload, limits)
    best: list[Plan] = []
    rejected: list[Rejected] = []
    considered: list[Plan] = []
    combinations = list(itertools.product(*job.choices.values()))
    tracer.warm_up()
    outcomes = spread(lambda i: _tried(tracer, combinations[i], job, limits), len(combinations))
    for techniques, plans in zip(combinations, outcomes, strict=True):
        if isinstance(plans, str):
            rejected.append(Rejected(techniques, plans))
            continue
        considered += plans
        fitting = [p for p in plans if limits.why_not(p) is None]
        if fitting:
            best.append(min(fitting, key=lambda p: (p.estimate.seconds, -p.micro_batch_size)))
        else:
            smallest = min(plans, key=lambda p: p.peak_bytes)
            rejected.append(Rejected(techniques, limits.why_not(smallest) or "", smallest))
    if not considered:
        raise InputError([f"{' '.join(describe(r.techniques).values())}: {r.reason}" for r in rejected])
    best.sort(key=_preference)
    while best:
        chosen = tracer.confirm(best[0])
        problem = limits.why_not(chosen)
        if problem is None:
            rejected += [Rejected(p.techniques, _why_not_chosen(p, chosen), p) for p in best[1:]]
            reasons = _reasons(chosen, best[1:], rejected, job, workload)
            return Decision(True, limits, workload, chosen, tuple(rejected), reasons, tuple(considered))
        rejected.append(Rejected(chosen.techniques, problem, chosen))
        best.pop(0)
    smallest = tracer.confirm(min(considered, key=lambda p: p.peak_bytes))
    others = tuple(r for r in rejected if r.techniques != smallest.techniques)
    reasons = (
        f"nothing fits {format_bytes(limits.device_bytes)} ({limits.origin}); "
        f"the smallest budget that would do is {smallest.peak_bytes} bytes ({format_bytes(smallest.peak_bytes)})",
    )
    return Decision(False, limits, workload, smallest, others, reasons, tuple(considered))


def _tried(tracer: _Tracer, techniques: tuple[Technique, ...], job: Job, limits: Limits) -> list[Plan] | str:
    """The combination with every division of the batch, or why it cannot be."""
    lacking = {f for t in techniques if len(job.choices[t.key]) > 1 for f in t.arithmetic - limits.device.arithmetic}
    if lacking:
        return f"{limits.device.title} has no {', '.join(sorted(lacking))} arithmetic"
    try:
        return tracer.plans(techniques)
    except InputError as error:
        return str(error)


def _preference(plan: Plan) -> tuple[int, float]:
    """Least change to the model first (in the order in which a technique lists its options), then throughput."""
    changes = [t for t in plan.techniques if t.exactness == "changes-model"]
    rank = max((registry()[t.key].index(type(t)) for t in changes), default=0)
    return rank, plan.estimate.seconds


def _why_not_chosen(plan: Plan, chosen: Plan) -> str:
    if plan.exactness == "changes-model" and _preference(plan)[0] > _preference(chosen)[0]:
        return "fits, but changes more of what is trained than is needed"
    return f"fits, but slower: {plan.estimate.seconds:.3g} s a step against {chosen.estimate.seconds:.3g} s"


def _reasons(
    chosen: Plan, others: Sequence[Plan], rejected: Sequence[Rejected], job: Job, workload: Workload
) -> tuple[str, ...]:
    """One line for every decision that was the planner's."""
    lines = [f"length: {workload.tokens} tokens, {workload.origin}"]
    for technique in chosen.techniques:
        open_options = job.choices[technique.key]
        if len(open_options) == 1:
            continue
        rivals = [p for p in others if all(t == technique or t.key == technique.key for t in _difference(p, chosen))]
        rivals = [p for p in rivals if technique not in p.techniques]
        beaten = [f"{_named(p, technique.key)} {_why_not_chosen(p, chosen).removeprefix('fits, but ')}" for p in rivals]
        failed = [
            f"{next(t for t in r.techniques if t.key == technique.key).describe()} {r.reason}"
            for r in rejected
            if r.plan is not None
            and "does not fit" in r.reason
            and [t for t in r.techniques if t.key != technique.key]
            == [t for t in chosen.techniques if t.key != technique.key]
        ]
        why = "; ".join([*beaten, *failed]) or "the others need other changes as well"
        lines.append(f"{technique.key}: {technique.describe()} ({why})")
    if chosen.accumulation_steps > 1:
        lines.append(
            f"micro-batch: {chosen.micro_batch_size} rows, accumulated {chosen.accumulation_steps} times; "
            "the fastest division that fits"
        )
    return tuple(lines)


def _difference(plan: Plan, other: Plan) -> list[Technique]:
    return [t for t in plan.techniques if t not in other.techniques]


def _named(plan: Plan, key: str) -> str:
    return next(t.describe() for t in plan.techniques if t.key == key)


class _Tracer:
    """Traces combinations of techniques, each only once, in the world of the budget's device.

    For the CPU the search runs on plain meta tensors, and the chosen plan is confirmed by fake CPU tensors, which
    choose the very kernels of the CPU. For an accelerator both run on meta tensors with its kernels.
    """

    def __init__(self, job: Job, workload: Workload, limits: Limits) -> None:
        self.job = job
        self.tokens = workload.tokens
        self.global_batch = min(job.recipe.train.global_batch_size, workload.rows)
        on_cpu = limits.device.name == "cpu"
        self.rates = limits.device.rates_for()
        self.kind = None if on_cpu else Kind.of(limits.device)
        self.searching: World = "meta" if on_cpu else "accelerator"
        self.confirming: World = "fake" if on_cpu else "accelerator"
        depth = None if job.card.depth is None else int(job.card.config[job.card.depth])
        self.depth = depth if depth is not None and depth > max(SHALLOW) else None

    def warm_up(self) -> None:
        """Import what building the model imports, once for all processes that will trace it."""
        with storage_free():
            load_ref(self.job.card.build)(self._shallow(())[0][0], self.job.task.head)

    def plans(self, techniques: tuple[Technique, ...]) -> list[Plan]:
        """The combination with every division of the global batch."""
        sizes = _halvings(self.global_batch)
        counts = [-(-self.global_batch // size) for size in sizes]
        divisions = list(zip(sizes, counts, strict=True))
        try:
            if all(t.affine for t in techniques):
                family, place = self._family(techniques), self._shallow(techniques)[1]
                found = [family.estimate(place, size, n, self.rates) for size, n in divisions]
            else:
                found = [self._full(techniques, r, n, self.searching, steps=1, shallow=True) for r, n in divisions]
        except Irregular:
            found = [self._full(techniques, size, n, self.searching, steps=1) for size, n in divisions]
        return [self._plan(techniques, size, n, e) for (size, n), e in zip(divisions, found, strict=True)]

    def confirm(self, plan: Plan) -> Plan:
        """The plan with the peaks of a trace of exactly its batch."""
        shallow = self.depth is not None and self.depth > FULL_TRACE_DEPTH
        size, count, steps = plan.micro_batch_size, plan.accumulation_steps, 1 if shallow else 2
        exact = self._full(plan.techniques, size, count, self.confirming, shallow=shallow, steps=steps)
        estimate = Estimate(exact.peak_by_phase, exact.peak_by_category, plan.estimate.seconds)
        return self._plan(plan.techniques, size, count, estimate)

    def _plan(self, techniques: tuple[Technique, ...], size: int, count: int, estimate: Estimate) -> Plan:
        host = estimate.peak if self.kind is None else 0
        return Plan(techniques, size, count, estimate, host, self.tokens)

    def _family(self, techniques: tuple[Technique, ...]) -> Family:
        try:
            tapes = [
                Tape.of(self._trace(techniques, card, MANY, 2, self.searching, costs=True), many=True)
                for card in self._shallow(techniques)[0]
            ]
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            raise Irregular("a tensor of so many rows is beyond 2^63 bytes") from error
        return Family(tapes[0], tapes[1] if len(tapes) > 1 else None, SHALLOW[0])

    def _shallow(self, techniques: tuple[Technique, ...]) -> tuple[list[ModelCard], int]:
        """The model of two depths of one pattern where its depth counts, else itself; its place among such depths."""
        period = math.lcm(*(t.period for t in techniques))
        first = SHALLOW[0] if period == 1 else period + (self.depth or 0) % period
        if self.depth is None or first + period > self.depth:
            return [self.job.card], 0
        place = SHALLOW[0] + (self.depth - first) // period
        return [self.job.card.shallow(depth) for depth in (first, first + period)], place

    def _full(
        self,
        techniques: tuple[Technique, ...],
        size: int,
        count: int,
        world: World,
        *,
        steps: int,
        shallow: bool = False,
    ) -> Estimate:
        """Estimate at exactly `size` rows, from traces of this very batch; its seconds are those of one step of one."""
        cards, place = self._shallow(techniques) if shallow else ([self.job.card], 0)
        tapes = [
            Tape.of(
                self._trace(techniques, card, size, min(count, 2), world, costs=world == self.searching, steps=steps),
                many=False,
            )
            for card in cards
        ]
        family = Family(tapes[0], tapes[1] if len(tapes) > 1 else None, SHALLOW[0])
        # A second step is a second pass to the estimate, which one with a single micro-batch would leave out.
        return family.estimate(place, size, max(count, steps), self.rates)

    def _trace(
        self,
        techniques: tuple[Technique, ...],
        card: ModelCard,
        rows: int,
        micro_batches: int,
        world: World,
        *,
        costs: bool,
        steps: int = 1,
    ) -> Record:
        train = self.job.recipe.train

        def make(device: torch.device) -> Setup:
            return build(
                card, self.job.task, techniques, device,
                micro_batch_size=rows, learning_rate=train.learning_rate, weight_decay=train.weight_decay,
                max_grad_norm=train.max_grad_norm,
            )  # fmt: skip

        def batch(setup: Setup) -> list[Batch]:
            return [self.job.task.blank_batch(card, rows, self.tokens) for _ in range(micro_batches)]

        return trace(make, batch, world, steps=steps, count_costs=costs, kind=self.kind)


def _halvings(count: int) -> list[int]:
    """``[32, 16, 8, 4, 2, 1]``: every micro-batch that halving gives, largest first."""
    sizes = [count]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes
