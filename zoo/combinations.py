"""Combinations of techniques: what they change, in what they differ, and which say all about another one."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

from zoo.resolve import Job
from zoo.techniques import BEFORE_FORWARD, BEFORE_OPTIMIZER, Technique, registry

Combination = tuple[Technique, ...]


def option(combination: Combination, key: str) -> Technique:
    """Its technique of a key."""
    return next(t for t in combination if t.key == key)


def beside(combination: Combination, key: str) -> Combination:
    """All its techniques but that of a key."""
    return tuple(t for t in combination if t.key != key)


def standing_part(combination: Combination) -> Combination:
    """The techniques that weights and states depend on: what is done to a forward pass holds neither."""
    model, _, steps = _acting(combination)
    return model + steps


def rungs(job: Job) -> list[list[Combination]]:
    """Every combination that the recipe leaves open, by what it changes, least first."""
    found: dict[Combination, list[Combination]] = defaultdict(list)
    for combination in itertools.product(*job.choices.values()):
        found[tuple(t for t in combination if t.exactness == "changes-model")].append(combination)
    return sorted(found.values(), key=lambda rung: departure(rung[0], job))


def departure(combination: Combination, job: Job) -> tuple[int, int]:
    """How far a combination is from the model as published, trained in full: the sum over what the planner may choose,
    and for those that are equally far, the order in which the options are listed."""
    free = [t for t in combination if len(job.choices[t.key]) > 1 and t.exactness == "changes-model"]
    return sum(t.departure for t in free), sum(registry()[t.key].index(type(t)) for t in free)


class Corners:
    """Which combinations have traces of which another one's can be put together."""

    def __init__(self) -> None:
        self._known: dict[Combination, dict[tuple[Combination, Combination], Combination]] = defaultdict(dict)

    def divide(self, combinations: Sequence[Combination]) -> tuple[list[Combination], list[Combination]]:
        """Those that have to be traced, and those for which it can do to have traced these and all before."""
        apart, together = [], []
        for combination in combinations:
            if self.of(combination) is not None:
                together.append(combination)
                continue
            apart.append(combination)
            rest, passes, steps = _acting(combination)
            self._known[rest][passes, steps] = combination
        return apart, together

    def of(self, combination: Combination) -> tuple[Combination, Combination, Combination] | None:
        """Three that are known: one that differs in what acts on passes and what acts on the optimizer, and those
        that differ from this one in the first, and in the second."""
        rest, passes, steps = _acting(combination)
        known = self._known[rest]
        for others_passes, others_steps in known:
            across, along = (passes, others_steps), (others_passes, steps)
            if others_passes != passes and others_steps != steps and across in known and along in known:
                return known[others_passes, others_steps], known[across], known[along]
        return None


def _acting(combination: Combination) -> tuple[Combination, Combination, Combination]:
    """Its techniques by what they act on: the model, passes, the optimizer."""
    passes = tuple(t for t in combination if BEFORE_FORWARD <= t.stage < BEFORE_OPTIMIZER)
    steps = tuple(t for t in combination if t.stage >= BEFORE_OPTIMIZER)
    return tuple(t for t in combination if t.stage < BEFORE_FORWARD), passes, steps
