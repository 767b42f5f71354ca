"""The same recipe on every device that is known, and the largest form of it that one device holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from zoo.memory.devices import devices
from zoo.planner import decide, limits_of
from zoo.plans import Decision, Limits, Workload
from zoo.recipe import Budget
from zoo.resolve import Job
from zoo.step import storage_free

STEP = 16
"""Tokens to which the longest input is found."""
CLOSE = 32
"""Sizes are found to one part in so many."""
MOST_ROWS = 2**16


@dataclass(frozen=True)
class Largest:
    """What one device holds of a recipe at most. `tokens` is None where inputs have one size; 0 where nothing fits.

    `tokens`: of the longest input, with the recipe's batch. `rows`: of the largest micro-batch, with its inputs.
    """

    tokens: int | None
    rows: int
    longest: Decision | None
    widest: Decision | None

    def to_json(self) -> dict[str, Any]:
        return {
            "longest_input_tokens": self.tokens,
            "largest_micro_batch": self.rows,
            "plans": {
                name: decision.chosen.to_json()
                for name, decision in (("longest_input", self.longest), ("largest_micro_batch", self.widest))
                if decision is not None
            },
        }


def on_every_device(job: Job, workload: Workload) -> Iterator[Decision]:
    """The decision for each accelerator that is known, those with the least memory first; then for this machine."""
    known = sorted(devices().values(), key=lambda device: (device.memory_bytes, device.name))
    for device in known:
        budget = Budget(gpu=device.name, host=job.recipe.budget.host)
        yield decide(job, workload, limits_of(budget))


def largest(job: Job, workload: Workload, limits: Limits) -> Largest:
    """The longest inputs and the largest micro-batch with which the recipe fits, found by halving intervals.

    Everything that the recipe leaves open is tried anew at each size.
    """

    def with_tokens(tokens: int) -> Decision:
        return decide(job, replace(workload, tokens=tokens, lengths=()), limits)

    def with_rows(rows: int) -> Decision:
        train = job.recipe.train.model_copy(update={"global_batch_size": rows})
        wider = replace(job, recipe=job.recipe.model_copy(update={"train": train}))
        return decide(wider, replace(workload, rows=rows, lengths=()), limits, divided=False)

    tokens: int | None = None
    longest = None
    if _has_lengths(job):
        most = job.card.max_length
        tokens, longest = _most(with_tokens, job.card.special_tokens + 1, most, STEP)
    rows, widest = _most(with_rows, 1, MOST_ROWS, 1)
    return Largest(tokens, rows, longest, widest)


def _has_lengths(job: Job) -> bool:
    """Whether inputs can be longer and shorter, which grids cannot."""
    sizes = []
    with storage_free():
        for length in (job.card.special_tokens + 1, job.card.max_length):
            sizes.append([tuple(t.shape) for t in job.task.blank_batch(job.card, 1, length).inputs.values()])
    return sizes[0] != sizes[1]


def _most(make: Callable[[int], Decision], least: int, most: int, step: int) -> tuple[int, Decision | None]:
    """About the largest size up to `most` that fits, in steps of `step`, and its decision; 0 where none does."""
    found: Decision | None = None
    low, high, size = 0, most + 1, least
    while True:  # twice as much each time, until it is too much
        decision = make(size)
        if not decision.fits:
            high = size
            break
        low, found = size, decision
        if size == most:
            return most, found
        size = min(size * 2, most)
    while high - low > max(step, low // CLOSE) and low:
        middle = max((low + high) // 2 // step * step, low + 1)
        decision = make(middle)
        if decision.fits:
            low, found = middle, decision
        else:
            high = middle
    return low, found
