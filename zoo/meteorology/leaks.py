"""States that are in two parts of the data: scenarios with a common past, copied members, files given twice."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.meteorology.fields import Fields
from zoo.meteorology.samples import PARTS, Samples, State


@dataclass(frozen=True)
class Leaks:
    """States with the same content in two parts: how many by pair of parts, and an example of each in words."""

    states: Mapping[tuple[str, str], int]
    examples: Mapping[tuple[str, str], str]
    samples: Mapping[str, npt.NDArray[np.bool_]]
    repeated: int

    def remove(self, samples: Mapping[str, Samples]) -> dict[str, Samples]:
        """The samples without those of train, and then of valid, that touch a state of a later part."""
        reason = "touching states that a later part has too"
        return {part: s.only(~self.samples[part], reason) if part in self.samples else s for part, s in samples.items()}


def find_leaks(series: Sequence[Fields], samples: Mapping[str, Samples]) -> Leaks:
    """States that differ in series or time and have the same values to the bit, in two parts.

    `Leaks.samples` marks the samples of train that touch a state of valid or test, and those of valid that touch one
    of test; `repeated` counts states of train that repeat another one of train. Every state is looked at with one
    field, and only those that agree in it with all.
    """
    states = {part: s.states() for part, s in samples.items()}
    labels = _labels(series, sorted(set().union(*states.values())))
    content = {part: {labels[state] for state in mine} for part, mine in states.items()}
    shared: dict[tuple[str, str], int] = {}
    examples: dict[tuple[str, str], str] = {}
    marked: dict[str, npt.NDArray[np.bool_]] = {}
    for i, part in enumerate(PARTS):
        forbidden: set[Any] = set()
        for later in PARTS[i + 1 :]:
            both = content.get(part, set()) & content.get(later, set())
            forbidden |= both
            if both:
                shared[part, later] = len(both)
                pair = [min(s for s in states[p] if labels[s] in both) for p in (part, later)]
                pair[1] = min(s for s in states[later] if labels[s] == labels[pair[0]])
                words = [f"{series[s].label} at {series[s].axis.label(i)}" for s, i in pair]
                examples[part, later] = " = ".join(words)
        if forbidden and part in samples:
            mine = samples[part]
            leaking = {state for state in states[part] if labels[state] in forbidden}
            marked[part] = np.array([not leaking.isdisjoint(mine.touched(k)) for k in range(len(mine))], dtype=bool)
    repeated = len(states.get("train", ())) - len(content.get("train", ()))
    return Leaks(shared, examples, marked, repeated)


def _labels(series: Sequence[Fields], states: Sequence[State]) -> dict[State, Any]:
    """Something for each state that is equal for states with equal content."""
    moving = [[name for name in one.names if name not in one.constant] for one in series]
    by_probe: dict[bytes, list[State]] = defaultdict(list)
    for number, index in states:
        by_probe[_digest(series[number], index, moving[number][:1])].append((number, index))
    labels: dict[State, Any] = {}
    for alike in by_probe.values():
        for state in alike:
            whole = len(alike) > 1
            labels[state] = _digest(series[state[0]], state[1], moving[state[0]]) if whole else state
    return labels


def _digest(fields: Fields, index: int, names: Sequence[str]) -> bytes:
    return hashlib.blake2b(fields.read(index, names, nan="allow").tobytes(), digest_size=16).digest()
