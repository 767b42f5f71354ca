"""Which rows form which step: shuffled, bucketed by length, the same on every machine for a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

POOL = 50
"""Global batches that are shuffled together before sorting by length: enough for little padding, few enough to mix."""


@dataclass(frozen=True)
class Batches:
    """Steps of an epoch over examples with the given `lengths`.

    A step is a list of micro-batches, each a list of indices, longest examples first. In the first epoch the batch
    with the longest example comes second: by then the optimizer's states exist, so that the highest memory
    of the whole run is reached, and seen, at once.
    """

    lengths: Sequence[int]
    global_batch_size: int
    micro_batch_size: int
    seed: int

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.global_batch_size)

    def epoch(self, number: int) -> list[list[list[int]]]:
        """Steps of epoch `number`; every example exactly once."""
        count = len(self.lengths)
        rng = np.random.default_rng((self.seed, number))
        order = rng.permutation(count)
        pool = POOL * self.global_batch_size
        pools = np.split(order, range(pool, max(count // pool, 1) * pool, pool))
        steps: list[list[int]] = []
        for members in pools:
            ranked = sorted((int(i) for i in members), key=lambda i: -self.lengths[i])
            steps += [ranked[i : i + self.global_batch_size] for i in range(0, len(ranked), self.global_batch_size)]
        steps = [steps[i] for i in rng.permutation(len(steps))]
        if number == 0 and len(steps) > 1:
            longest = max(range(len(steps)), key=lambda i: (self.lengths[steps[i][0]], len(steps[i])))
            steps[1], steps[longest] = steps[longest], steps[1]
        return [self._micro(step) for step in steps]

    def _micro(self, step: list[int]) -> list[list[int]]:
        return [step[i : i + self.micro_batch_size] for i in range(0, len(step), self.micro_batch_size)]


def evaluation_batches(lengths: Sequence[int], micro_batch_size: int, longest: int) -> list[list[int]]:
    """Batches in order of length, none with more padded tokens than `micro_batch_size` examples of `longest`."""
    budget = micro_batch_size * longest
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches:
            padded = lengths[batches[-1][0]]
            if len(batches[-1]) < micro_batch_size and (len(batches[-1]) + 1) * padded <= budget:
                batches[-1].append(i)
                continue
        batches.append([i])
    return batches
