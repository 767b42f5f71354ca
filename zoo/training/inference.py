"""Predictions of a model on examples, in their order."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from zoo.data.batches import evaluation_batches
from zoo.domain import Task
from zoo.errors import TrainingError


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model without dropout and gradients; as it was afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def predict(
    task: Task, model: nn.Module, examples: Sequence[Any], device: torch.device, *, rows: int, longest: int
) -> list[dict[str, Any]]:
    """One prediction per example. No batch is larger than `rows` examples of `longest` tokens."""
    found: list[dict[str, Any] | None] = [None] * len(examples)
    with evaluating(model):
        for members in evaluation_batches([task.length(e) for e in examples], rows, longest):
            batch = task.collate([examples[i] for i in members], members, None).to(device)
            for i, prediction in zip(members, task.predict(model, batch), strict=True):
                found[i] = prediction
    return [prediction for prediction in found if prediction is not None]


def score(task: Task, predictions: Sequence[dict[str, Any]], examples: Sequence[Any]) -> dict[str, float]:
    """The task's metrics, every row of the data counted once.

    Raises `TrainingError` for predictions that are not finite, of which no metric makes sense.
    """
    combined = task.combine(predictions, examples)
    broken = [row for row, values in combined.items() if not finite(values)]
    if broken:
        raise TrainingError(
            f"the model's predictions are not finite for {len(broken)} of {len(combined)} rows "
            f"(data rows {sorted(row + 1 for row in broken)[:8]}); "
            "train with a lower learning rate, a longer warm-up, max_grad_norm or precision: fp32"
        )
    targets = task.targets(examples)
    rows = list(combined)
    return task.metrics([combined[row] for row in rows], [targets[row] for row in rows])


def finite(values: Mapping[str, Any]) -> bool:
    """Whether every number of one prediction is finite."""
    return all(math.isfinite(value) for value in values.values() if isinstance(value, float))
