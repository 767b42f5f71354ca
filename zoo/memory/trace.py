"""Running code on tensors without storage, under a ledger.

Two worlds without storage are used. *Fake CPU tensors* choose the very kernels that the CPU runs, so their ledger
equals a real run to the byte; they confirm a plan. *meta tensors* cost half as much to run and are used to search;
the few places where the CPU's choice of kernel differs are bridged here, each with its source.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812  (the name that torch's documentation uses)
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.domain import Batch
from zoo.memory.ledger import Ledger, Record
from zoo.step import Setup, train_step

World = Literal["fake", "meta"]


_plain_attention = F.scaled_dot_product_attention


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Fused attention of the CPU without dropout, the plain product with it.

    Source: torch 2.13, ``aten/src/ATen/native/transformers/sdp_utils_cpp.cpp`` (``use_flash_attention_cpp``) and
    ``attention.cpp`` (boolean masks become additive ones of the query's type).
    """
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, -math.inf).to(query.dtype)
    if dropout_p == 0.0 and query.ndim == 4 and not enable_gqa:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out: torch.Tensor = flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
        return out
    return _plain_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)


@contextlib.contextmanager
def _fused_optimizers_on_meta() -> Iterator[None]:
    """Fused optimizers check the kind of device before they run; ``meta`` stands in for one that has them."""
    module: Any = importlib.import_module("torch.optim.optimizer")
    kinds = [*module._get_fused_kernels_supported_devices(), "meta"]
    with mock.patch.object(module, "_get_fused_kernels_supported_devices", return_value=kinds):
        yield


@contextlib.contextmanager
def without_storage(world: World, *, count_costs: bool = False) -> Iterator[tuple[torch.device, Ledger]]:
    """Enter a world without storage. Yields the device to build on and the ledger that watches."""
    ledger = Ledger(count_costs=count_costs, memoise=world == "meta")
    with contextlib.ExitStack() as stack:
        if world == "fake":
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        else:
            stack.enter_context(_fused_optimizers_on_meta())
            stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", _attention))
        stack.enter_context(ledger)
        stack.enter_context(_no_garbage_collection())
        yield torch.device("cpu" if world == "fake" else "meta"), ledger


def trace(
    build: Callable[[torch.device], Setup],
    batch: Callable[[Setup], list[Batch]],
    world: World,
    *,
    steps: int = 2,
    count_costs: bool = False,
) -> Record:
    """What `steps` training steps allocate. The phases are those of `train_step`.

    With ``steps=1`` the optimizer's states are made first, by a step on empty gradients, so that the one full step
    is a step as all but the first are.
    """
    with without_storage(world, count_costs=count_costs) as (device, ledger):
        setup = build(device)
        ledger.label("parameters", setup.model.parameters())
        ledger.label("buffers", setup.model.buffers())
        if steps == 1:
            _make_states(setup)
        ledger.relabel_alive("other", "optimizer")
        setup.phase = ledger.phase
        for _ in range(steps):
            with torch.device(device):
                micro_batches = batch(setup)
            for micro in micro_batches:
                ledger.label("batch", [*micro.inputs.values(), micro.targets])
            with _label_gradients(setup, ledger):
                train_step(setup, micro_batches)
            ledger.relabel_alive("temporaries", "optimizer")
            del micro_batches
        ledger.close()
    return ledger.record


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Cycles die at a time of the collector's choosing, which would make traces differ from run to run."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _make_states(setup: Setup) -> None:
    if setup.optimizer is None:
        raise ValueError("the setup has no optimizer: build it with an optimizer technique")
    for parameter in setup.trainable().values():
        parameter.grad = torch.empty_like(parameter)
    setup.optimizer.step()
    setup.optimizer.zero_grad(set_to_none=True)


@contextlib.contextmanager
def _label_gradients(setup: Setup, ledger: Ledger) -> Iterator[None]:
    """Call what a backward pass leaves in ``.grad`` by its name, as soon as the pass ends."""
    plain = setup.phase

    @contextlib.contextmanager
    def watched(name: str) -> Iterator[None]:
        with plain(name):
            yield
            if name == "backward":
                ledger.label("gradients", (p.grad for p in setup.trainable().values() if p.grad is not None))

    setup.phase = watched
    try:
        yield
    finally:
        setup.phase = plain
