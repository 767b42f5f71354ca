"""The learning rate as a pure function of the step, so that a resumed run needs no memory of it."""

from __future__ import annotations

import math

from zoo.recipe import Train


def learning_rate(train: Train, step: int, steps: int) -> float:
    """Rate of update `step` (from 0) of `steps`: linear warm-up, then constant, or linear or cosine decay to 0."""
    warmup = round(train.warmup * steps)
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    if train.schedule == "constant":
        return train.learning_rate
    left = (steps - step) / max(steps - warmup, 1)
    return train.learning_rate * (left if train.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left)))
