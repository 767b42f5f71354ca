"""What the device cannot hold and does not need at every moment, in the memory of the host.

One of three things: activations between forward and backward pass, states and fp32 masters of the optimizer, or frozen
weights. Transfers are on the stream that computes and nothing is fetched in advance: a step takes the time of both.
With a second stream the transfers of a block could run beside the computation of its neighbours: a step would take
the longer of the two times in place of their sum, and the device would hold the tensors of one block more.

On a CPU host and device are the same memory: everything works there to the same bits, and takes more.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from zoo.errors import InputError
from zoo.host import Host
from zoo.techniques import Technique
from zoo.techniques._saved_on_host import SMALLEST, SavedOnHost, shared_by_blocks, weights_of

if TYPE_CHECKING:
    from zoo.step import Setup


class NoOffload(Technique):
    """Everything is on the device."""

    key = "offload"
    name = "none"
    source = "-"
    stage = 50
    exactness = "bitwise"

    def apply(self, setup: Setup) -> None:
        pass


class _Offload(Technique):
    """What the options share."""

    key = "offload"
    stage = 50
    exactness = "bitwise"
    automatic = False
    moves_to_host = True


class Activations(_Offload):
    """Move what modules of role ``block`` save for the backward pass to page-locked host memory, and back.

    Moved are storages of at least `smallest` bytes that nothing else holds: no weights, and nothing that all blocks are
    given, such as masks. Beside block checkpointing, these are the inputs of the blocks.
    """

    name = "activations"
    source = "Rhu et al. 2016 (vDNN), arXiv 1602.08124; torch.autograd.graph.save_on_cpu"

    smallest: int = Field(SMALLEST, ge=1)

    def why_not(self, setup: Setup) -> str | None:
        return _no_blocks(setup)

    def apply(self, setup: Setup) -> None:
        keeper = SavedOnHost(setup.host, self.smallest)
        for number, block in enumerate(setup.modules_of("block").values()):
            _around_calls(block, keeper, setup.host if number == 0 else None)


class Optimizer(_Offload):
    """Keep states and fp32 masters on the host, and step there: gradients go there one by one, parameters come back.

    The device holds parameters and gradients alone. What it computes is the same to the bit wherever the step is done
    by the same kind of processor; between a GPU's and a CPU's arithmetic last bits may differ.
    """

    name = "optimizer"
    source = "Ren et al. 2021 (ZeRO-Offload), arXiv 2101.06840"

    def why_not(self, setup: Setup) -> str | None:
        chosen = {t.key: t for t in setup.chosen}
        precision, optimizer = chosen.get("precision"), chosen.get("optimizer")
        if precision is not None and precision.name == "bf16-pure":
            return "precision bf16-pure has no fp32 masters to keep on the host; choose precision bf16 or fp32"
        if optimizer is None or getattr(optimizer, "steps_on_host", False):
            return None
        return (
            f"optimizer {optimizer.name} cannot step on the host; choose optimizer adamw or adamw-in-backward, or "
            "offload none"
        )

    def apply(self, setup: Setup) -> None:
        setup.steps_on_host = True


class Weights(_Offload):
    """Keep frozen weights of modules of role ``block`` in page-locked host memory, and bring them block by block.

    They come before the block's forward pass and go after it. For the backward pass each comes again when it is
    needed; a block that is recomputed has all of them until its backward pass is done. Weights of less than `smallest`
    bytes stay on the device.
    """

    name = "weights"
    source = "Pudipeddi et al. 2020 (L2L), arXiv 2002.05645"

    smallest: int = Field(SMALLEST, ge=1)

    def why_not(self, setup: Setup) -> str | None:
        if reason := _no_blocks(setup):
            return reason
        chosen = {t.key: t for t in setup.chosen}
        adapter, quantization = chosen.get("adapter"), chosen.get("quantization")
        if adapter is not None and not adapter.freezes_trunk:
            return (
                f"adapter: {adapter.name} trains the weights that would be on the host; write adapter: lora or "
                "adapter: head, or offload: optimizer"
            )
        if quantization is not None and quantization.name != "none":
            return (
                f"quantization: {quantization.name} holds the weights in codes, which stay on the device; choose one "
                "of the two"
            )
        return None

    def apply(self, setup: Setup) -> None:
        blocks = setup.modules_of("block")
        holders = Counter(p for m in setup.model.modules() for p in m._parameters.values() if p is not None)
        count = 0
        for block in blocks.values():
            frozen = [
                (module, name)
                for module in block.modules()
                for name, p in module._parameters.items()
                if p is not None and holders[p] == 1 and p.numel() * p.element_size() >= self.smallest
            ]
            setup.kept_on_host |= {p for m, n in frozen if (p := m._parameters[n]) is not None}
            if frozen:
                _Streamed(block, frozen, setup.host).wrap()
            count += len(frozen)
        if not count:
            raise InputError(
                f"offload: weights: no block of {setup.card.name} has a weight of {self.smallest} bytes or more; "
                "make smallest lower, or choose offload none"
            )
        setup.notes.append(f"offload: {count} frozen weights of {len(blocks)} blocks are kept on the host")


class _Streamed:
    """A block whose frozen weights are on the device while it runs."""

    def __init__(self, block: nn.Module, frozen: list[tuple[nn.Module, str]], host: Host) -> None:
        self.block = block
        self.frozen = frozen
        self.host = host

    def wrap(self) -> None:
        """Wrap `forward` on the instance, inside of what is wrapped around it later: recomputing fetches again."""
        forward = self.block.forward

        @functools.wraps(forward)
        def streamed(*args: Any, **kwargs: Any) -> Any:
            with self.fetched():
                return forward(*args, **kwargs)

        self.block.forward = streamed

    @contextlib.contextmanager
    def fetched(self) -> Iterator[None]:
        """Weights are on the device; what is saved of them inside is fetched again when it is read."""
        homes = [(module, name, module._parameters[name]) for module, name in self.frozen]
        origin: dict[int, torch.Tensor] = {}
        try:
            for module, name, home in homes:
                assert home is not None
                copy = nn.Parameter(self.host.bring(home.detach()), requires_grad=False)
                origin[copy.untyped_storage()._cdata] = home.detach()
                module._parameters[name] = copy
                del copy
            with self._hooks(origin):
                yield
        finally:
            for module, name, home in homes:
                module._parameters[name] = home

    def _hooks(self, origin: dict[int, torch.Tensor]) -> contextlib.AbstractContextManager[None]:
        """None for a block that is recomputed: it saves nothing before its backward pass, and then for that alone."""
        if getattr(self.block.forward, "recomputes", False):
            return contextlib.nullcontext()

        def pack(tensor: torch.Tensor) -> Any:
            home = origin.get(tensor.untyped_storage()._cdata)
            return tensor if home is None else (home, tensor.shape, tensor.stride(), tensor.storage_offset())

        def unpack(saved: Any) -> torch.Tensor:
            if isinstance(saved, torch.Tensor):
                return saved
            home, *view = saved
            return self.host.bring(home).as_strided(*view)

        return saved_tensors_hooks(pack, unpack)


def _around_calls(block: nn.Module, keeper: SavedOnHost, first: Host | None) -> None:
    """Keep what is saved by whole calls of a block, also by what else is wrapped around its forward.

    `first`: wait for earlier transfers before the first block runs.
    """
    entered: list[contextlib.AbstractContextManager[None]] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if first is not None and torch.is_grad_enabled():
            first.settle()
        keeping = keeper.keeping(shared_by_blocks(args, kwargs), weights_of(module))
        keeping.__enter__()
        entered.append(keeping)

    def after(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        entered.pop().__exit__(None, None, None)

    block.register_forward_pre_hook(before, with_kwargs=True)
    block.register_forward_hook(after, always_call=True)


def _no_blocks(setup: Setup) -> str | None:
    return None if "block" in setup.card.roles else f"{setup.card.name} has no role block"


OPTIONS = (NoOffload, Activations, Optimizer, Weights)
