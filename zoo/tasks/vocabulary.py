"""Scores over a vocabulary, computed or yet to be: their cross-entropy, and what the targets' tokens get.

A technique may make an output layer hand on scores that have not been computed, so that (tokens, vocabulary) never
exists as a whole. Tasks whose answers are tokens read scores through the functions of this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F  # noqa: N812  (the name that torch's documentation uses)
from torch import nn

IGNORED = -100
"""Target of tokens that do not count, as torch's cross-entropy has it."""


@runtime_checkable
class LazyScores(Protocol):
    """Scores (..., V) that are computed piece by piece. Legend: `V` tokens of the vocabulary."""

    def full(self) -> torch.Tensor:
        """All of them at once, (..., V)."""
        ...

    def summed_cross_entropy(self, targets: torch.Tensor, ignored: int) -> torch.Tensor:
        """As `summed_cross_entropy` of this module."""
        ...

    def likelihoods(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `likelihoods` of this module; without gradients."""
        ...


def scores_of(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | LazyScores:
    """What the model's head says: computed scores in fp32 at least, or lazy ones."""
    out = model(**inputs)
    raw: torch.Tensor | LazyScores = getattr(out, "logits", out)
    return computed(raw) if isinstance(raw, torch.Tensor) else raw


def computed(scores: torch.Tensor) -> torch.Tensor:
    """Scores in fp32 at least."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def summed_cross_entropy(scores: torch.Tensor | LazyScores, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of scores (B, L, V) summed over `targets` (B, L) that are not `IGNORED`: a scalar."""
    if not isinstance(scores, torch.Tensor):
        return scores.summed_cross_entropy(targets, IGNORED)
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def likelihoods(scores: torch.Tensor | LazyScores, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log likelihood of `targets` (B, L), and the likeliest tokens, both (B, L). Ignored targets count as token 0."""
    targets = targets.clamp(min=0)
    if not isinstance(scores, torch.Tensor):
        return scores.likelihoods(targets)
    scores = scores.log_softmax(-1)
    return scores.gather(-1, targets.unsqueeze(-1)).squeeze(-1), scores.argmax(-1)
