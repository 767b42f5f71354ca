"""Samples in time: what each touches, random lead times, and parts that no sample crosses.

A sample is a series, an initial time and, drawn for each epoch, a lead. It belongs to a part only if everything it
touches at any of its leads (history, initial state, all targets) lies in that part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.errors import InputError
from zoo.meteorology.fields import Fields
from zoo.meteorology.times import TimeAxis

PARTS = ("train", "valid", "test")
Integers = npt.NDArray[np.int64]
State = tuple[int, int]
"""Series and index of time."""


@dataclass(frozen=True)
class Window:
    """The times of a sample in steps of the data: `history` states, `every` steps apart, the last of them the initial.

    `leads` are those that a lead is drawn from, 0 alone for the initial time itself; with a `rollout` of r the targets
    are at 1, 2 ... r times the lead.
    """

    leads: tuple[int, ...] = (1,)
    history: int = 1
    every: int = 1
    rollout: int = 1

    def __post_init__(self) -> None:
        if self.leads != (0,) and (not self.leads or min(self.leads) < 1 or len(set(self.leads)) < len(self.leads)):
            raise InputError(f"leads: {list(self.leads)}; give different whole numbers of steps, 1 or more")
        if min(self.history, self.every, self.rollout) < 1:
            raise InputError(
                f"history {self.history}, every {self.every}, rollout {self.rollout}: each is a whole number >= 1"
            )

    @property
    def before(self) -> tuple[int, ...]:
        """Steps of the states that are given, relative to the initial time: oldest first, 0 last."""
        return tuple(-self.every * k for k in range(self.history - 1, -1, -1))

    def after(self, lead: int) -> tuple[int, ...]:
        """Steps of the targets at a lead."""
        return tuple(lead * k for k in range(1, self.rollout + 1))

    @property
    def touched(self) -> tuple[int, ...]:
        """Every step that a sample can touch, in order."""
        return tuple(sorted({*self.before, *(step for lead in self.leads for step in self.after(lead))}))


def lead_range(shortest: int, longest: int, every: int = 1) -> tuple[int, ...]:
    """Leads from the shortest to the longest, both included.

    Raises `InputError` where `every` steps over the longest.
    """
    if not 1 <= shortest <= longest or every < 1 or (longest - shortest) % every:
        raise InputError(
            f"leads from {shortest} to {longest} every {every} steps; needed are 1 <= shortest <= longest, a whole "
            "number of strides apart so that the longest is among them"
        )
    return tuple(range(shortest, longest + 1, every))


# ---------------------------------------------------------------------------------------------------------- parts


def parts_by_fractions(axes: Sequence[TimeAxis], fractions: tuple[float, float, float]) -> list[Integers]:
    """A part (index into PARTS) for every time of every series: the earliest times train, the latest test.

    The same time is in the same part in all series, so that neither members of an ensemble nor scenarios with a
    common past can leak. Raises `InputError` for fractions that do not add up to 1, and for too few times.
    """
    if min(fractions) < 0 or fractions[0] <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(
            f"data.split.fractions: {list(fractions)}; give shares of train, valid and test that add up to 1, "
            "the first more than 0"
        )
    times = _all_times(axes)
    ends = np.round(np.cumsum(fractions) * len(times)).astype(int)
    starts = [0, *ends[:-1]]
    empty = [part for part, share, a, b in zip(PARTS, fractions, starts, ends, strict=True) if share > 0 and a == b]
    if empty:
        raise InputError(f"data.split.fractions: {len(times)} times are too few for {', '.join(empty)}")
    borders = [times[end] if end < len(times) else None for end in ends[:-1]]
    found = []
    for axis in axes:
        part = np.zeros(len(axis), dtype=np.int64)
        for border in borders:
            if border is not None:
                part += axis.values >= border
        found.append(part)
    return found


def parts_by_years(axes: Sequence[TimeAxis], years: Mapping[str, tuple[int, int]]) -> list[Integers]:
    """A part for every time by its year, first and last year included; -1 for years of no part.

    Raises `InputError` for a part that is unknown or missing, years that overlap or are not in the data.
    """
    problems = [f'task: years: "{name}" is not one of {", ".join(PARTS)}' for name in years if name not in PARTS]
    if "train" not in years:
        problems.append("task: years: no years for train")
    spans = sorted((span, name) for name, span in years.items())
    problems += [f"task: years: {name} from {a} to {b} ends before it begins" for (a, b), name in spans if b < a]
    problems += [
        f"task: years: {one} ({a} to {b}) and {other} ({c} to {d}) overlap"
        for ((a, b), one), ((c, d), other) in pairwise(spans)
        if c <= b
    ]
    found = [np.full(len(axis), -1, dtype=np.int64) for axis in axes]
    for (first, last), name in spans:
        inside = [(axis.year >= first) & (axis.year <= last) for axis in axes]
        if name in PARTS:
            for part, mine in zip(found, inside, strict=True):
                part[mine] = PARTS.index(name)
        if not any(mine.any() for mine in inside):
            low, high = min(int(a.year.min()) for a in axes), max(int(a.year.max()) for a in axes)
            problems.append(f"task: years: no time for {name} from {first} to {last}; the data is of {low} to {high}")
    if problems:
        raise InputError(problems)
    return found


def parts_by_series(axes: Sequence[TimeAxis], names: Sequence[str]) -> list[Integers]:
    """All times of a series in the part that is named for it; -1 for ``none``. Use `find_leaks` afterwards.

    Raises `InputError` for other names, another number of them, and where none is train.
    """
    wrong = [name for name in names if name not in (*PARTS, "none")]
    if wrong or len(names) != len(axes) or "train" not in names:
        raise InputError(
            f"task: series: {list(names)} for {len(axes)} series; give train, valid, test or none for each, "
            "train at least once"
        )
    known = [*PARTS, "none"]
    return [
        np.full(len(axis), -1 if name == "none" else known.index(name), dtype=np.int64)
        for axis, name in zip(axes, names, strict=True)
    ]


def _all_times(axes: Sequence[TimeAxis]) -> npt.NDArray[Any]:
    calendars = {axis.calendar for axis in axes}
    if len(calendars) != 1:
        raise InputError(
            f"data.split: series with calendars {', '.join(sorted(calendars)) or 'none'} cannot be put in one order of "
            "time; split by years or by series"
        )
    return np.array(sorted({time for axis in axes for time in list(axis.values)}))


# -------------------------------------------------------------------------------------------------------- samples


@dataclass(frozen=True, eq=False)
class Samples:
    """The `N` samples of a part: `series` (N) and `start` (N), the index of the initial time in the series' axis.

    `lost` says how many initial times of the part make no sample, by reason. `indices_by_step` are, for each series,
    the index of every place on its lattice (-1: no such time).
    """

    window: Window
    series: Integers
    start: Integers
    axes: tuple[TimeAxis, ...]
    lookup: tuple[Integers, ...]
    lost: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.start)

    def leads(self, seed: int, epoch: int) -> Integers:
        """A lead for each sample (N), drawn evenly from all of the window's, the longest included; new each epoch."""
        return np.random.default_rng([seed, epoch, 0]).choice(np.array(self.window.leads), len(self)).astype(np.int64)

    def order(self, seed: int, epoch: int, *, block: int = 1) -> Integers:
        """The samples (N) in random order.

        With a `block` (times that are stored together) neighbours in time stay together in runs of that many, so
        that each stored chunk is read once; the runs of eight random blocks are mixed with each other.
        """
        draw = np.random.default_rng([seed, epoch, 1])
        if block <= 1:
            return draw.permutation(len(self)).astype(np.int64)
        keys = np.stack([self.series, self.start // block])
        _, number = np.unique(keys, axis=1, return_inverse=True)
        place = draw.permutation(int(number.max()) + 1 if len(self) else 0)[number] // 8
        return np.lexsort([draw.random(len(self)), place]).astype(np.int64)

    def indices(self, sample: int, lead: int) -> tuple[list[int], list[int]]:
        """Indices of time of the given states and of the targets."""
        series = int(self.series[sample])
        slot = int(self.axes[series].slots[self.start[sample]])
        lookup = self.lookup[series]
        return (
            [int(lookup[slot + step]) for step in self.window.before],
            [int(lookup[slot + step]) for step in self.window.after(lead)],
        )

    def touched(self, sample: int) -> list[State]:
        """Every state that a sample can touch, at any of its leads."""
        series = int(self.series[sample])
        slot = int(self.axes[series].slots[self.start[sample]])
        return [(series, int(self.lookup[series][slot + step])) for step in self.window.touched]

    def states(self) -> set[State]:
        """Every state that any sample can touch."""
        found: set[State] = set()
        for number, (axis, lookup) in enumerate(zip(self.axes, self.lookup, strict=True)):
            slots = axis.slots[self.start[self.series == number]]
            for step in self.window.touched:
                found.update((number, int(i)) for i in lookup[slots + step])
        return found

    def only(self, keep: npt.NDArray[np.bool_], reason: str) -> Samples:
        """The samples that are kept; the others are counted as lost for a reason."""
        lost = self.lost + Counter({reason: int((~keep).sum())})
        return replace(self, series=self.series[keep], start=self.start[keep], lost=lost)


def make_samples(
    axes: Sequence[TimeAxis],
    parts: Sequence[Integers],
    window: Window,
    unreadable: Sequence[Collection[int]] = (),
) -> dict[str, Samples]:
    """Samples of each part (``train``, ``valid``, ``test``), in the order of series and time.

    `parts` is what ``parts_by_...`` return, `unreadable` the indices of times that no sample may touch. Initial times
    that make no sample are counted by reason in `Samples.lost`. Raises `InputError` where no part has any sample of
    its own for training.
    """
    slots = [axis.slots for axis in axes]
    lookup = tuple(_lookup(s) for s in slots)
    touched = np.array(window.touched)
    chosen: dict[str, list[tuple[Integers, Integers]]] = {part: [] for part in PARTS}
    lost: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    for number, axis in enumerate(axes):
        bad = np.zeros(len(axis), dtype=bool)
        bad[list(unreadable[number]) if unreadable else []] = True
        places = slots[number][:, None] + touched[None]
        beyond = (places < 0) | (places >= len(lookup[number]))
        index = lookup[number][np.where(beyond, 0, places)]
        own = parts[number]
        reasons = (
            ("off the regular step", slots[number] < 0),
            ("at the ends of the data", beyond.any(axis=1)),
            ("at gaps in time", (index < 0).any(axis=1)),
            ("touching unreadable times", bad[index].any(axis=1)),
            ("across a boundary of parts", (parts[number][index] != own[:, None]).any(axis=1)),
        )
        left = own >= 0
        for reason, mine in reasons:
            for code in np.unique(own[left & mine]):
                lost[PARTS[code]][reason] += int((left & mine & (own == code)).sum())
            left &= ~mine
        for code, part in enumerate(PARTS):
            start = np.flatnonzero(left & (own == code))
            chosen[part].append((np.full(len(start), number), start))
    found = {
        part: Samples(
            window,
            np.concatenate([series for series, _ in pairs]).astype(np.int64),
            np.concatenate([start for _, start in pairs]).astype(np.int64),
            tuple(axes),
            lookup,
            +lost[part],
        )
        for part, pairs in chosen.items()
    }
    if not len(found["train"]):
        why = ", ".join(f"{count} {reason}" for reason, count in lost["train"].items()) or "it has no times"
        raise InputError(
            f"data.split: no sample for training ({why}); a sample touches steps {touched[0]} to {touched[-1]} around "
            "its initial time: use shorter leads or history, or a larger training part"
        )
    return found


def _lookup(slots: Integers) -> Integers:
    found = np.full(int(slots.max(initial=-1)) + 1, -1, dtype=np.int64)
    on = np.flatnonzero(slots >= 0)
    found[slots[on]] = on
    return found


# ------------------------------------------------------------------------------------------------------------ one


@dataclass(frozen=True, eq=False)
class Sample:
    """Arrays of a sample: `inputs` (S V H W) with S states of history, `targets` (R O H W) with R steps of rollout.

    `hours` (R) from the initial time to each target, `lead` in steps, `time` the initial time's date.
    """

    inputs: npt.NDArray[np.float32]
    targets: npt.NDArray[np.float32]
    hours: npt.NDArray[np.float64]
    lead: int
    time: Any


def read_sample(
    series: Sequence[Fields],
    samples: Samples,
    sample: int,
    lead: int | None = None,
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> Sample:
    """Read one sample at a `lead` (None: the window's longest). Units are those of the table of names."""
    lead = max(samples.window.leads) if lead is None else int(lead)
    fields = series[int(samples.series[sample])]
    given, wanted = samples.indices(sample, lead)
    axis = fields.axis
    start = int(samples.start[sample])
    hours = axis.hours[wanted] - axis.hours[start]
    return Sample(fields.read(given, inputs), fields.read(wanted, outputs), hours, lead, axis.values[start])
