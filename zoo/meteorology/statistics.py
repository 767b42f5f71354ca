"""Mean and standard deviation of fields, of states or of their differences, in one pass over training times only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.errors import InputError, unknown
from zoo.meteorology.climatology import Usual
from zoo.meteorology.fields import Fields
from zoo.meteorology.saving import restore, save
from zoo.meteorology.scores import latitude_weights

Array = npt.NDArray[np.float64]
WEIGHTINGS = ("plain", "area")
_KIND = "statistics of fields"


@dataclass(frozen=True, eq=False)
class Statistics:
    """`mean` and `std` (V) of the fields `names`, in the units of the table of names.

    Over all points and `count` times of training. `weighting` is ``plain`` (every point alike, as ClimaX and Stormer
    have it) or ``area`` (points weigh as much as their cells). `difference_steps` is 0 for states and k for
    x(t + k steps) - x(t), of which Stormer predicts the normalised value.
    """

    names: tuple[str, ...]
    mean: Array
    std: Array
    count: int
    weighting: str = "plain"
    difference_steps: int = 0

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.mean) == len(self.std):
            raise InputError(f"statistics: {len(self.names)} names, {len(self.mean)} means, {len(self.std)} deviations")

    def of(self, names: Sequence[str]) -> Statistics:
        """Those of some fields, in the order given. Raises `InputError` for one that is not there."""
        problems = [unknown("statistics", "field", name, self.names) for name in names if name not in self.names]
        if problems:
            raise InputError(problems)
        places = [self.names.index(name) for name in names]
        shared = (self.count, self.weighting, self.difference_steps)
        return Statistics(tuple(names), self.mean[places], self.std[places], *shared)

    def normalise(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Fields (... V H W) less the mean, over the deviation. Raises `InputError` where a field never varies."""
        flat = [name for name, std in zip(self.names, self.std, strict=True) if not std > 0]
        if flat:
            raise InputError(
                f"statistics: {', '.join(flat)} never varies in training, so it cannot be normalised; leave it out"
            )
        mean, std = self._columns()
        return ((values - mean) / std).astype(np.float32)

    def denormalise(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The way back: (... V H W) in units of the deviation to those of the fields."""
        mean, std = self._columns()
        return (values * std + mean).astype(np.float32)

    def _columns(self) -> tuple[Array, Array]:
        return self.mean[:, None, None], self.std[:, None, None]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and words; every float is written so that it is read as the same."""
        return {
            "names": list(self.names),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "count": self.count,
            "weighting": self.weighting,
            "difference_steps": self.difference_steps,
        }

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Statistics:
        """What `to_json` made."""
        arrays = {key: np.array(facts[key], dtype=np.float64) for key in ("mean", "std")}
        return cls(**{**facts, **arrays, "names": tuple(facts["names"])})


class Moments:
    """Running mean and sum of squared deviations of each field, states added one by one (Chan, Golub and LeVeque 1983,
    "Algorithms for computing the sample variance", eq. 2.1): no cancellation, memory of one state."""

    def __init__(self, weights: Array) -> None:
        self._weights = weights  # (H), mean 1
        self.count = 0
        self.mean: Any = 0.0
        self._variance: Any = 0.0

    def add(self, state: npt.NDArray[Any]) -> None:
        """A state (V H W)."""
        values = state.astype(np.float64)
        points = self._weights / (values.shape[-1] * len(self._weights))
        mean = np.einsum("vhw,h->v", values, points)
        variance = np.einsum("vhw,h->v", (values - mean[:, None, None]) ** 2, points)
        self.count += 1
        change = mean - self.mean
        share = 1 / self.count
        self.mean = self.mean + change * share
        self._variance = self._variance + (variance - self._variance) * share + change**2 * share * (1 - share)

    @property
    def std(self) -> Any:
        """Of the population: divided by the number of values."""
        return np.sqrt(self._variance)


def measure(
    series: Sequence[Fields],
    times: Sequence[Sequence[int] | npt.NDArray[Any]],
    *,
    weighting: str = "plain",
    difference_steps: int = 0,
    names: Sequence[str] | None = None,
    less: Usual | None = None,
) -> Statistics:
    """Statistics over the given indices of time of each series: those of the training part, and no others.

    With `difference_steps` k both times of a pair are among them; with `less` they are of what departs from it.
    Memory does not grow with the data. Raises `InputError` for another weighting, no times, pairs of which there are
    none, and values that are not finite.
    """
    if weighting not in WEIGHTINGS:
        raise InputError(unknown("statistics", "weighting", weighting, WEIGHTINGS))
    if difference_steps < 0 or not series or len(series) != len(times):
        raise InputError(
            f"statistics: {len(series)} series, {len(times)} lists of times, difference over {difference_steps} steps"
        )
    chosen = tuple(series[0].names if names is None else names)
    grid = series[0].grid
    weights = latitude_weights(grid.latitudes, "area") if weighting == "area" else np.ones(grid.shape[0])
    moments = Moments(weights)
    for fields, indices in zip(series, times, strict=True):
        if fields.grid != grid:
            raise InputError(f"statistics: {fields.label} is on {fields.grid}, and {series[0].label} on {grid}")
        for one, other in _pairs(fields, indices, difference_steps):
            state = fields.read(one, chosen)
            if less is not None:
                state = state - less.at(fields.axis, one, chosen)
            moments.add(state if other is None else fields.read(other, chosen).astype(np.float64) - state)
    if not moments.count:
        what = f"pair of training times {difference_steps} steps apart" if difference_steps else "training time"
        raise InputError(f"statistics: no {what}; give more training data")
    return Statistics(chosen, moments.mean, moments.std, moments.count, weighting, difference_steps)


def _pairs(fields: Fields, indices: Sequence[int] | npt.NDArray[Any], steps: int) -> list[tuple[int, int | None]]:
    """Indices to read: each alone, or with the one `steps` later."""
    mine = [int(i) for i in indices]
    if not steps:
        return [(i, None) for i in mine]
    place = {int(fields.axis.slots[i]): i for i in mine if fields.axis.slots[i] >= 0}
    return [(i, place[slot + steps]) for slot, i in sorted(place.items()) if slot + steps in place]


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Write statistics to one file."""
    facts = {k: v for k, v in statistics.to_json().items() if k not in ("mean", "std")}
    save(path, _KIND, facts, {"mean": statistics.mean, "std": statistics.std})


def load_statistics(path: Path) -> Statistics:
    """Statistics as they were saved. Raises `InputError` for another file."""
    facts, arrays = restore(path, _KIND)
    return Statistics(**{**facts, **arrays, "names": tuple(facts["names"])})
