"""From two small traces to any micro-batch and any depth.

Two facts make this possible:

1. In a trace, the bytes of every storage are an affine function of the rows of the micro-batch (``a + b * rows``),
   and the order of events does not depend on them. Without storage, a micro-batch may have `MANY` rows, more than any
   constant part has bytes: then `b` is the quotient and `a` the remainder, and one trace gives both. Replaying the
   events with them gives the exact peaks for any rows. `Irregular` is raised where it is not so.
2. In a stack of identical blocks, the net change of every phase and its peak above where it began grow by the same
   amount with every block. Traces of two shallow models give both. A test compares this with full traces, and the
   planner confirms the plan that it chooses by one full trace.

A step with two micro-batches contains the step with one (its first forward and backward, and its optimizer) and,
repeated, that with more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zoo.memory.ledger import OUTSIDE, Record
from zoo.memory.roofline import Cost, Rates

Array = NDArray[np.float64]


MANY = 4_000_000_007
"""Rows of a traced micro-batch: a prime, so that nothing else in a model is a multiple of it. Not larger, for the
bytes of an activation must stay below 2^63."""

FEWER = 500_000_003
"""The same for models in which a row takes gigabytes in one activation."""

LEAST = 256
"""Bytes or operations of a row below which an amount with a large remainder is taken for a constant: where so little
comes with a row, nothing large comes beside it."""

_CONSTANT = ("parameters", "buffers", "gradients", "optimizer")
"""Categories and phases that know nothing of the micro-batch."""

_ROUNDED = "kernels"
"""Category of what kernels allocate for themselves: in proportion to the rows, up to rounding."""


class Irregular(Exception):
    """The traces do not have the structure that scaling needs; only a full trace tells."""


@dataclass(frozen=True)
class Segment:
    """One stretch of one phase: events (columns a, b), their categories, operations (flops a, b, bytes a, b, kind),
    and which events are beside the device, in the host's memory, where there are any."""

    phase: str
    events: Array
    categories: NDArray[np.int64]
    costs: Array
    beside: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Tape:
    """A trace as a function of the rows of its micro-batch. `ended` is the trace's."""

    segments: tuple[Segment, ...]
    names: tuple[str, ...]
    ended: str = ""

    @classmethod
    def of(cls, record: Record, *, many: int = 0) -> Tape:
        """From a trace of a micro-batch with `many` rows, `MANY` or `FEWER`; 0 says that it has the very rows that the
        tape will be asked for."""
        names = tuple(sorted(set(record.labels.values())))
        codes = np.array([names.index(record.labels[i]) for i in range(len(record.sizes))], dtype=np.int64)
        indices = np.array(record.events, dtype=np.int64)
        storages = np.abs(indices) - 1
        sizes = np.array(
            [
                (0, size / many)
                if many and size > many and record.labels[index] == _ROUNDED
                else _affine(size, 0 if record.labels[index] in _CONSTANT else many)
                for index, size in enumerate(record.sizes)
            ],
            dtype=float,
        ).reshape(-1, 2)
        deltas = np.sign(indices)[:, None] * sizes[storages]
        beside = record.beside()
        there = beside[storages] if beside.any() else None
        ends = [*(start for start, _ in record.marks[1:]), len(record.events)]
        cost_ends = [*record.cost_marks[1:], len(record.costs)]
        segments = []
        for (start, phase), end, first, last in zip(record.marks, ends, record.cost_marks, cost_ends, strict=True):
            rows = 0 if phase in _CONSTANT else many
            table = [_cost(c, rows) for c in record.costs[first:last]]
            costs = np.array(table, dtype=float).reshape(-1, 5)
            elsewhere = None if there is None else there[start:end]
            segments.append(Segment(phase, deltas[start:end], codes[storages[start:end]], costs, elsewhere))
        return cls(tuple(segments), names, record.ended)

    def replay(self, rows: int, rates: Rates) -> list[Played]:
        """Every segment with its net change, its peak above where it began, and its time."""
        played = []
        for segment in self.segments:
            deltas = segment.events[:, 0] + segment.events[:, 1] * rows
            seconds = rates.seconds(segment.costs, rows)
            host = None
            if segment.beside is not None:
                host = self._changes(segment.categories, np.where(segment.beside, deltas, 0))
                deltas = np.where(segment.beside, 0, deltas)
            played.append(Played(segment.phase, *self._changes(segment.categories, deltas), seconds, host))
        return played

    def _changes(self, categories: NDArray[np.int64], deltas: Array) -> tuple[Array, Array]:
        """Bytes by category that events leave, and add at their highest point."""
        top = int(np.argmax(np.concatenate([[0.0], np.cumsum(deltas)])))
        count = len(self.names)
        net = np.bincount(categories, weights=deltas, minlength=count).astype(float)
        return net, np.bincount(categories[:top], weights=deltas[:top], minlength=count).astype(float)


