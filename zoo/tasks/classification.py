"""One class per sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name that torch's documentation uses)
from numpy.typing import NDArray
from torch import nn

from zoo.card import ModelCard
from zoo.data.prepare import Data, Example
from zoo.domain import Batch, Head
from zoo.tasks.labels import LabelTask
from zoo.tasks.sequence import logits


class SequenceClassification(LabelTask):
    """Cross-entropy over the classes of the training part, in sorted order."""

    name = "sequence_classification"
    monitor = "mcc"

    @property
    def head(self) -> Head:
        return Head("sequence", max(len(self.classes), 2))

    def parse_target(self, text: str, cleaned: str) -> str:
        if not text:
            raise ValueError("the label is missing")
        return text

    def labels_of(self, example: Example) -> Iterable[str]:
        return (example.target,)

    def blank_batch(self, card: ModelCard, rows: int, length: int) -> Batch:
        return Batch(self.blank_inputs(rows, length), torch.zeros(rows, dtype=torch.long), rows)

    def collate(self, examples: Sequence[Example], rows: Sequence[int], epoch: int | None) -> Batch:
        labels = [0 if e.target is None else self.classes.index(e.target) for e in examples]
        return Batch(self.inputs([e.ids for e in examples]), torch.tensor(labels), len(examples), tuple(rows))

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return F.cross_entropy(logits(model, batch.inputs), batch.targets, reduction="sum")

    def predict(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        rows = logits(model, batch.inputs).softmax(-1).tolist()
        return [self._named(probabilities) for probabilities in rows]

    def _named(self, probabilities: Sequence[float]) -> dict[str, Any]:
        best = max(range(len(self.classes)), key=lambda i: probabilities[i])
        named = {f"probability_{c}": p for c, p in zip(self.classes, probabilities, strict=True)}
        return {"prediction": self.classes[best], **named}

    def merge(self, windows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        columns = [f"probability_{c}" for c in self.classes]
        return self._named([sum(w[c] for w in windows) / len(windows) for c in columns])

    def metrics(self, predictions: Sequence[Mapping[str, Any]], targets: Sequence[Any]) -> dict[str, float]:
        probabilities = [[p[f"probability_{c}"] for c in self.classes] for p in predictions]
        return classification_metrics(self.classes, probabilities, targets)

    def to_values(self, targets: Sequence[str]) -> list[int]:
        """Targets as a baseline learns them: numbers of classes."""
        return [self.classes.index(target) for target in targets]

    def from_values(self, values: NDArray[Any]) -> list[dict[str, Any]]:
        """Probabilities of a baseline (rows x classes, those that training shows), as `predict` returns them."""
        unseen = [0.0] * (len(self.classes) - values.shape[1])
        return [self._named([*(float(p) for p in row), *unseen]) for row in values]

    def constant(self, data: Data) -> list[dict[str, Any]]:
        """The shares of the classes in training for every test row."""
        counts = Counter(self.targets(data.train).values())
        shares = [counts[c] / counts.total() for c in self.classes]
        return [self._named(shares)] * len(self.targets(data.test))


def classification_metrics(
    classes: Sequence[str], probabilities: Sequence[Sequence[float]], targets: Sequence[str]
) -> dict[str, float]:
    """Accuracy, macro F1, Matthews correlation, and AUROC where every class occurs (one against the rest, macro)."""
    import numpy as np
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, roc_auc_score

    table = np.asarray(probabilities, dtype=float)
    truth = np.array([classes.index(t) for t in targets])
    best = table.argmax(axis=1)
    found = {
        "accuracy": float(accuracy_score(truth, best)),
        "f1_macro": float(f1_score(truth, best, average="macro", labels=range(len(classes)), zero_division=0)),
        "mcc": float(matthews_corrcoef(truth, best)),
    }
    if len(set(truth.tolist())) == len(classes):
        ranks = [float(roc_auc_score(truth == i, table[:, i])) for i in range(len(classes))]
        found["auroc"] = sum(ranks) / len(ranks)
    return found
