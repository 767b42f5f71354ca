"""From three small traces to any batch and any depth, exactly.

Three facts make this possible, and each is checked, not assumed:

1. In a trace, the bytes of every storage are an affine function of the rows of the micro-batch (``a + b * rows``),
   and the order of events does not depend on them. Two traces with different rows give `a` and `b` of every event.
2. A stack of identical blocks repeats one unit of events. Comparing the traces of one and two blocks shows the
   unit and where it goes; repeating it gives the trace of any depth.
3. A step with two micro-batches contains the step with one: its first forward and backward, and its optimizer.

The result is a sequence of events as the full trace would record it, so that its peaks are those of the full trace
(a test compares them), wherever in the step they lie.
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
    """The events of one stretch of one phase: bytes ``a + b * rows`` each, with a category; and its operations.

    `events` has the columns a, b; `costs` the columns flops a, b, bytes a, b, half.
    """

    phase: str
    events: Array
    categories: tuple[str, ...]
    costs: Array

    def deltas(self, rows: int) -> Array:
        deltas: Array = self.events[:, 0] + self.events[:, 1] * rows
        return deltas


def _events_of(record: Record, start: int, end: int) -> tuple[Array, tuple[str, ...]]:
    events = record.events[start:end]
    deltas = np.array([np.sign(e) * record.sizes[abs(e) - 1] for e in events], dtype=np.float64)
    return deltas, tuple(record.labels[abs(e) - 1] for e in events)


def _segments(record: Record, other: Record, rows: tuple[int, int]) -> list[Segment]:
    """Segments of two traces that differ in rows only."""
    if record.events != other.events or record.marks != other.marks or len(record.costs) != len(other.costs):
        raise Irregular("the order of allocations depends on the rows of the micro-batch")
    span = rows[1] - rows[0]
    found = []
    bounds = [*record.marks[1:], (len(record.events), OUTSIDE)]
    cost_marks = [*record.cost_marks[1:], len(record.costs)]
    spans = zip(record.marks, bounds, record.cost_marks, cost_marks, strict=True)
    for (start, phase), (end, _), cost_start, cost_end in spans:
        first, categories = _events_of(record, start, end)
        second, _ = _events_of(other, start, end)
        slope = (second - first) / span
        costs = [record.costs[cost_start:cost_end], other.costs[cost_start:cost_end]]
        table = np.zeros((cost_end - cost_start, 5))
        for i, (a, b) in enumerate(zip(*costs, strict=True)):
            flops, moved = (b.flops - a.flops) / span, (b.bytes - a.bytes) / span
            table[i] = (a.flops - flops * rows[0], flops, a.bytes - moved * rows[0], moved, a.half)
        found.append(Segment(phase, np.stack([first - slope * rows[0], slope], axis=1), categories, table))
    return found


def _insertion(short: Array, long: Array) -> tuple[int, int]:
    """Where `long` has one more unit than `short`, and the unit's length."""
    unit = len(long) - len(short)
    if unit < 0:
        raise Irregular("a deeper model does less")
    same = np.all(short == long[: len(short)], axis=-1) if short.ndim > 1 else short == long[: len(short)]
    position = len(short) if same.all() else int(np.argmin(same))
    tail = long[position + unit :]
    if not np.array_equal(tail, short[position:]):
        raise Irregular("blocks do not repeat one unit of allocations")
    if unit and not (
        position >= unit and np.array_equal(long[position - unit : position], long[position : position + unit])
    ):
        raise Irregular("blocks do not repeat one unit of allocations")
    return position, unit


