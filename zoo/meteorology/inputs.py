"""States of the atmosphere as a model is given them, and what it says in the units of the fields.

Legend of shapes: `B` batch, `S` states of history, `V` fields given, `O` fields wanted, `F` forcings, `R` steps of a
rollout, `T` times, `H` x `W` grid points.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.card import ModelCard
from zoo.errors import InputError
from zoo.meteorology.fields import Fields
from zoo.meteorology.forcings import FORCINGS, forcing_fields
from zoo.meteorology.forecast_options import changing
from zoo.meteorology.learned import Learned, Predicts
from zoo.meteorology.samples import Window
from zoo.meteorology.times import TimeAxis, date_label

SOLAR = 5e6
"""J m-2 in an hour that forcings of sunlight are divided by: about the most there is."""
_FAR = 10

Step = tuple[float, str]
"""Of the data of training: so many ``hours`` or ``months``."""


@dataclass(frozen=True)
class Needs:
    """What a model needs beside the fields of one state, as the config of its card says.

    `history`: how many states, a step apart, the initial one last. `step_hours`: the only step that it makes. `time`:
    whether it is told the time; `climate`: what is usual at the time that is forecast; `units`: the mean and deviation
    that fields are normalised by, for scalers of its own.
    """

    history: int = 1
    step_hours: float | None = None
    time: bool = False
    climate: bool = False
    units: bool = False

    @classmethod
    def of(cls, card: ModelCard) -> Needs:
        """Those of a card."""
        named = [one.name for one in dataclasses.fields(cls)]
        return cls(**{name: card.config[name] for name in named if name in card.config})

    def window(self, leads: tuple[int, ...], rollout: int, axis: TimeAxis) -> Window:
        """The times of a sample. Raises `InputError` for leads that are not the one step of the model."""
        if self.step_hours is None:
            return Window(leads, self.history, rollout=rollout)
        step = axis.steps(self.step_hours)
        if leads != (step,):
            raise InputError(
                f"task: leads of {', '.join(str(lead) for lead in leads)} steps of {axis.step_name}; the model makes "
                f"steps of {self.step_hours:g} hours and no others: say lead_hours: [{self.step_hours:g}], and with "
                "rollout how many such steps"
            )
        return Window(leads, self.history, step, rollout)

    def apart(self, step: Step) -> Step:
        """The time between the states of a history, where the data of training has a `step`."""
        return step if self.step_hours is None else (self.step_hours, "hours")

    def before(self, axis: TimeAxis, start: int, step: Step) -> list[int] | None:
        """Indices of the states to give for a forecast from `start`, None where one is not there.

        `step` is that of the data of training; earlier states are looked up by their dates, for a file that is
        forecast from may have another step, or none.
        """
        size, unit = self.apart(step)
        earlier = [axis.away(start, -size * k, unit) for k in range(self.history - 1, 0, -1)]
        found = [index for index in (*earlier, start) if index is not None]
        return found if len(found) == self.history else None


def hours_since_1970(value: Any) -> np.float32:
    """Of a date of either kind, to about two minutes; whole hours are exact. Raises `InputError` for 30 February."""
    try:
        real = value if isinstance(value, np.datetime64) else np.datetime64(value.isoformat())
    except ValueError:
        raise InputError(f"{date_label(value)}: no real date, and the model is told the time; leave it out") from None
    return np.float32((real - np.datetime64(0, "s")) / np.timedelta64(3600, "s"))


class Inputs:
    """Normalised fields of `variables`, with `forcings` after them, for forecasts of `targets` in `rollout` steps."""

    def __init__(
        self,
        learned: Learned,
        variables: tuple[str, ...],
        targets: tuple[str, ...],
        forcings: tuple[str, ...],
        rollout: int,
    ) -> None:
        self.learned, self.variables, self.targets = learned, variables, targets
        self.forcings, self.rollout = forcings, rollout
        self.needs = Needs()

    def settle(self, card: ModelCard, predicts: Predicts | None) -> None:
        """What the card's model is given, and what it says: that of the recipe, where it says anything.

        Raises `InputError` as `Learned.settle` does, and where a model with scalers of its own is to predict something
        else than states.
        """
        self.learned.settle(card, predicts)
        self.needs = Needs.of(card)
        if self.needs.units and self.learned.predicts != "state":
            raise InputError(
                f"predicts: {self.learned.predicts}: {card.name} has scalers for states; say predicts: state"
            )

    def blank(self, rows: int, grid: tuple[int, int]) -> dict[str, Tensor]:
        """What the model is given for some samples on a grid, without values."""
        needs, given = self.needs, len(self.variables) + len(self.forcings)
        states = (needs.history,) if needs.history > 1 else ()
        found = {"fields": torch.zeros(rows, *states, given, *grid), "hours": torch.zeros(rows)}
        if needs.time:
            found["time"] = torch.zeros(rows)
        if needs.climate:
            found["climate"] = torch.zeros(rows, self.rollout, len(self.variables), *grid)
        if needs.units:
            found |= {name: torch.ones(rows, len(self.variables)) for name in ("mean", "std")}
        if self.learned.predicts == "difference":
            found |= {name: torch.zeros(rows, len(self.targets), 1, 1) for name in ("scale", "shift")}
        if self.forcings and self.rollout > 1:
            found["forcings"] = torch.zeros(rows, self.rollout - 1, len(self.forcings), *grid)
        return found

    def before(self, fields: Fields, start: int, step: Step) -> Any:
        """The state at `start` (V H W), or with a history, which is known to be there, the states (S V H W)."""
        times = self.needs.before(fields.axis, start, step)
        return fields.read(start if times is None or len(times) == 1 else times, self.variables)

    def given(self, state: Any, fields: Fields, axis: TimeAxis, times: Sequence[int], lead: int) -> dict[str, Any]:
        """What the model is given at the first of some `times` of an axis, to go to the others.

        `state` (V H W) is that of the first time; of a model with a history (S V H W), that of the first time last.
        """
        origin = self.usual(axis, times[:1], self.variables)[0]
        states, own = self.learned.states.of(self.variables), self.learned.states.of(self.targets)
        normal = states.normalise(state - origin)
        found: dict[str, Any] = {
            "fields": normal if state.ndim == 4 else np.concatenate([normal, self._forced(fields, axis, times[0])]),
            "hours": np.float32(axis.hours[times[1]] - axis.hours[times[0]]),
        }
        if self.needs.time:
            found["time"] = hours_since_1970(axis.values[times[0]])
        if self.needs.climate:
            ahead = [*times[1:], *[times[1]] * self.rollout][: self.rollout]
            found["climate"] = self._climate(axis, ahead)
        if self.needs.units:
            found["mean"], found["std"] = states.mean.astype(np.float32), states.std.astype(np.float32)
        if self.learned.predicts == "difference":
            change = self.learned.differences(lead)
            found["scale"] = (change.std / own.std).astype(np.float32)[:, None, None]
            found["shift"] = (change.mean / own.std).astype(np.float32)[:, None, None]
        if self.forcings and self.rollout > 1:
            later = [*times[1:-1], *[times[0]] * self.rollout][: self.rollout - 1]
            found["forcings"] = np.stack([self._forced(fields, axis, index) for index in later])
        return found

    def in_units(self, normal: Tensor, usual: Any) -> Any:
        """Normalised fields (B O H W) in the units of the table of names; `usual` is what they are counted from."""
        own = self.learned.states.of(self.targets)
        found = normal.double().cpu().numpy() * own.std[:, None, None] + own.mean[:, None, None]
        return found + usual if self.learned.predicts == "anomaly" else found

    def usual(self, axis: TimeAxis, indices: Sequence[int], names: Sequence[str]) -> Any:
        """What states are counted from at some times: (T V H W), or zeros (T 1 1 1)."""
        less = self.learned.origin
        return (
            np.zeros((len(indices), 1, 1, 1)) if less is None else np.stack([less.at(axis, i, names) for i in indices])
        )

    def _climate(self, axis: TimeAxis, indices: Sequence[int]) -> Any:
        """What is usual at some times, normalised: (T V H W); 0 for fields that never change.

        Raises `InputError` where it is far from everything in the data, as it is in another unit.
        """
        moving = changing(self.variables)
        usual = np.stack([self.learned.climatology.at(axis, index, moving) for index in indices])
        normal = self.learned.states.of(moving).normalise(usual)
        away = np.abs(normal.mean(axis=(0, 2, 3)))
        if far := [f"{name} ({n:.0f})" for name, n in zip(moving, away, strict=True) if not n < _FAR]:
            raise InputError(
                f"climatology: on average more than {_FAR} deviations of the data away from its mean: "
                f"{', '.join(far[:5])}{' ...' if len(far) > 5 else ''}; is it in another unit?"
            )
        found = np.zeros((len(usual), len(self.variables), *usual.shape[2:]), dtype=np.float32)
        found[:, [self.variables.index(name) for name in moving]] = normal
        return found

    def _forced(self, fields: Fields, axis: TimeAxis, index: int) -> Any:
        """Forcings at a time, about 1: (F H W)."""
        if not self.forcings:
            return np.empty((0, *fields.grid.shape), dtype=np.float32)
        made = forcing_fields(self.forcings, axis, index, fields.grid)
        scale = [SOLAR if FORCINGS[name] == "J m-2" else 1.0 for name in self.forcings]
        return made / np.array(scale, dtype=np.float32)[:, None, None]
