"""Floors that a fine-tuned model has to beat, on the very same split."""

from __future__ import annotations

from typing import Any

from zoo.card import load_ref
from zoo.data.prepare import Data
from zoo.resolve import Job


def floors(job: Job, data: Data) -> dict[str, dict[str, float]]:
    """Test metrics by name: the best constant, and the domain's own floors. Empty without targets or test part."""
    task: Any = job.task
    if not hasattr(task, "constant") or not data.test:
        return {}
    found = {"constant": _score(job, data, task.constant(data))}
    train, test = _unique(data.train), _unique(data.test)
    for name, ref in job.domain.baselines.items():
        values = load_ref(ref)(
            [e.text for e in train],
            task.to_values([e.target for e in train]),
            [e.text for e in test],
            job.recipe.task_name,
            job.recipe.train.seed,
        )
        found[name] = _score(job, data, task.from_values(values))
    return found


def _unique(examples: tuple[Any, ...]) -> list[Any]:
    """One example per row of the data."""
    return list({e.row: e for e in examples}.values())


def _score(job: Job, data: Data, predictions: list[dict[str, Any]]) -> dict[str, float]:
    targets = [e.target for e in _unique(data.test)]
    return job.task.metrics(predictions, targets)