@dataclass(frozen=True)
class Family:
    """All steps of one combination of techniques: any rows per micro-batch, any depth, one or more micro-batches."""

    segments: tuple[Segment, ...]
    units: tuple[tuple[int, int, int, int], ...] | None
    """Per segment: position and length of the unit in events, and in costs."""

    @classmethod
    def of(cls, one: tuple[Record, Record], two: Record | None, rows: tuple[int, int]) -> Family:
        """From traces of a one-block model at both `rows`, and of a two-block model at the first of them."""
        segments = _segments(*one, rows)
        if two is None:
            return cls(tuple(segments), None)
        if [phase for _, phase in two.marks] != [s.phase for s in segments]:
            raise Irregular("a deeper model has other phases")
        ends = [*(m[0] for m in two.marks[1:]), len(two.events)]
        cost_ends = [*two.cost_marks[1:], len(two.costs)]
        units = []
        for i, segment in enumerate(segments):
            deltas, _ = _events_of(two, two.marks[i][0], ends[i])
            costs = np.array([(c.flops, c.bytes) for c in two.costs[two.cost_marks[i] : cost_ends[i]]]).reshape(-1, 2)
            table = segment.costs
            known = np.stack([table[:, 0] + table[:, 1] * rows[0], table[:, 2] + table[:, 3] * rows[0]], axis=1)
            units.append((*_insertion(segment.deltas(rows[0]), deltas), *_insertion(known, costs)))
        return cls(tuple(segments), tuple(units))

    def _at(self, depth: int) -> list[Segment]:
        if self.units is None or depth == 1:
            return list(self.segments)
        deep = []
        for segment, (position, unit, cost_position, cost_unit) in zip(self.segments, self.units, strict=True):
            repeat = slice(position - unit, position)
            copies = depth - 1
            events = np.concatenate(
                [segment.events[:position], np.tile(segment.events[repeat], (copies, 1)), segment.events[position:]]
            )
            cats = segment.categories
            categories = (*cats[:position], *(cats[repeat] * copies), *cats[position:])
            table = segment.costs
            costs = np.concatenate(
                [
                    table[:cost_position],
                    np.tile(table[cost_position - cost_unit : cost_position], (copies, 1)),
                    table[cost_position:],
                ]
            )
            deep.append(Segment(segment.phase, events, categories, costs))
        return deep

    def estimate(self, depth: int, rows: Sequence[int], accumulation: Sequence[int], rates: Rates) -> list[Estimate]:
        """Peaks, their composition and seconds for each of `rows` with its number of micro-batches."""
        segments = self._at(depth)
        return [_estimate(segments, r, a, rates) for r, a in zip(rows, accumulation, strict=True)]


@dataclass(frozen=True)
class Estimate:
    """What one step would hold and take: bytes by phase, bytes by category at the peak, seconds."""

    peak_by_phase: dict[str, int]
    peak_by_category: dict[str, int]
    seconds: float

    @property
    def peak(self) -> int:
        return max(self.peak_by_phase.values())


def _estimate(segments: list[Segment], rows: int, accumulation: int, rates: Rates) -> Estimate:
    passes = 0
    alive = 0.0
    top, top_at = -1.0, (0, 0)
    peaks: dict[str, float] = defaultdict(float)
    seconds = 0.0
    for i, segment in enumerate(segments):
        passes += segment.phase == "forward"
        skipped = accumulation == 1 and passes == 2 and segment.phase in ("forward", "backward")
        levels = alive + np.concatenate([[0.0], np.cumsum(segment.deltas(rows))])
        alive = levels[-1]
        if segment.phase == OUTSIDE or skipped:
            continue
        highest = int(np.argmax(levels))
        peaks[segment.phase] = max(peaks[segment.phase], levels[highest])
        if levels[highest] > top:
            top, top_at = levels[highest], (i, highest)
        repeats = accumulation - 1 if passes == 2 and segment.phase != "optimizer" else 1
        seconds += repeats * rates.seconds(segment.costs, rows)
    held: dict[str, float] = defaultdict(float)
    for i, segment in enumerate(segments[: top_at[0] + 1]):
        last = top_at[1] if i == top_at[0] else len(segment.categories)
        for category, delta in zip(segment.categories[:last], segment.deltas(rows)[:last], strict=True):
            held[category] += delta
    return Estimate(
        {phase: round(value) for phase, value in peaks.items()},
        {category: round(value) for category, value in sorted(held.items()) if round(value)},
        seconds,
    )