@dataclass(frozen=True)
class Played:
    """Bytes by category that a segment leaves (`net`) and adds at its highest point (`at_top`), and seconds.

    `host` is the same two of the host's memory beside the device, where there is anything.
    """

    phase: str
    net: Array
    at_top: Array
    seconds: float
    host: tuple[Array, Array] | None = None

    def deeper(self, next_: Played, blocks: int) -> Played:
        """This segment with `blocks` more blocks, where `next_` is it with one more."""
        host = None
        if self.host is not None and next_.host is not None:
            net, at_top = (ours + blocks * (theirs - ours) for ours, theirs in zip(self.host, next_.host, strict=True))
            host = (net, at_top)
        return Played(
            self.phase,
            self.net + blocks * (next_.net - self.net),
            self.at_top + blocks * (next_.at_top - self.at_top),
            self.seconds + blocks * (next_.seconds - self.seconds),
            host,
        )


def _cost(cost: Cost, many: int) -> tuple[float, ...]:
    flops, bytes_ = (
        (amount, 0) if many and _constant(amount, many) else _affine(amount, many)
        for amount in (cost.flops, cost.bytes)
    )
    return (*flops, *bytes_, float(cost.kind))


def _constant(amount: int, many: int) -> bool:
    """Whether an amount of `many` rows has nothing to do with them, though it is not much less."""
    b, a = divmod(amount, many)
    return b < LEAST and a > many // 1000


def _affine(amount: int, many: int) -> tuple[int, int]:
    """`a` and `b` of an amount that was counted with `many` rows. One that was not, with 0, is a constant."""
    if not many:
        return amount, 0
    b, a = divmod(amount, many)
    if a > many // 2 or (b and b % many == 0) or (b and many < MANY and _constant(amount, many)):
        raise Irregular("an amount is not an affine function of the rows of the micro-batch")
    return a, b


@dataclass(frozen=True)
class Estimate:
    """What one step would hold and take: bytes by phase, bytes by category at the peak, seconds.

    `host_by_category` is what the host's memory beside the device holds at its own peak.
    """

    peak_by_phase: dict[str, int]
    peak_by_category: dict[str, int]
    seconds: float
    host_by_category: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        return max(self.peak_by_phase.values())


@dataclass(frozen=True)
class Family:
    """All steps of one combination of techniques: any rows, any depth from `depth` on, any number of micro-batches."""

    shallow: Tape
    deeper: Tape | None
    depth: int

    def estimate(self, depth: int, rows: int, accumulation: int, rates: Rates) -> Estimate:
        """Peaks, their composition and seconds of a step of `accumulation` micro-batches of `rows`."""
        played = self.shallow.replay(rows, rates)
        if self.deeper is not None:
            more = self.deeper.replay(rows, rates)
            if [p.phase for p in played] != [p.phase for p in more] or self.shallow.names != self.deeper.names:
                raise Irregular("a deeper model has other phases")
            played = [p.deeper(m, depth - self.depth) for p, m in zip(played, more, strict=True)]
        return _estimate(played, self.shallow.names, accumulation)


def _estimate(played: Sequence[Played], names: tuple[str, ...], accumulation: int) -> Estimate:
    passes = 0
    repeated = max(accumulation + 1 - sum(segment.phase == "forward" for segment in played), 1)
    alive = np.zeros(len(names))
    top = alive
    on_host, host_top = alive, alive
    peaks: dict[str, int] = defaultdict(int)
    seconds = 0.0
    for segment in played:
        passes += segment.phase == "forward"
        beyond = passes == 2 and segment.phase in ("forward", "backward")
        if segment.phase != OUTSIDE and not (beyond and accumulation == 1):
            here = alive + segment.at_top
            peaks[segment.phase] = max(peaks[segment.phase], round(here.sum()))
            if here.sum() > top.sum():
                top = here
            seconds += segment.seconds * (repeated if beyond else 1)
        alive = alive + segment.net
        if segment.host is not None:
            net, at_top = segment.host
            host_top = max(host_top, on_host + at_top, key=np.sum)
            on_host = on_host + net
    by_category, beside = (
        {name: round(amount) for name, amount in zip(names, held, strict=True) if round(amount)}
        for held in (top, host_top)
    )
    return Estimate(dict(peaks), by_category, seconds, beside)
