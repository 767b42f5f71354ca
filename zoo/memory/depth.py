"""The trace of a deep model, put together from those of three shallow ones.

In a stack of identical blocks every phase is ``A X X ... X B Y Y ... Y C ...``: loops over the blocks, and what happens
between them. Traces of three depths tell them apart, and how an event of a block finds the storage that it frees: it is
the n-th youngest of those that are still alive of the phase in which it was born, and n changes by a fixed amount from
block to block and from depth to depth. What comes out is the deep model's trace, event by event, as a replay through
an allocator needs it. Where anything does not agree, `Irregular` says so, and only the deep model's own trace tells.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zoo.memory.ledger import Record
from zoo.memory.scaling import Irregular

Codes = NDArray[np.int64]

SHALLOW = (3, 4, 5)
"""Depths that tell any other: where blocks share their weights, the gradients of the first two come in ways of their
own."""

Kind = tuple[int, str, str]
"""The segment in which the storage was born (-1: this is its birth), its label and its device."""


@dataclass(frozen=True)
class _Event:
    """`age` is the storage's position among those alive of its segment, 1 for the youngest; 0 for a birth."""

    kind: Kind
    size: int
    age: int


@dataclass(frozen=True)
class _Slot:
    """An event of any depth; `size` and `age` grow with every block more, `age` also from copy to copy of a block."""

    kind: Kind
    size: tuple[int, int]
    age: tuple[int, int, int]


def deepen(records: Sequence[Record], depths: Sequence[int], depth: int) -> Record:
    """The trace of a model of `depth` blocks from those of three models of evenly spaced `depths`.

    Where a technique treats every second block in another way, depths that differ by two are of one pattern. Costs are
    not in it. Raises `Irregular` where the three are not of one pattern.
    """
    step = depths[1] - depths[0]
    if (
        len(records) != 3
        or step < 1
        or depths[2] - depths[1] != step
        or depth < depths[0]
        or (depth - depths[0]) % step
    ):
        raise ValueError(f"deepen needs traces of three depths on an even way to {depth}, got {list(depths)}")
    phases = [[phase for _, phase in record.marks] for record in records]
    if phases[0] != phases[1] or phases[1] != phases[2]:
        raise Irregular("models of other depths have other phases")
    made = Record(marks=[], cost_marks=[])
    alive: dict[int, list[int]] = defaultdict(list)
    more = (depth - depths[0]) // step
    segments = zip(*(_segments(record) for record in records), strict=True)
    for number, (phase, stretches) in enumerate(zip(phases[0], segments, strict=True)):
        made.marks.append((len(made.events), phase))
        made.cost_marks.append(0)
        for turn, slots in enumerate(_parts(stretches)):
            for copy in range(more if turn % 2 else 1):
                for slot in slots:
                    _append(made, alive, number, slot, more, copy)
    return made


def _append(made: Record, alive: dict[int, list[int]], number: int, slot: _Slot, more: int, copy: int) -> None:
    born, label, device = slot.kind
    size = slot.size[0] + slot.size[1] * more
    if born < 0:
        index = len(made.sizes)
        made.sizes.append(size)
        made.devices.append(device)
        made.labels[index] = label
        made.events.append(index + 1)
        alive[number].append(index)
        return
    living = alive[born]
    age = slot.age[0] + slot.age[1] * more + slot.age[2] * copy
    index = living.pop(-age) if 0 < age <= len(living) else -1
    if index < 0 or (made.sizes[index], made.labels[index], made.devices[index]) != (size, label, device):
        raise Irregular("an event of a deeper model frees a storage of another kind")
    made.events.append(-(index + 1))


def _segments(record: Record) -> list[list[_Event]]:
    """The events of each stretch between two marks, with the ages of what they free."""
    ends = [*(start for start, _ in record.marks[1:]), len(record.events)]
    alive: dict[int, list[int]] = defaultdict(list)
    home: dict[int, int] = {}
    found = []
    for number, ((start, _), end) in enumerate(zip(record.marks, ends, strict=True)):
        segment = []
        for event in record.events[start:end]:
            index = abs(event) - 1
            if event == 0:
                raise Irregular("the cache is emptied while training")
            size, facts = record.sizes[index], (record.labels[index], record.devices[index])
            if event > 0:
                segment.append(_Event((-1, *facts), size, 0))
                home[index] = number
                alive[number].append(index)
            else:
                living = alive[home[index]]
                place = bisect.bisect_left(living, index)
                segment.append(_Event((home[index], *facts), size, len(living) - place))
                del living[place]
        found.append(segment)
    return found


