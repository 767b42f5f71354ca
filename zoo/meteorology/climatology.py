"""What is usual at a time of the year: the mean of training years, by month or by day of the year and hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from zoo.errors import InputError, unknown
from zoo.meteorology.fields import Fields
from zoo.meteorology.saving import restore, save
from zoo.meteorology.times import TimeAxis

Array = npt.NDArray[np.float64]
GROUPINGS = ("month", "day", "all")
DAYS = 366
_KIND = "a climatology"


class Usual(Protocol):
    """What knows what is usual at any time, of the fields `names`."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def at(self, axis: TimeAxis, index: int, names: Sequence[str]) -> npt.NDArray[np.float32]:
        """Fields (V H W) at a time of an axis."""
        ...


@dataclass(frozen=True, eq=False)
class Climatology:
    """`mean` (G V H W) of G groups of times, in the units of the table of names, and `count` (G) of times in each.

    With grouping ``month`` there are 12 groups. With ``day`` there is one for each day of the year (1 to 366) and each
    of `hours`; the mean is over `window_days` days on either side too (all alike), across the turn of the year. With
    ``all`` there is one group: the mean state, of a world without seasons or of data of less than a year.
    """

    names: tuple[str, ...]
    grouping: str
    hours: tuple[float, ...]
    window_days: int
    mean: npt.NDArray[np.float32]
    count: npt.NDArray[np.int64]

    def at(self, axis: TimeAxis, index: int, names: Sequence[str] | None = None) -> npt.NDArray[np.float32]:
        """What is usual at a time of any axis: (V H W). Raises `InputError` where training had no such time."""
        group = int(_groups(axis, self.grouping, self.hours)[index])
        if group < 0 or not self.count[group]:
            when = f"month {axis.month[index]}" if self.grouping == "month" else _day(axis, index)
            raise InputError(
                f"climatology: no training time for {when} ({axis.label(index)}); train on whole years, "
                "or widen the window"
            )
        if names is None:
            return self.mean[group]  # type: ignore[no-any-return]
        problems = [unknown("climatology", "field", name, self.names) for name in names if name not in self.names]
        if problems:
            raise InputError(problems)
        return self.mean[group][[self.names.index(name) for name in names]]  # type: ignore[no-any-return]


def _day(axis: TimeAxis, index: int) -> str:
    return f"day {axis.day_of_year[index]} of the year at {axis.hour_of_day[index]:g} h"


def measure_climatology(
    series: Sequence[Fields],
    times: Sequence[Sequence[int] | npt.NDArray[Any]],
    *,
    grouping: str | None = None,
    window_days: int = 30,
    names: Sequence[str] | None = None,
) -> Climatology:
    """The climatology of the given indices of time of each series: those of the training part, and no others.

    `grouping` None is ``month`` where the data has a step of a month or more, else ``day``. One pass; memory is that
    of the groups (366 x hours x V x H x W x 8 bytes by day) whatever the number of years. `window_days` 30 are the
    61 days of WeatherBench 2 (Rasp et al. 2024, section 3.2), there with Gaussian weights, here with equal ones. Raises
    `InputError` for another grouping and where there are no times.
    """
    grouping = grouping or ("month" if series and series[0].axis.unit == "months" else "day")
    if grouping not in GROUPINGS:
        raise InputError(unknown("climatology", "grouping", grouping, GROUPINGS))
    if not 0 <= window_days <= 182:
        raise InputError(f"climatology: a window of {window_days} days on either side; give 0 to 182")
    if not series or len(series) != len(times) or not sum(len(indices) for indices in times):
        raise InputError("climatology: no training times; give a list of times for each series")
    chosen = tuple(series[0].names if names is None else names)
    pairs = [(fields, np.asarray(indices, dtype=np.int64)) for fields, indices in zip(series, times, strict=True)]
    hours = tuple(sorted({float(hour) for fields, indices in pairs for hour in fields.axis.hour_of_day[indices]}))
    groups = {"month": 12, "day": DAYS * len(hours), "all": 1}[grouping]
    total = np.zeros((groups, len(chosen), *series[0].grid.shape))
    count = np.zeros(groups, dtype=np.int64)
    for fields, indices in pairs:
        place = _groups(fields.axis, grouping, hours)
        for index in indices:
            total[place[index]] += fields.read(int(index), chosen)
            count[place[index]] += 1
    if grouping == "day" and window_days:
        total, count = (_windowed(values, len(hours), window_days) for values in (total, count))
    filled = np.maximum(count, 1).reshape(-1, 1, 1, 1)
    total /= filled
    return Climatology(
        chosen, grouping, hours if grouping == "day" else (), window_days if grouping == "day" else 0,
        total.astype(np.float32), count,
    )  # fmt: skip


def _groups(axis: TimeAxis, grouping: str, hours: Sequence[float]) -> npt.NDArray[np.int64]:
    """The group of each time; -1 where its hour is not among `hours`."""
    if grouping == "month":
        return axis.month - 1
    if grouping == "all":
        return np.zeros(len(axis), dtype=np.int64)
    place = {hour: i for i, hour in enumerate(hours)}
    hour = np.array([place.get(float(h), -1) for h in axis.hour_of_day], dtype=np.int64)
    return np.where(hour < 0, -1, (axis.day_of_year - 1) * len(hours) + hour)


def _windowed(values: npt.NDArray[Any], hours: int, days: int) -> npt.NDArray[Any]:
    """Sums over the days around each day, across the turn of the year; groups are in order of day, then hour."""
    by_day = values.reshape(DAYS, hours, *values.shape[1:])
    padded = np.concatenate([by_day[-days:], by_day, by_day[:days]])
    found = np.zeros_like(by_day)
    running = padded[: 2 * days + 1].sum(axis=0)
    for day in range(DAYS):
        found[day] = running
        if day + 1 < DAYS:
            running = running + padded[day + 2 * days + 1] - padded[day]
    return found.reshape(values.shape)


def save_climatology(path: Path, climatology: Climatology) -> None:
    """Write a climatology to one file."""
    facts = {
        "names": list(climatology.names), "grouping": climatology.grouping, "hours": list(climatology.hours),
        "window_days": climatology.window_days,
    }  # fmt: skip
    save(path, _KIND, facts, {"mean": climatology.mean, "count": climatology.count})


def load_climatology(path: Path) -> Climatology:
    """A climatology as it was saved. Raises `InputError` for another file."""
    facts, arrays = restore(path, _KIND)
    return Climatology(**{**facts, **arrays, "names": tuple(facts["names"]), "hours": tuple(facts["hours"])})
