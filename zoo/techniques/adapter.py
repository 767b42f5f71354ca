"""Which parameters are trained: all of them, the task head, or low-rank adapters beside a frozen base."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from pydantic import Field
from torch import nn

from zoo.errors import InputError
from zoo.techniques import Technique
from zoo.techniques._imports import quietly
from zoo.techniques._reach import taking_part

if TYPE_CHECKING:
    from zoo.step import Setup

ALL_LINEAR = "all-linear"
"""The target that is no role: every linear layer of the trunk."""


class Full(Technique):
    """Train every parameter that takes part in the task's output."""

    key = "adapter"
    name = "full"
    source = "-"
    stage = 120
    exactness = "bitwise"

    def apply(self, setup: Setup) -> None:
        pass


class HeadOnly(Technique):
    """Freeze the pretrained trunk and train the modules of role ``head``, except what they share with the trunk."""

    key = "adapter"
    name = "head"
    source = "linear probing, Alain and Bengio 2016, arXiv 1610.01644"
    stage = 120
    exactness = "changes-model"
    departure = 6
    freezes_trunk = True

    def apply(self, setup: Setup) -> None:
        heads = tuple(f"{name}." for name in setup.modules_of("head"))
        setup.model.requires_grad_(False)
        # An output layer tied to the input embedding is the trunk's: training it would train the trunk.
        named = list(setup.base.named_parameters(remove_duplicate=False))
        trunk = {p for name, p in named if not name.startswith(heads)}
        for p in (p for name, p in named if name.startswith(heads) and p not in trunk):
            p.requires_grad_(True)


