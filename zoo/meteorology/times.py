"""A time axis: real dates or those of a climate model's calendar, their step, and where it is broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.errors import InputError

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_SECOND = 1 / 3600  # hours: dates that were stored as numbers are not exact to the bit


@dataclass(frozen=True, eq=False)
class TimeAxis:
    """`T` times in order, none twice.

    `values` (T) are ``datetime64[ns]`` or dates of the `cftime` library; `hours` (T) count from the first of them.
    `slots` (T) are places on a lattice of equal steps, so a gap is a number that is missing; a step is `step` hours
    (`unit` ``hours``) or calendar months (``months``; a year is 12). Times that are off the lattice have slot -1 and
    can be in no sample. `step` is 0 for a single time. `notes` counts what was left out and what is missing.
    """

    values: npt.NDArray[Any]
    hours: Floats
    year: Integers
    month: Integers
    day_of_year: Integers
    hour_of_day: Floats
    slots: Integers
    step: float
    unit: str
    calendar: str
    notes: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def step_name(self) -> str:
        """The step in words: ``6 hours``, ``1 month``."""
        return f"{self.step:g} {self.unit.removesuffix('s') if self.step == 1 else self.unit}"

    def label(self, index: int) -> str:
        """A time in words, to the minute."""
        return date_label(self.values[index])

    def index_of_slot(self) -> dict[int, int]:
        """Place on the lattice -> index."""
        return {int(slot): i for i, slot in enumerate(self.slots) if slot >= 0}

    def away(self, start: int, size: float, unit: str) -> int | None:
        """Index of the time `size` hours or months after that of `start` (before it where less than 0), whatever the
        step of the axis and on its lattice or not; None where there is no such time."""
        if unit == "hours":
            wanted = self.hours[start] + size
            near = int(np.argmin(np.abs(self.hours - wanted)))
            return near if abs(self.hours[near] - wanted) < _SECOND else None
        same = np.flatnonzero(self.values == later(self.values[start], size, unit))
        return int(same[0]) if len(same) else None

    def steps(self, hours: float) -> int:
        """How many steps `hours` are. Raises `InputError` where they are no whole number of steps, or the step is
        counted in months, whose hours differ."""
        if len(self) < 2:
            raise InputError(f"lead of {hours:g} hours: the data has one state, and a lead needs two")
        if self.unit != "hours" or self.step == 0:
            raise InputError(
                f"lead of {hours:g} hours: the data has a step of {self.step_name}; give the lead in steps instead"
            )
        count = hours / self.step
        if abs(count - round(count)) > 1e-6 or round(count) < 1:
            raise InputError(
                f"lead of {hours:g} hours is no whole number of the data's steps of {self.step_name}; "
                f"give a multiple of {self.step:g} hours"
            )
        return round(count)


MONTH_HOURS = 365.2425 * 24 / 12
"""Of a mean month, with which forecasts over months are written."""


def later(value: Any, size: float, unit: str) -> Any:
    """The time `size` hours or calendar months after a date of either kind, in the calendar of that date."""
    ours = isinstance(value, np.datetime64)
    if unit == "hours":
        return value + (np.timedelta64(round(size * 3600), "s") if ours else timedelta(hours=size))
    if ours:
        month = value.astype("datetime64[M]")
        return (month + round(size)).astype(value.dtype) + (value - month.astype(value.dtype))
    months = value.month - 1 + round(size)
    return value.replace(year=value.year + months // 12, month=months % 12 + 1)


def real_date(value: Any) -> np.datetime64 | None:
    """A date of either kind as one of the real calendar; None for one that only a climate model's calendar has."""
    try:
        date = np.datetime64(value if isinstance(value, np.datetime64) else str(value.isoformat()))
        return date.astype("datetime64[ns]")  # type: ignore[no-any-return]
    except ValueError:
        return None


def date_label(value: Any) -> str:
    """A date of either kind in words, to the minute."""
    if isinstance(value, np.datetime64):
        return str(value.astype("datetime64[m]"))
    return str(value.strftime("%Y-%m-%dT%H:%M"))


