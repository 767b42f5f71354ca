"""Activation checkpointing: keep a block's input, and of the rest nothing or little; recompute it when it is needed."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from zoo.techniques import Technique
from zoo.techniques._saved_on_host import SavedOnHost, shared_by_blocks

if TYPE_CHECKING:
    from zoo.step import Setup

PRODUCTS = frozenset({"aten::mm", "aten::addmm", "aten::linear", "aten::_scaled_mm", "aten::_int_mm"})
"""Products of activations with weights."""

ATTENTION = "aten::_scaled_dot_product_"
"""How the names of fused attention kernels begin; `UNFUSED` is a sequence of operations, seen one by one."""
UNFUSED = "aten::_scaled_dot_product_attention_math"

QUANTIZED_PRODUCTS = frozenset(
    f"bitsandbytes::{name}"
    for name in ("gemm_4bit", "gemv_4bit", "int8_scaled_mm", "int8_mixed_scaled_mm", "int8_linear_matmul")
)
"""Products with quantized weights."""


class NoCheckpointing(Technique):
    """Keep every activation that the backward pass needs."""

    key = "checkpointing"
    name = "none"
    source = "-"
    stage = 205
    exactness = "bitwise"

    def apply(self, setup: Setup) -> None:
        pass


class BlockCheckpointing(Technique):
    """Recompute modules of role ``block``, dropout masks included (the random state is kept).

    With `every` = k only each k-th of them is recomputed: blocks k, 2k, ... of the stack, counted from 1. With
    `offload` the inputs that are kept lie in host memory until then.
    """

    key = "checkpointing"
    name = "block"
    source = "Chen et al. 2016, arXiv 1604.06174"
    stage = 205
    exactness = "bitwise"

    every: int = Field(1, ge=1)
    offload: bool = False

    @property
    def period(self) -> int:
        return self.every

    def why_not(self, setup: Setup) -> str | None:
        if reason := _no_blocks(setup):
            return reason
        if self.every == 1:
            return None
        count = len(setup.modules_of("block"))
        if count < self.every:
            blocks = "1 block module" if count == 1 else f"{count} block modules"
            return f"every: {self.every} is more than {setup.card.name} has, {blocks}; nothing would be recomputed"
        return None

    def apply(self, setup: Setup) -> None:
        keeper = SavedOnHost(setup.host, smallest=1) if self.offload else None
        for number, module in enumerate(setup.modules_of("block").values(), 1):
            if number % self.every == 0:
                _recompute(module, keeper)


class SelectiveCheckpointing(Technique):
    """Recompute what is cheap in modules of role ``block``; keep what products with weights and attention kernels give.

    Attention that is not fused is recomputed as a whole: its score matrix is large and quickly made (section 5 of the
    source). So is a kernel that draws a dropout mask inside: were it spared, later masks of the block would be others.
    """

    key = "checkpointing"
    name = "selective"
    source = "Korthikanti et al. 2022, arXiv 2205.05198; torch.utils.checkpoint.create_selective_checkpoint_contexts"
    stage = 205
    exactness = "bitwise"

    def why_not(self, setup: Setup) -> str | None:
        return _no_blocks(setup)

    def apply(self, setup: Setup) -> None:
        contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
        for module in setup.modules_of("block").values():
            _recompute(module, context_fn=contexts)


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """What happens to the result of an operation of a block."""
    return CheckpointPolicy.MUST_SAVE if _kept(operation, args, kwargs) else CheckpointPolicy.PREFER_RECOMPUTE


def _kept(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    schema = getattr(operation, "_schema", None)
    if schema is None:  # a higher-order operator
        return False
    if schema.name in PRODUCTS or schema.name in QUANTIZED_PRODUCTS:
        return True
    if not schema.name.startswith(ATTENTION) or schema.name == UNFUSED or schema.name.endswith("_backward"):
        return False
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    return not given.get("dropout_p", 0.0)


def _no_blocks(setup: Setup) -> str | None:
    return None if "block" in setup.card.roles else f"{setup.card.name} has no role block"


def _recompute(module: nn.Module, keeper: SavedOnHost | None = None, **options: Any) -> None:
    """Wrap `forward` on the instance: names of parameters stay as they are, so saved files do too.

    What recomputes itself already, piece by piece, is left as it is. With a `keeper`, what is saved around the
    recomputed part, its inputs, goes to the host. Whether the module trains or evaluates does not matter: with
    gradients, activations are what takes the memory.
    """
    forward = module.forward
    if getattr(forward, "recomputes", False):
        return

    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        with contextlib.nullcontext() if keeper is None else keeper.keeping(shared_by_blocks(args, kwargs)):
            return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=True, **options, **kwargs)

    marked: Any = recomputed
    marked.recomputes = True  # for what is wrapped inside and saves tensors in a way of its own
    module.forward = marked


OPTIONS = (NoCheckpointing, BlockCheckpointing, SelectiveCheckpointing)
