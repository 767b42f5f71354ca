"""Traces of a recipe's combinations of techniques: what each would hold and take, for any micro-batch and any depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from zoo.card import ModelCard
from zoo.domain import Batch
from zoo.errors import InputError
from zoo.memory.accelerator import Kind
from zoo.memory.allocator import grows, on_host, replay
from zoo.memory.depth import SHALLOW as DEEP
from zoo.memory.depth import deepen
from zoo.memory.leaves import tensors_in
from zoo.memory.ledger import OUTSIDE, Record, alike
from zoo.memory.predict import Footprint
from zoo.memory.scaling import FEWER, MANY, Estimate, Family, Irregular, Tape
from zoo.memory.splice import spliced
from zoo.memory.trace import BEGINNING, World, before_fakes, trace
from zoo.plans import Limits, Plan, Workload
from zoo.resolve import Job
from zoo.step import Setup, build, plain_model, refusals, reproducible, storage_free
from zoo.techniques import Technique

SHALLOW = (2, 3)
"""Depths of the two shallow models that tell any depth: the first has an own first and last block."""
FULL_TRACE_DEPTH = 12
"""Models up to this depth are confirmed by a trace of their own, deeper ones by one put together from shallow ones."""
OVERFLOWS = 2**57
"""Bytes of a batch from which on an activation is likely to be beyond the 2^63 that a tensor can have."""


@dataclass(frozen=True)
class Standing:
    """Asks for the bytes of a combination's weights and optimizer states."""

    techniques: tuple[Technique, ...]


@dataclass(frozen=True)
class Whole:
    """Asks for what a combination is when traced to the end, whether it can fit or not."""

    techniques: tuple[Technique, ...]


@dataclass(frozen=True)
class IfRoom:
    """Asks for what a combination is when traced, or where weights and states alone do not fit, for their bytes."""

    techniques: tuple[Technique, ...]


@dataclass(frozen=True)
class Steps:
    """Asks for the trace of so many steps of a plan's very batch, of a model of another depth where one is given."""

    techniques: tuple[Technique, ...]
    micro_batch_size: int
    accumulation_steps: int
    depth: int | None
    steps: int
    world: World

    @classmethod
    def of(cls, plan: Plan, depth: int | None, steps: int, world: World) -> Steps:
        return cls(plan.techniques, plan.micro_batch_size, plan.accumulation_steps, depth, steps, world)


@dataclass(frozen=True)
class Traced:
    """A combination's plans, one for each division of the batch, and the family that they are read off, if any.

    Where not even the smallest division can fit, the trace has ended when that was seen.
    """

    plans: list[Plan]
    family: Family | None


Question = tuple[Technique, ...] | Whole | IfRoom | Standing | Steps
"""A combination asks for what it is when traced."""
Answer = Traced | int | Record | str


