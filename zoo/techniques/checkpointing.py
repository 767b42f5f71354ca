"""Activation checkpointing: keep a block's input, recompute the rest in the backward pass."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from zoo.techniques import Technique

if TYPE_CHECKING:
    from zoo.step import Setup


class NoCheckpointing(Technique):
    """Keep every activation that the backward pass needs."""

    key = "checkpointing"
    name = "none"
    source = "-"
    stage = 200
    exactness = "bitwise"

    def apply(self, setup: Setup) -> None:
        pass


class BlockCheckpointing(Technique):
    """Recompute every module of role ``block``, dropout masks included (the random state is kept)."""

    key = "checkpointing"
    name = "block"
    source = "Chen et al. 2016, arXiv 1604.06174"
    stage = 200
    exactness = "bitwise"

    def why_not(self, setup: Setup) -> str | None:
        return None if "block" in setup.card.roles else f"{setup.card.name} has no role block"

    def apply(self, setup: Setup) -> None:
        for module in setup.modules_of("block").values():
            _recompute(module)


def _recompute(module: nn.Module) -> None:
    """Wrap `forward` on the instance: names of parameters stay as they are, so saved files do too."""
    forward = module.forward

    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=True, **kwargs)

    module.forward = recomputed


OPTIONS = (NoCheckpointing, BlockCheckpointing)