def _parts(stretches: Sequence[list[_Event]]) -> list[list[_Slot]]:
    """One phase from its stretches at three depths: by turns what every depth has once, and what each block repeats."""
    first, second, third = stretches
    width = len(second) - len(first)
    if width < 0 or len(third) - len(second) != width:
        raise Irregular("a phase does not grow evenly with depth")
    numbers: dict[Kind, int] = {}
    codes = [
        np.array([(numbers.setdefault(e.kind, len(numbers)), e.size) for e in one], np.int64).reshape(-1, 2)
        for one in stretches
    ]
    inserted = _insertions(codes[0], codes[1], codes[2], (0, 0, 0), width)
    if inserted is None:
        raise Irregular("a phase does not repeat itself with every block")
    parts: list[list[_Slot]] = []
    i = j = k = 0
    for latest, wide in [*inserted, (len(first), 0)]:
        place = latest - _overlap(first[i:latest], second[j:], third[k:], wide)
        once = place - i
        fixed = zip(first[i:place], second[j : j + once], third[k : k + once], strict=True)
        parts.append([_once(*events) for events in fixed])
        i, j, k = place, j + once, k + once
        block = zip(second[j : j + wide], third[k : k + wide], third[k + wide : k + 2 * wide], strict=True)
        parts.append([_repeated(*events) for events in block])
        j, k = j + wide, k + 2 * wide
    return parts


def _insertions(
    a: Codes, b: Codes, c: Codes, at: tuple[int, int, int], left: int, *, inserted: bool = False
) -> list[tuple[int, int]] | None:
    """Where in `a`, from `at` on, `b` has (position, width) more and `c` twice as much; `left` is the sum of widths."""
    i, j, k = at
    run = _common(a[i:], b[j:], c[k:])
    i, j, k = i + run, j + run, k + run
    for width in range(1, left + 1) if run or not inserted else ():
        if i < len(a) and (j + width >= len(b) or a[i, 0] != b[j + width, 0]):
            continue
        block = b[j : j + width]
        if not (np.array_equal(block, c[k : k + width]) and np.array_equal(block, c[k + width : k + 2 * width])):
            continue
        rest = _insertions(a, b, c, (i, j + width, k + 2 * width), left - width, inserted=True)
        if rest is not None:
            return [(i, width), *rest]
    if i == len(a):
        return [] if left == 0 else None
    # What is not of a block may grow with the number of blocks, such as a layer that reads the outputs of all.
    same_kind = j < len(b) and k < len(c) and a[i, 0] == b[j, 0] == c[k, 0]
    if same_kind and b[j, 1] - a[i, 1] == c[k, 1] - b[j, 1]:
        return _insertions(a, b, c, (i + 1, j + 1, k + 1), left)
    return None


def _overlap(first: list[_Event], second: list[_Event], third: list[_Event], wide: int) -> int:
    """How many of the last events of `first` come after the inserted `wide` ones and not before them.

    Events after the last block may look like the first of a block; where they found what they free tells them apart.
    """
    end = len(first)
    most = 0
    while wide and most < min(end, wide - 1) and _alike(first[end - most - 1], second[end - most - 1 + wide]):
        most += 1
    wrong = [
        sum(not _even(first[q], second[q], third[q]) for q in range(end - most, end - shift))
        + sum(not _even(first[q], second[q + wide], third[q + 2 * wide]) for q in range(end - shift, end))
        for shift in range(most + 1)
    ]
    return wrong.index(min(wrong))


def _alike(one: _Event, other: _Event) -> bool:
    return (one.kind, one.size) == (other.kind, other.size)


def _even(first: _Event, second: _Event, third: _Event) -> bool:
    return second.age - first.age == third.age - second.age


def _common(*codes: Codes) -> int:
    """Length of what the sequences have in common at their beginning."""
    shortest = min(len(one) for one in codes)
    differs = np.zeros(shortest, bool)
    for one in codes[1:]:
        differs |= (one[:shortest] != codes[0][:shortest]).any(axis=1)
    return int(np.argmax(differs)) if differs.any() else shortest


def _once(first: _Event, second: _Event, third: _Event) -> _Slot:
    """An event that every depth has once."""
    if not _even(first, second, third):
        raise Irregular("what is freed around the blocks does not follow from the number of blocks")
    return _Slot(first.kind, (first.size, second.size - first.size), (first.age, second.age - first.age, 0))


def _repeated(alone: _Event, earlier: _Event, later: _Event) -> _Slot:
    """An event of the block: that of the model with one more block, and both of that with two more."""
    deeper = earlier.age - alone.age
    return _Slot(alone.kind, (alone.size, 0), (alone.age - deeper, deeper, later.age - earlier.age))
