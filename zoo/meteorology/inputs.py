"""States of the atmosphere as a model is given them, and what it says in the units of the fields.

Legend of shapes: `B` batch, `V` fields given, `O` fields wanted, `F` forcings, `T` times, `H` x `W` grid points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from zoo.meteorology.fields import Fields
from zoo.meteorology.forcings import FORCINGS, forcing_fields
from zoo.meteorology.learned import Learned
from zoo.meteorology.times import TimeAxis

SOLAR = 5e6
"""J m-2 in an hour that forcings of sunlight are divided by: about the most there is."""


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

    def given(self, state: Any, fields: Fields, axis: TimeAxis, times: Sequence[int], lead: int) -> dict[str, Any]:
        """What the model is given of a state (V H W) at the first of some `times` of an axis, to go to the others."""
        origin = self.usual(axis, times[:1], self.variables)[0]
        states, own = self.learned.states, self.learned.states.of(self.targets)
        normal = states.of(self.variables).normalise(state - origin)
        found: dict[str, Any] = {
            "fields": np.concatenate([normal, self._forced(fields, axis, times[0])]),
            "hours": np.float32(axis.hours[times[1]] - axis.hours[times[0]]),
        }
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

    def _forced(self, fields: Fields, axis: TimeAxis, index: int) -> Any:
        """Forcings at a time, about 1: (F H W)."""
        if not self.forcings:
            return np.empty((0, *fields.grid.shape), dtype=np.float32)
        made = forcing_fields(self.forcings, axis, index, fields.grid)
        scale = [SOLAR if FORCINGS[name] == "J m-2" else 1.0 for name in self.forcings]
        return made / np.array(scale, dtype=np.float32)[:, None, None]