def sort_times(values: npt.NDArray[Any]) -> tuple[Integers, Integers]:
    """Indices that put times in order, each time once, and the indices of the later ones of equal times."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    repeated = np.concatenate([[False], ordered[1:] == ordered[:-1]]) if len(ordered) else np.zeros(0, bool)
    return order[~repeated].astype(np.int64), order[repeated].astype(np.int64)


def time_axis(
    where: str, values: npt.NDArray[Any], *, broken: str = "error", notes: Counter[str] | None = None
) -> TimeAxis:
    """The axis of times that are in order, none twice.

    `broken` says what becomes of gaps and of times off the lattice: ``error`` raises `InputError`, ``skip`` counts
    them in `notes`; the step is the most frequent difference. Raises `InputError` for values that are no dates.
    """
    notes = Counter(notes or {})
    year, month, day, hour, day_of_year, hours, calendar = _parts(where, values)
    slots, step, unit = _lattice(year * 12 + month, day, hour, hours)
    problems = []
    off = np.flatnonzero(slots < 0)
    if len(off):
        notes["times off the regular step"] += len(off)
        problems.append(
            f"{where}: {len(off)} of {len(values)} times are off the regular step of {step:g} {unit} "
            f"(first {date_label(values[off[0]])})"
        )
    on = np.flatnonzero(slots >= 0)
    holes = np.flatnonzero(np.diff(slots[on]) > 1)
    if len(holes):
        missing = int((np.diff(slots[on])[holes] - 1).sum())
        notes["times missing in gaps"] += missing
        first = on[holes[0]]
        problems.append(
            f"{where}: {len(holes)} gaps with {missing} missing times, at a step of {step:g} {unit}; the first is "
            f"after {date_label(values[first])}"
        )
    if problems and broken == "error":
        raise InputError([f"{p}; complete the data, or set unreadable: skip to use what is there" for p in problems])
    return TimeAxis(values, hours, year, month, day_of_year, hour, slots, step, unit, calendar, notes)


def _parts(where: str, values: npt.NDArray[Any]) -> tuple[Any, ...]:
    """Year, month, day, hour with its fraction, day of the year, hours since the first, calendar."""
    if np.issubdtype(values.dtype, np.datetime64):
        years, months, days = (values.astype(f"datetime64[{u}]") for u in "YMD")
        hour = (values - days) / np.timedelta64(1, "h")
        return (
            years.astype(np.int64) + 1970,
            (months - years).astype(np.int64) + 1,
            (days - months).astype(np.int64) + 1,
            hour.astype(np.float64),
            (days - years.astype("datetime64[D]")).astype(np.int64) + 1,
            ((values - values[:1]) / np.timedelta64(1, "h")).astype(np.float64),
            "standard",
        )
    if not all(hasattr(value, "dayofyr") for value in values):
        raise InputError(
            f"{where}: the time coordinate holds {type(values[0]).__name__} and not dates; its units attribute must "
            'read like "hours since 1900-01-01"'
        )

    def integers(name: str) -> Integers:
        return np.array([getattr(value, name) for value in values], dtype=np.int64)

    hour = integers("hour") + integers("minute") / 60 + integers("second") / 3600
    hours = np.array([(value - values[0]).total_seconds() / 3600 for value in values], dtype=np.float64)
    calendar = str(values[0].calendar)
    return integers("year"), integers("month"), integers("day"), hour, integers("dayofyr"), hours, calendar


def _lattice(months: Integers, day: Integers, hour: Floats, hours: Floats) -> tuple[Integers, float, str]:
    """Slots, step and unit. Calendar months where every date is on the same day and hour of its month."""
    if len(hours) < 2:
        return np.zeros(len(hours), np.int64), 0.0, "hours"
    by_month = bool((np.diff(months) >= 1).all() and (day == day[0]).all() and (hour == hour[0]).all())
    count = (months - months[0]).astype(np.float64) if by_month else hours
    differences = np.round(np.diff(count), 6)
    kinds, times = np.unique(differences, return_counts=True)
    step = float(kinds[np.argmax(times)])
    # the first time may itself be off: the lattice goes through the first pair that is one step apart
    anchor = count[int(np.argmax(differences == step))]
    places = (count - anchor) / step
    nearest_place = np.round(places)
    regular = np.abs(places - nearest_place) < 1e-6
    slots = np.where(regular, nearest_place - nearest_place[regular].min(), -1)
    return slots.astype(np.int64), step, "months" if by_month else "hours"


def same_times(one: Sequence[Any] | npt.NDArray[Any], other: Sequence[Any] | npt.NDArray[Any]) -> bool:
    """Whether two axes hold the same times."""
    return len(one) == len(other) and bool(np.all(np.asarray(one) == np.asarray(other)))