class LoRA(Technique):
    """Freeze the base and train low-rank updates of its linear layers, with the task head, through PEFT.

    `targets` are roles of the card, or ``all-linear``: every linear layer of the trunk that takes part in the task's
    output. The heads (role ``head``) are never adapted: they are trained in full and saved with the adapter.
    `rslora` scales updates by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023, arXiv 2312.03732). `dora`
    trains the length of every row of the weights apart from their direction (Liu et al. 2024, arXiv 2402.09353).
    """

    key = "adapter"
    name = "lora"
    source = "Hu et al. 2021, arXiv 2106.09685"
    stage = 120
    exactness = "changes-model"
    departure = 3
    freezes_trunk = True

    rank: int = Field(8, gt=0)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(("attention",), min_length=1)
    rslora: bool = False
    dora: bool = False

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that the card must have."""
        return tuple(target for target in self.targets if target != ALL_LINEAR)

    def apply(self, setup: Setup) -> None:
        from zoo.step import materialise, storage_free

        peft = _peft()
        linear, heads = self._linear(setup), _outermost(setup.modules_of("head"))
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=linear,
            modules_to_save=heads,
            use_rslora=self.rslora,
            use_dora=self.dora,
        )
        there = {*setup.model.parameters(), *setup.model.buffers()}
        # Adapters are made without storage and then like every other tensor, so that both worlds do the same.
        with storage_free(), _no_lengths():
            wrapped = peft.get_peft_model(setup.model, config, low_cpu_mem_usage=True, autocast_adapter_dtype=False)
            match_dtypes(wrapped)
        _check(peft, wrapped, linear, heads)
        for adapter in wrapped.peft_config.values():  # PEFT makes a set of them, and would save it in any order
            adapter.target_modules = sorted(adapter.target_modules)
        for module in wrapped.modules():
            if isinstance(module, peft.utils.ModulesToSaveWrapper):  # trains a copy, of the same published values
                copied = module.modules_to_save["default"]
                _copy_again(copied)
                there |= {*copied.parameters(), *copied.buffers()}
                for old, new in zip(module.original_module.parameters(), copied.parameters(), strict=True):
                    if old in setup.reference:
                        setup.reference[new] = setup.reference[old]
        setup.model = wrapped
        materialise(wrapped, setup.device, keep=there)
        # First values come from the seed alone, as those of the head do, whatever was drawn before.
        with torch.random.fork_rng([setup.device] if setup.device.type == "cuda" else []):
            torch.manual_seed(setup.seed)
            for module in wrapped.modules():
                if isinstance(module, peft.tuners.lora.LoraLayer):
                    module.reset_lora_parameters("default", init_lora_weights=True)
                    if self.dora:
                        _measure_lengths(module)

    def read(self, base: nn.Module, folder: Path) -> nn.Module:
        """`base` with what PEFT saved in `folder` put beside it, as it was trained; nothing is merged."""
        model: nn.Module = _peft().PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False)
        match_dtypes(model)
        return model

    def _linear(self, setup: Setup) -> list[str]:
        """Names of the layers to adapt. Raises `InputError` where a target has none, or names the task head."""
        heads = tuple(setup.modules_of("head"))
        linear: set[str] = set()
        for target in self.targets:
            if target == ALL_LINEAR:
                used = taking_part(setup)
                trunk = {n: m for n, m in setup.base.named_modules() if n in used and not _inside(n, heads)}
                what = f"the trunk of {setup.card.name}"
            else:
                trunk = setup.modules_of(target)
                what = f'role "{target}" of {setup.card.name}'
            names = [name for name, module in trunk.items() if isinstance(module, nn.Linear)]
            if not names:
                raise InputError(f"{what} has no linear layer for LoRA to adapt")
            if inside := [name for name in names if _inside(name, heads)]:
                raise InputError(
                    f"{what} is in the task head ({', '.join(inside[:3])}), which is trained in full; "
                    "take it out of targets"
                )
            linear.update(names)
        return sorted(linear)


def match_dtypes(model: nn.Module) -> None:
    """Give adapters the type of the layers beside them, in which they were trained: PEFT makes some in fp32."""
    lora = _peft().tuners.lora
    for module in model.modules():
        if isinstance(module, lora.LoraLayer):
            base = module.get_base_layer()
            dtype = getattr(base, "compute_dtype", None) or base.weight.dtype  # codes are no type to compute in
            for layers in (module.lora_A, module.lora_B, module.lora_magnitude_vector):
                layers.to(dtype)


def _peft() -> Any:
    return quietly("peft")


def _no_lengths() -> contextlib.AbstractContextManager[Any]:
    """While entered, PEFT does not measure the rows of weights for DoRA: adapters have no values yet."""
    from peft.tuners.lora.dora import DoraLinearLayer

    def update_layer(self: Any, *, base_layer: Any, **_: Any) -> None:
        self.weight = nn.Parameter(torch.empty(base_layer.out_features))

    return mock.patch.object(DoraLinearLayer, "update_layer", update_layer)


@torch.no_grad()
def _measure_lengths(module: Any) -> None:
    """What DoRA starts from: the length of every row of the published weight (the update is still zero)."""
    dora = module.lora_magnitude_vector["default"]
    weight = _weight_of(module.get_base_layer())
    dora.weight.copy_(torch.linalg.norm(weight, dim=1))


def _weight_of(base: Any) -> torch.Tensor:
    """The weight as it is multiplied, dequantized where it is held in codes."""
    weight: torch.Tensor = base.full_weight() if hasattr(base, "full_weight") else base.weight
    return weight


def _check(peft: Any, wrapped: nn.Module, linear: list[str], heads: list[str]) -> None:
    """PEFT matches the end of a name: it must have found what was meant, and nothing else."""
    base: Any = wrapped
    adapted, saved = set(), set()
    for name, module in base.get_base_model().named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            adapted.add(name)
        elif isinstance(module, peft.utils.ModulesToSaveWrapper):
            saved.add(name)
    for what, found, meant in (("adapts", adapted, set(linear)), ("trains in full", saved, set(heads))):
        if found != meant:
            raise InputError(
                f"PEFT {what} {', '.join(sorted(found ^ meant)[:5])}, which ends like a module that the card names, or "
                "not one that it names; the card's patterns must name whole modules that no other ends with"
            )


def _copy_again(copied: nn.Module) -> None:
    """Replace parameters that were copied while modes were off: views of a fake tensor copied so are not its own."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in copied.modules():
        for name, p in module._parameters.items():
            if p is not None:
                if p not in made:
                    made[p] = nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad)
                module._parameters[name] = made[p]


def _inside(name: str, others: tuple[str, ...]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in others)


def _outermost(modules: dict[str, nn.Module]) -> list[str]:
    return [name for name in modules if not any(name.startswith(f"{other}.") for other in modules)]


OPTIONS = (Full, LoRA, HeadOnly)
