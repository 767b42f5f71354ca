"""Which parameters are trained: all of them, the task head, or low-rank adapters beside a frozen base."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import nn

from zoo.errors import InputError
from zoo.techniques import Technique

if TYPE_CHECKING:
    from zoo.step import Setup


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

    `targets` are roles of the card. The heads (role ``head``) are trained in full and saved with the adapter.
    """

    key = "adapter"
    name = "lora"
    source = "Hu et al. 2021, arXiv 2106.09685"
    stage = 120
    exactness = "changes-model"

    rank: int = Field(8, gt=0)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(("attention",), min_length=1)

    def apply(self, setup: Setup) -> None:
        from zoo.step import materialise, storage_free

        with storage_free():  # importing it makes tensors, which are not this step's
            import peft
        linear: list[str] = []
        for role in self.targets:
            found = setup.modules_of(role)
            names = [name for name, module in found.items() if isinstance(module, nn.Linear)]
            if not names:
                raise InputError(f'role "{role}" of {setup.card.name} has no linear layer for LoRA to adapt')
            linear.extend(names)
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=sorted(set(linear)),
            modules_to_save=_outermost(setup.modules_of("head")),
        )
        # Adapters are made without storage and then like every other tensor, so that both worlds do the same.
        with storage_free():
            wrapped = peft.get_peft_model(setup.model, config, low_cpu_mem_usage=True, autocast_adapter_dtype=False)
            for module in wrapped.modules():
                if isinstance(module, peft.tuners.lora.LoraLayer):  # PEFT leaves what it makes without storage in fp32
                    for layers in (module.lora_A, module.lora_B):
                        layers.to(module.get_base_layer().weight.dtype)
        for module in wrapped.modules():
            if isinstance(module, peft.utils.ModulesToSaveWrapper):  # trains a copy, of the same published values
                copied = module.modules_to_save["default"]
                _copy_again(copied)
                for old, new in zip(module.original_module.parameters(), copied.parameters(), strict=True):
                    if old in setup.reference:
                        setup.reference[new] = setup.reference[old]
        setup.model = wrapped
        materialise(wrapped, setup.device)
        # First values come from the seed alone, as those of the head do, whatever was drawn before.
        with torch.random.fork_rng([setup.device] if setup.device.type == "cuda" else []):
            torch.manual_seed(setup.seed)
            for module in wrapped.modules():
                if isinstance(module, peft.tuners.lora.LoraLayer):
                    module.reset_lora_parameters("default", init_lora_weights=True)


def _copy_again(copied: nn.Module) -> None:
    """Replace parameters that were copied while modes were off: views of a fake tensor copied so are not its own."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in copied.modules():
        for name, p in module._parameters.items():
            if p is not None:
                if p not in made:
                    made[p] = nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad)
                module._parameters[name] = made[p]


def _outermost(modules: dict[str, nn.Module]) -> list[str]:
    return [name for name in modules if not any(name.startswith(f"{other}.") for other in modules)]


OPTIONS = (Full, LoRA, HeadOnly)
