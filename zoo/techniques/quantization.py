"""Frozen weights in 4 or 8 bits: codes and scales are kept, and the weight exists only while it is multiplied.

What is trained (the task head, adapters) stays as the precision has it, and so does everything that is no linear
layer. Nothing is ever merged into codes: adapters are saved beside them, and a model without adapters is saved with
its weights dequantized.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoo.errors import InputError
from zoo.techniques import Technique
from zoo.techniques._imports import quietly

if TYPE_CHECKING:
    from zoo.step import Setup

_KEPT_BY_CLASS = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
"""Where a model of transformers lists parts that stay in fp32: T5 its ``wo``, whose type its forward looks at."""


class NoQuantization(Technique):
    """Keep every weight as the precision has it."""

    key = "quantization"
    name = "none"
    source = "-"
    stage = 110
    exactness = "bitwise"

    def apply(self, setup: Setup) -> None:
        pass


class _Quantized(Technique):
    """Quantize the linear layers of the frozen trunk, from the checkpoint's own values, one by one on the device.

    The task head, parts that stay in fp32 (the card's `fp32_modules`, or those that the model's class names), weights
    that several modules share, and everything that is no linear layer stay as they are. The model is loaded in host
    memory, so that the device never holds more of it than its codes and one layer. Products are computed in the type
    of the precision.
    """

    key = "quantization"
    stage = 110
    exactness = "changes-model"
    departure = 2
    loads_on_host = True

    def why_not(self, setup: Setup) -> str | None:
        if importlib.util.find_spec("bitsandbytes") is None:
            return "bitsandbytes is not installed; install it with: pip install 'science-zoo[quantization]'"
        adapters = [t for t in setup.chosen if t.key == "adapter"]
        if all(t.freezes_trunk for t in adapters):
            return None
        return (
            f"adapter: {adapters[0].name} trains the weights that would be quantized, and codes cannot be trained; "
            "write adapter: lora or adapter: head, or quantization: none"
        )

    def apply(self, setup: Setup) -> None:
        from zoo.step import storage_free

        names, left = _frozen_linears(setup)
        if not names:
            raise InputError(f"{setup.card.name} has no linear layer outside its head for {self.name} to quantize")
        made_by = layers()
        _bring(setup, keep={setup.base.get_parameter(f"{name}.weight") for name in names})
        for name in names:
            linear: Any = setup.base.get_submodule(name)
            with storage_free():
                made = self._empty(made_by, linear)
            made.fill(_on(setup.device, setup.reference.pop(linear.weight, linear.weight)))
            parent, _, leaf = name.rpartition(".")
            setattr(setup.base.get_submodule(parent), leaf, made)
            del linear, made  # the weight goes before the next one comes
        # PEFT asks for these before it lets its layers for codes stand in for its plain ones.
        setattr(setup.base, "is_loaded_in_8bit" if self.name == "int8" else "is_loaded_in_4bit", True)
        kept = f"; kept in full: {', '.join(left)}" if left else ""
        setup.notes.append(f"quantization: {self.name} of {len(names)} linear layers of the trunk{kept}")

    def _empty(self, made_by: ModuleType, linear: nn.Linear) -> Any:
        raise NotImplementedError


class NF4(_Quantized):
    """Frozen linear layers in 4-bit NormalFloat: 4.5 bits a weight. See `_Quantized` for what is left alone."""

    name = "nf4"
    source = "Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, section 3"

    def _empty(self, made_by: ModuleType, linear: nn.Linear) -> Any:
        return made_by.empty_4bit(linear, compress=False)


class NF4Double(_Quantized):
    """As nf4, with the scales in 8 bits: 4.13 bits a weight."""

    name = "nf4-double"
    source = "Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, section 3, double quantization"

    def _empty(self, made_by: ModuleType, linear: nn.Linear) -> Any:
        return made_by.empty_4bit(linear, compress=True)


class Int8(_Quantized):
    """Frozen linear layers in 8-bit integers, one scale for each output; inputs are not quantized."""

    name = "int8"
    automatic = False
    source = "Dettmers et al. 2022 (LLM.int8()), arXiv 2208.07339, vector-wise quantization, of weights only"

    def _empty(self, made_by: ModuleType, linear: nn.Linear) -> Any:
        return made_by.empty_8bit(linear)


def layers() -> ModuleType:
    """The layers, which import bitsandbytes."""
    module: ModuleType = quietly("zoo.techniques._frozen_codes")
    return module


def _frozen_linears(setup: Setup) -> tuple[list[str], list[str]]:
    """Names of the layers to quantize, and of other linear layers of the trunk."""
    base = setup.base
    heads = tuple(setup.modules_of("head"))
    islands = tuple(setup.matching(setup.card.fp32_modules))
    parts = {part for listed in _KEPT_BY_CLASS for part in (getattr(base, listed, None) or ())}
    holders: Counter[torch.Tensor] = Counter(
        p for module in base.modules() for p in module._parameters.values() if p is not None
    )
    chosen: list[str] = []
    left: list[str] = []
    for name, module in base.named_modules():
        if not isinstance(module, nn.Linear) or _inside(name, heads):
            continue
        kept = (
            type(module) is not nn.Linear  # attention that multiplies by out_proj.weight itself, for one
            or _inside(name, islands)
            or not parts.isdisjoint(name.split("."))
            or holders[module.weight] > 1
            or module.in_features % 2 == 1  # two codes to a byte: bitsandbytes cannot read odd rows of 4 bits
        )
        (left if kept else chosen).append(name)
    return chosen, left


def _inside(name: str, others: tuple[str, ...]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in others)


def _bring(setup: Setup, keep: set[torch.Tensor]) -> None:
    """Bring everything but `keep` to the device, keeping ties and the values that master weights start from."""
    from zoo.step import materialise

    materialise(setup.model, setup.device, keep=keep)
    brought: dict[torch.Tensor, torch.Tensor] = {}
    for module in setup.model.modules():
        for store in (module._parameters, module._buffers):
            for name, old in store.items():
                if old is None or old in keep or old.device.type == setup.device.type:
                    continue
                if old not in brought:
                    new: torch.Tensor = old.detach().to(setup.device)
                    if isinstance(old, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=old.requires_grad)
                        if old in setup.reference:
                            setup.reference[new] = setup.reference.pop(old)
                    brought[old] = new
                store[name] = brought[old]  # type: ignore[assignment]


def _on(device: torch.device, value: torch.Tensor) -> torch.Tensor:
    """`value` on `device`: a fresh tensor where it has no storage, or comes from elsewhere."""
    if value.device.type == "meta":
        return torch.empty(value.shape, dtype=value.dtype, device=device)
    return value.detach().to(device)


OPTIONS = (NoQuantization, NF4, NF4Double, Int8)
