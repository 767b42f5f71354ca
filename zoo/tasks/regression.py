"""One number per sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from zoo.card import ModelCard
from zoo.data.prepare import Data, Example
from zoo.domain import Batch, Head
from zoo.tasks.sequence import SequenceTask, logits


class SequenceRegression(SequenceTask):
    """Squared error on targets that are standardised by the training part's mean and standard deviation."""

    name = "sequence_regression"
    monitor = "rmse"
    lower_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.mean = 0.0
        self.std = 1.0

    @property
    def head(self) -> Head:
        return Head("sequence", 1)

    def parse_target(self, text: str, cleaned: str) -> float:
        if not text:
            raise ValueError("the target is missing")
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f'the target "{text}" is not a number') from None
        if not math.isfinite(value):
            raise ValueError(f'the target "{text}" is not finite')
        return value

    def learn(self, data: Data) -> None:
        values = list(self.targets(data.train).values())
        self.mean = sum(values) / len(values)
        self.std = math.sqrt(sum((v - self.mean) ** 2 for v in values) / len(values)) or 1.0

    def blank_batch(self, card: ModelCard, rows: int, length: int) -> Batch:
        return Batch(self.blank_inputs(rows, length), torch.zeros(rows), rows)

    def collate(self, examples: Sequence[Example], rows: Sequence[int], epoch: int | None) -> Batch:
        scaled = [0.0 if e.target is None else (e.target - self.mean) / self.std for e in examples]
        targets = torch.tensor(scaled, dtype=torch.float32)
        return Batch(self.inputs([e.ids for e in examples]), targets, len(examples), tuple(rows))

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        error = logits(model, batch.inputs).squeeze(-1) - batch.targets
        return (error * error).sum()

    def predict(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        values = logits(model, batch.inputs).squeeze(-1).double() * self.std + self.mean
        return [{"prediction": value} for value in values.tolist()]

    def merge(self, windows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {"prediction": sum(w["prediction"] for w in windows) / len(windows)}

    def metrics(self, predictions: Sequence[Mapping[str, Any]], targets: Sequence[Any]) -> dict[str, float]:
        return regression_metrics([p["prediction"] for p in predictions], targets)

    def to_values(self, targets: Sequence[float]) -> list[float]:
        """Targets as a baseline learns them."""
        return list(targets)

    def from_values(self, values: NDArray[Any]) -> list[dict[str, Any]]:
        """Predictions of a baseline, as `predict` returns them."""
        return [{"prediction": float(value)} for value in values]

    def constant(self, data: Data) -> list[dict[str, Any]]:
        """The mean of the training targets for every test row."""
        return [{"prediction": self.mean}] * len(self.targets(data.test))

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.mean, self.std = state["mean"], state["std"]


def regression_metrics(predicted: Sequence[float], targets: Sequence[float]) -> dict[str, float]:
    """RMSE, MAE, R2 and Spearman's rank correlation, in the units of the targets."""
    from scipy.stats import spearmanr
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    found = {
        "rmse": float(root_mean_squared_error(targets, predicted)),
        "mae": float(mean_absolute_error(targets, predicted)),
    }
    if len(targets) > 1:
        found["r2"] = float(r2_score(targets, predicted))
        if len(set(targets)) > 1 and len(set(predicted)) > 1:  # without an order there are no ranks to correlate
            found["spearman"] = float(spearmanr(targets, predicted).statistic)
    return found
