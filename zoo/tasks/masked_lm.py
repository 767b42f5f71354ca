"""Guessing masked tokens: adaptation of a pretrained model to sequences without labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from zoo.card import ModelCard
from zoo.data.prepare import Example
from zoo.domain import Batch, Head
from zoo.tasks.sequence import SequenceTask
from zoo.tasks.vocabulary import IGNORED, likelihoods, scores_of, summed_cross_entropy


class MaskedLanguageModelling(SequenceTask):
    """BERT's masking: of the chosen tokens 80 % become the mask, 10 % another token, 10 % stay (Devlin et al. 2019).

    Which tokens are chosen is drawn anew in every epoch and fixed when evaluating, from the seed and the row alone,
    so that a resumed run masks as the uninterrupted one would. At least one token per sequence is chosen.
    """

    name = "masked_language_modelling"
    monitor = "masked_accuracy"
    lower_is_better = False
    needs_target = False

    def __init__(self, mask_probability: float = 0.15, seed: int = 0) -> None:
        super().__init__()
        if not 0 < mask_probability < 1:
            raise ValueError(f"mask_probability must lie between 0 and 1, not {mask_probability}")
        self.mask_probability = mask_probability
        self.seed = seed

    @property
    def head(self) -> Head:
        return Head("masked_lm", 0)

    def blank_batch(self, card: ModelCard, rows: int, length: int) -> Batch:
        return Batch(self.blank_inputs(rows, length), torch.zeros((rows, length), dtype=torch.long), rows * length)

    def _mask(self, example: Example, epoch: int | None) -> tuple[list[int], list[int]]:
        """Token ids with masks, and the original ids where they count."""
        if self.tokenizer.mask_id is None:
            raise ValueError("the model's tokenizer has no mask token")
        rng = np.random.default_rng((self.seed, 0 if epoch is None else epoch + 1, example.row, example.start))
        ids, labels = list(example.ids), [IGNORED] * len(example.ids)
        eligible = [i for i, token in enumerate(ids) if token not in self.tokenizer.special_ids]
        if not eligible:
            return ids, labels
        count = max(1, round(self.mask_probability * len(eligible)))
        ordinary = [t for t in range(self.tokenizer.vocabulary_size) if t not in self.tokenizer.special_ids]
        for i in rng.choice(eligible, size=count, replace=False):
            labels[i] = ids[i]
            draw = rng.random()
            if draw < 0.8:
                ids[i] = self.tokenizer.mask_id
            elif draw < 0.9:
                ids[i] = int(rng.choice(ordinary))
        return ids, labels

    def collate(self, examples: Sequence[Example], rows: Sequence[int], epoch: int | None) -> Batch:
        masked = [self._mask(e, epoch) for e in examples]
        weight = sum(label != IGNORED for _, labels in masked for label in labels)
        targets = self.pad([labels for _, labels in masked], IGNORED)
        return Batch(self.inputs([ids for ids, _ in masked]), targets, weight, tuple(rows))

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return summed_cross_entropy(scores_of(model, batch.inputs), batch.targets)

    def predict(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        likelihood, best = likelihoods(scores_of(model, batch.inputs), batch.targets)
        counted = batch.targets != IGNORED
        likelihood = likelihood * counted
        correct = (best == batch.targets) & counted
        return [
            {"masked_tokens": n, "masked_correct": c, "masked_log_likelihood": s}
            for n, c, s in zip(
                counted.sum(-1).tolist(), correct.sum(-1).tolist(), likelihood.double().sum(-1).tolist(), strict=True
            )
        ]

    def merge(self, windows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {key: sum(w[key] for w in windows) for key in windows[0]}

    def metrics(self, predictions: Sequence[Mapping[str, Any]], targets: Sequence[Any]) -> dict[str, float]:
        tokens = max(sum(p["masked_tokens"] for p in predictions), 1)
        mean = sum(p["masked_log_likelihood"] for p in predictions) / tokens
        return {
            "masked_accuracy": sum(p["masked_correct"] for p in predictions) / tokens,
            "masked_perplexity": math.exp(-mean) if mean > -700 else math.inf,  # beyond what a float holds
        }