class Tracer:
    """Traces combinations of techniques, each only once, in the world of the budget's device.

    For the CPU all runs on meta tensors, and fake CPU tensors, which choose the very kernels of the CPU, have the last
    word on a plan: of the whole model, or of a shallow one where meta tensors are found to agree with them on it. For
    an accelerator all runs on meta tensors with its kernels.
    """

    def __init__(self, job: Job, workload: Workload, limits: Limits, *, divided: bool = True) -> None:
        self.job = job
        self.workload = workload
        self.tokens = workload.tokens
        self.global_batch = min(job.recipe.train.global_batch_size, workload.rows)
        self.limits = limits
        self.device = limits.device
        on_cpu = limits.device.name == "cpu"
        self.rates = limits.device.rates_for()
        self.kind = None if on_cpu else Kind.of(limits.device)
        self.world: World = "meta" if on_cpu else "accelerator"
        depth = None if job.card.depth is None else int(job.card.config[job.card.depth])
        self.divided = divided
        self._many: int | None = None
        self._models: dict[int, Setup] = {}
        self.depth = depth if depth is not None and depth > max(SHALLOW) else None

    def warm_up(self) -> None:
        """Import what building and tracing the model imports, once for all processes that will do it."""
        self._plain(())
        if self.kind is None:
            before_fakes()

    def _plain(self, techniques: tuple[Technique, ...]) -> Setup:
        """The model that is traced for the techniques, the shallower one of two, before any of them is applied."""
        card = self._shallow(techniques)[0][0]
        depth = 0 if card.depth is None else int(card.config[card.depth])
        if depth not in self._models:
            model = plain_model(card, self.job.task)
            self._models[depth] = Setup(card, self.job.task, model, torch.device("meta"))
        return self._models[depth]

    def answer(self, question: Question) -> Answer:
        """What a question asks for, or the reason why it cannot be."""
        if isinstance(question, Steps):
            return self._steps(question)
        techniques = question if isinstance(question, tuple) else question.techniques
        if refused := self.refused(techniques):
            return refused
        try:
            if isinstance(question, Standing):
                return self._standing(techniques)
            most = self.limits.device_bytes if isinstance(question, IfRoom) else None
            return self._traced(techniques, whole=isinstance(question, Whole), most=most)
        except InputError as error:
            return str(error)
        except _NoRoom as found:
            return found.standing

    def refused(self, techniques: tuple[Technique, ...]) -> str | None:
        """Why a combination is not traced at all."""
        free = [t for t in techniques if len(self.job.choices[t.key]) > 1]
        if lacking := {f for t in free for f in t.arithmetic - self.device.arithmetic}:
            return f"{self.device.title} has no {', '.join(sorted(lacking))} arithmetic"
        if self.kind is None and (moved := [t for t in free if t.moves_to_host]):
            return f"{moved[0].key} gains nothing: on a CPU, host and device are the same memory"
        if refused := refusals(self._plain(techniques), sorted(techniques, key=lambda t: t.stage)):
            return str(InputError(refused))
        return None

    def plans(self, techniques: tuple[Technique, ...]) -> list[Plan]:
        """The combination with every division of the global batch that there may be."""
        return self._traced(techniques, whole=True).plans

    def spliced(self, techniques: tuple[Technique, ...], base: Family, passes: Family, steps: Family) -> Traced | None:
        """The combination without a trace of its own (see `zoo.memory.splice`), or None where that cannot be."""
        try:
            family = spliced(base, passes, steps)
            return None if family is None else self._read(techniques, family)
        except Irregular:
            return None

    def _traced(self, techniques: tuple[Technique, ...], *, whole: bool, most: int | None = None) -> Traced:
        divisions = self._divisions()
        try:
            if all(t.affine for t in techniques):
                return self._read(techniques, self._family(techniques, whole, most))
            found = [self._full(techniques, size, n, shallow=True) for size, n in divisions]
        except Irregular:
            found = [self._full(techniques, size, n) for size, n in divisions]
        return Traced([self._plan(techniques, *d, e) for d, e in zip(divisions, found, strict=True)], None)

    def _read(self, techniques: tuple[Technique, ...], family: Family) -> Traced:
        place = self._shallow(techniques)[1]
        divisions = self._divisions()
        plans = []
        for size, count in divisions:
            plan = self._plan(techniques, size, count, family.estimate(place, size, count, self.rates))
            first = family.estimate(place, size, 1, self.rates).peak if self.workload.lengths else plan.peak_bytes
            plans.append(replace(plan, least=first, ended=family.shallow.ended))
        return Traced(plans, family)

    def _divisions(self) -> list[tuple[int, int]]:
        """Rows of a micro-batch and how many of them are in a step, for every division that there may be."""
        sizes = _halvings(self.global_batch) if self.divided else [self.global_batch]
        return [(size, -(-self.global_batch // size)) for size in sizes]

    def confirm(self, plan: Plan) -> Plan:
        """The plan with the peaks of a trace of exactly its batch, replayed through the allocator of an accelerator."""

        def ask(asked: Sequence[Steps]) -> list[Record]:
            return [self._steps(question) for question in asked]

        return self.confirmed(plan, ask(self.to_confirm(plan)), ask)

    def to_confirm(self, plan: Plan) -> list[Steps]:
        """What has to be traced to confirm a plan."""
        if (depth := self._vouching(plan)) is None:
            return self._very_batch(plan, self.world if self.kind else "fake")
        # The longest trace comes first, so that the others run beside it.
        return [Steps.of(plan, depth, 1, "fake"), Steps.of(plan, depth, 1, "meta"), *self._very_batch(plan, "meta")]

    def _vouching(self, plan: Plan) -> int | None:
        """Depth of the model on which meta tensors have to agree with those of the CPU, None where it must be whole."""
        if self.kind is not None or self.depth is None:
            return None
        depth = self._first(plan.techniques, 1)
        return depth if depth < self.depth else None

    def _first(self, techniques: tuple[Technique, ...], least: int) -> int:
        """The first depth from `least` on that shows all of the pattern in which blocks are treated."""
        period = math.lcm(*(t.period for t in techniques))
        first = max(least, period)  # of a shorter stack not every part of the pattern would be there
        return first + ((self.depth or 0) - first) % period

    def _very_batch(self, plan: Plan, world: World) -> list[Steps]:
        """The plan's model, or three shallow ones where it is deep, with the plan's batch."""
        period = math.lcm(*(t.period for t in plan.techniques))
        if self.depth is None or self.depth <= max(FULL_TRACE_DEPTH, DEEP[-1] * period):
            return [Steps.of(plan, None, 2, world)]
        first = self._first(plan.techniques, DEEP[0])
        steps = 1 if self.kind is None else 2
        return [Steps.of(plan, depth, steps, world) for depth in (first, first + period, first + 2 * period)]

    def confirmed(
        self, plan: Plan, records: Sequence[Record], ask: Callable[[Sequence[Steps]], Sequence[Record]]
    ) -> Plan:
        """The plan with the peaks of the traces that `to_confirm` asks for; `ask` traces more where they disagree."""
        asked = self.to_confirm(plan)
        if self._vouching(plan) is not None:
            (real, stand_in), records, asked = records[:2], records[2:], asked[2:]
            if not alike(real, stand_in):
                asked = self._very_batch(plan, "fake")
                records = ask(asked)
        record, steps = records[0], asked[0].steps
        if len(asked) > 1 and self.depth is not None:
            try:
                record = deepen(records, [question.depth or 0 for question in asked], self.depth)
            except Irregular:
                whole = replace(asked[0], depth=None, steps=2)
                (record,), steps = ask([whole]), whole.steps
        size, count = plan.micro_batch_size, plan.accumulation_steps
        if self.kind is None:
            exact = Family(Tape.of(record), None, 0).estimate(0, size, max(count, steps), self.rates)
            estimate = replace(exact, seconds=plan.estimate.seconds)
            footprint = Footprint.of(self.device, estimate.peak, inside=max(r.beyond() for r in records))
        else:
            played = replay(record, expandable=grows(self.device))
            phases = {name: peak for name, peak in played.phases.items() if name != OUTSIDE}
            allocated = {name: peak.allocated for name, peak in phases.items()}
            estimate = Estimate(allocated, dict(played.categories), plan.estimate.seconds, on_host(record))
            reserved = max(peak.reserved for peak in played.phases.values())
            footprint = Footprint.of(self.device, estimate.peak, reserved)
        return replace(plan, estimate=estimate, footprint=footprint, host_bytes=self._host(estimate), confirmed=True)

    def _steps(self, question: Steps) -> Record:
        """Steps of the plan's very batch; for one step, the optimizer's states are made before it."""
        card, techniques = self.job.card, question.techniques
        card = card if question.depth is None else card.shallow(question.depth)
        size, count = question.micro_batch_size, _shown(techniques, question.accumulation_steps)
        tokens = tuple(self.workload.longest(number * size) for number in range(count))
        try:
            return self._trace(
                techniques, card, size, count, question.world, costs=False, steps=question.steps, tokens=tokens
            )
        except Exception as error:
            if isinstance(error, InputError) or question.depth is None or question.depth >= SHALLOW[0]:
                raise
            return Record()  # of a model that has no use for one block: it is like no other, and vouches for nothing

    def _standing(self, techniques: tuple[Technique, ...], least: int = 1) -> int:
        """Bytes of weights and optimizer states: what a step finds before its first operation."""
        cards, place = self._shallow(techniques, least)
        try:
            found = [self._trace(techniques, card, 1, 1, self.world, costs=False, steps=0).alive() for card in cards]
        except Exception as error:
            if isinstance(error, InputError) or least == SHALLOW[0]:
                raise
            return self._standing(techniques, SHALLOW[0])
        return found[0] + (place - SHALLOW[0]) * (found[1] - found[0]) if len(found) > 1 else found[0]

    def _plan(self, techniques: tuple[Technique, ...], size: int, count: int, estimate: Estimate) -> Plan:
        footprint = Footprint.of(self.device, estimate.peak)
        return Plan(techniques, size, count, estimate, footprint, self._host(estimate), self.tokens)

    def _host(self, estimate: Estimate) -> int:
        """On the CPU, device and host are one; beside an accelerator only what techniques put there is counted."""
        return estimate.peak if self.kind is None else sum(estimate.host_by_category.values())

    def _family(self, techniques: tuple[Technique, ...], whole: bool, most: int | None) -> Family:
        if self._many is None:
            self._many = MANY if self._bytes_of_a_row() < OVERFLOWS / MANY else FEWER
        while True:
            try:
                return self._family_of(techniques, self._many, whole, most)
            except RuntimeError as error:
                if "overflow" not in str(error):
                    raise
                if self._many == FEWER:
                    raise Irregular("a tensor of so many rows is beyond 2^63 bytes") from error
                self._many = FEWER

    def _bytes_of_a_row(self) -> int:
        with storage_free():
            batch = self.job.task.blank_batch(self.job.card, 1, self.tokens)
        return sum(tensor.nbytes for tensor in tensors_in((batch.inputs, batch.targets)))

    def _family_of(self, techniques: tuple[Technique, ...], many: int, whole: bool, most: int | None) -> Family:
        def too_much(record: Record) -> bool:
            family = Family(Tape.of(record, many=many), None, SHALLOW[0])
            return not any(map(self.limits.may_fit, self._read(techniques, family).plans))

        cards = self._shallow(techniques)[0]
        ends: dict[str, Any] = {} if whole or len(cards) > 1 else {"enough": too_much, "most": most}
        records = [self._trace(techniques, card, many, 2, self.world, costs=True, **ends) for card in cards]
        if records[0].ended == BEGINNING:
            raise _NoRoom(records[0].alive())
        tapes = [Tape.of(record, many=many) for record in records]
        return Family(tapes[0], tapes[1] if len(tapes) > 1 else None, SHALLOW[0])

    def _shallow(self, techniques: tuple[Technique, ...], least: int = SHALLOW[0]) -> tuple[list[ModelCard], int]:
        """The model of two depths of one pattern where its depth counts, else itself; its place among such depths.

        `least` is the first of them, where blocks are all treated alike: weights grow evenly from the first block on.
        """
        period = math.lcm(*(t.period for t in techniques))
        first = self._first(techniques, least)
        if self.depth is None or first + period > self.depth:
            return [self.job.card], 0
        place = SHALLOW[0] + (self.depth - first) // period
        return [self.job.card.shallow(depth) for depth in (first, first + period)], place

    def _full(self, techniques: tuple[Technique, ...], size: int, count: int, *, shallow: bool = False) -> Estimate:
        """Estimate at exactly `size` rows, from traces of this very batch; its seconds are those of one step of one."""
        cards, place = self._shallow(techniques) if shallow else ([self.job.card], 0)
        shown = _shown(techniques, count)
        tapes = [Tape.of(self._trace(techniques, card, size, shown, self.world, costs=True)) for card in cards]
        family = Family(tapes[0], tapes[1] if len(tapes) > 1 else None, SHALLOW[0])
        return family.estimate(place, size, count, self.rates)

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
        tokens: tuple[int, ...] | None = None,
        enough: Callable[[Record], bool] | None = None,
        most: int | None = None,
    ) -> Record:
        train = self.job.recipe.train

        def make(device: torch.device) -> Setup:
            return build(
                card, self.job.task, techniques, device,
                micro_batch_size=rows, learning_rate=train.learning_rate, weight_decay=train.weight_decay,
                max_grad_norm=train.max_grad_norm,
            )  # fmt: skip

        def batch(setup: Setup) -> list[Batch]:
            lengths = tokens or (self.tokens,) * micro_batches
            return [self.job.task.blank_batch(card, rows, length) for length in lengths]

        with reproducible():  # as training runs
            return trace(make, batch, world, steps=steps, count_costs=costs, kind=self.kind, enough=enough, most=most)


class _NoRoom(Exception):
    """Weights and optimizer states alone do not fit."""

    def __init__(self, standing: int) -> None:
        super().__init__(standing)
        self.standing = standing


def _halvings(count: int) -> list[int]:
    """``[32, 16, 8, 4, 2, 1]``: every micro-batch that halving gives, largest first."""
    sizes = [count]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def _shown(techniques: tuple[Technique, ...], count: int) -> int:
    """Micro-batches of a trace that shows all that a step of `count` does."""
    return min(count, max(t.passes for t in techniques))
