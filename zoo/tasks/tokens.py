"""One class per residue, atom token or whatever the tokenizer makes of a sequence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from zoo.card import ModelCard
from zoo.data.prepare import Example
from zoo.domain import Batch, Head
from zoo.tasks.labels import LabelTask
from zoo.tasks.sequence import logits
from zoo.tasks.vocabulary import IGNORED, summed_cross_entropy


class TokenClassification(LabelTask):
    """Cross-entropy over the classes of the training part at every token that is not special.

    A target is one label per token: characters (``HHEEC``), or words separated by blanks. ``-`` marks tokens without
    a label.
    """

    name = "token_classification"
    monitor = "f1_macro"

    @property
    def head(self) -> Head:
        return Head("token", max(len(self.classes), 2))

    def parse_target(self, text: str, cleaned: str) -> tuple[str, ...]:
        if not text:
            raise ValueError("the labels are missing")
        labels = tuple(text.split()) if any(c.isspace() for c in text) else tuple(text)
        tokens = len(self.tokenizer.encode(cleaned)) - len(self.tokenizer.before) - len(self.tokenizer.after)
        if len(labels) != tokens:
            raise ValueError(f"{len(labels)} labels for {tokens} tokens")
        return labels

    def labels_of(self, example: Example) -> Iterable[str]:
        return (label for label in example.target if label != "-")

    def blank_batch(self, card: ModelCard, rows: int, length: int) -> Batch:
        return Batch(self.blank_inputs(rows, length), torch.zeros((rows, length), dtype=torch.long), rows * length)

    def _labels(self, example: Example) -> list[int]:
        before, after = len(self.tokenizer.before), len(self.tokenizer.after)
        size = len(example.ids) - before - after
        labels = [IGNORED] * size
        if example.target is not None:
            wanted = example.target[example.start : example.start + size]
            labels = [IGNORED if label == "-" else self.classes.index(label) for label in wanted]
        return [*([IGNORED] * before), *labels, *([IGNORED] * after)]

    def collate(self, examples: Sequence[Example], rows: Sequence[int], epoch: int | None) -> Batch:
        labels = [self._labels(e) for e in examples]
        weight = sum(label != IGNORED for row in labels for label in row)
        return Batch(self.inputs([e.ids for e in examples]), self.pad(labels, IGNORED), weight, tuple(rows))

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return summed_cross_entropy(logits(model, batch.inputs), batch.targets)

    def predict(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        best = logits(model, batch.inputs).argmax(-1).tolist()
        lengths = batch.inputs["attention_mask"].sum(-1).tolist()
        before, after = len(self.tokenizer.before), len(self.tokenizer.after)
        return [
            {"prediction": " ".join(self.classes[i] for i in row[before : length - after])}
            for row, length in zip(best, lengths, strict=True)
        ]

    def merge(self, windows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {"prediction": " ".join(w["prediction"] for w in windows)}

    def metrics(self, predictions: Sequence[Mapping[str, Any]], targets: Sequence[Any]) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score

        pairs = [
            (truth, guess)
            for prediction, target in zip(predictions, targets, strict=True)
            for guess, truth in zip(prediction["prediction"].split(" "), target, strict=False)
            if truth != "-"
        ]
        truth, guess = [t for t, _ in pairs], [g for _, g in pairs]
        return {
            "accuracy": float(accuracy_score(truth, guess)),
            "f1_macro": float(f1_score(truth, guess, average="macro", labels=self.classes, zero_division=0)),
        }
