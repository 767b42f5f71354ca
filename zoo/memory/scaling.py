"""From four small traces to any micro-batch and any depth.

Two facts make this possible:

1. In a trace, the bytes of every storage are an affine function of the rows of the micro-batch (``a + b * rows``),
   and the order of events does not depend on them. Two traces with different rows give `a` and `b` of every event,
   and replaying the events with them gives the exact peaks for any rows. `Irregular` is raised where it is not so.
2. In a stack of identical blocks, the net change of every phase and its peak above where it began grow by the same
   amount with every block. Traces of two shallow models give both. A test compares this with full traces, and the
   planner confirms the plan that it chooses by one full trace.

A step with two micro-batches contains the step with one (its first forward and backward, and its optimizer) and,
repeated, that with more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zoo.memory.ledger import OUTSIDE, Record
from zoo.memory.roofline import Rates

Array = NDArray[np.float64]


class Irregular(Exception):
    """The traces do not have the structure that scaling needs; only a full trace tells."""


@dataclass(frozen=True)
class Segment:
    """One stretch of one phase: events (columns a, b), their categories, operations (flops a, b, bytes a, b, half)."""

    phase: str
    events: Array
    categories: NDArray[np.int64]
    costs: Array


@dataclass(frozen=True)
class Tape:
    """A trace as a function of the rows of its micro-batch."""

    segments: tuple[Segment, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, first: Record, second: Record, rows: tuple[int, int]) -> Tape:
        """From two traces of the same model that differ in rows only."""
        if first.events != second.events or first.marks != second.marks or len(first.costs) != len(second.costs):
            raise Irregular("the order of allocations depends on the rows of the micro-batch")
        names = tuple(sorted(set(first.labels.values())))
        codes = np.array([names.index(first.labels[i]) for i in range(len(first.sizes))], dtype=np.int64)
        events = np.abs(np.array(first.events, dtype=np.int64)) - 1
        deltas = _affine(first.deltas().astype(float), second.deltas().astype(float), rows)
        tables = [np.array([(c.flops, c.bytes) for c in r.costs], dtype=float).reshape(-1, 2) for r in (first, second)]
        half = np.array([c.half for c in first.costs], dtype=float)
        flops, moved = (_affine(tables[0][:, k], tables[1][:, k], rows) for k in (0, 1))
        costs = np.concatenate([flops, moved, half[:, None]], axis=1)
        ends = [*(start for start, _ in first.marks[1:]), len(first.events)]
        cost_ends = [*first.cost_marks[1:], len(first.costs)]
        segments = [
            Segment(phase, deltas[start:end], codes[events[start:end]], costs[cost_start:cost_end])
            for (start, phase), end, cost_start, cost_end in zip(
                first.marks, ends, first.cost_marks, cost_ends, strict=True
            )
        ]
        return cls(tuple(segments), names)

    def replay(self, rows: int, rates: Rates) -> list[Played]:
        """Every segment with its net change, its peak above where it began, and its time."""
        played = []
        for segment in self.segments:
            deltas = segment.events[:, 0] + segment.events[:, 1] * rows
            levels = np.concatenate([[0.0], np.cumsum(deltas)])
            top = int(np.argmax(levels))
            count = len(self.names)
            net = np.bincount(segment.categories, weights=deltas, minlength=count).astype(float)
            at_top = np.bincount(segment.categories[:top], weights=deltas[:top], minlength=count).astype(float)
            played.append(Played(segment.phase, net, at_top, rates.seconds(segment.costs, rows)))
        return played


@dataclass(frozen=True)
class Played:
    """Bytes by category that a segment leaves (`net`) and adds at its highest point (`at_top`), and seconds."""

    phase: str
    net: Array
    at_top: Array
    seconds: float

    def deeper(self, next_: Played, blocks: int) -> Played:
        """This segment with `blocks` more blocks, where `next_` is it with one more."""
        return Played(
            self.phase,
            self.net + blocks * (next_.net - self.net),
            self.at_top + blocks * (next_.at_top - self.at_top),
            self.seconds + blocks * (next_.seconds - self.seconds),
        )


def _affine(first: Array, second: Array, rows: tuple[int, int]) -> Array:
    slope = (second - first) / (rows[1] - rows[0])
    return np.stack([first - slope * rows[0], slope], axis=1)


@dataclass(frozen=True)
class Estimate:
    """What one step would hold and take: bytes by phase, bytes by category at the peak, seconds."""

    peak_by_phase: dict[str, int]
    peak_by_category: dict[str, int]
    seconds: float

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
    alive = np.zeros(len(names))
    top = alive
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
            seconds += segment.seconds * (accumulation - 1 if beyond else 1)
        alive = alive + segment.net
    return Estimate(
        dict(peaks),
        {name: round(amount) for name, amount in zip(names, top, strict=True) if round(amount)},
        seconds,
    )
