"""Traps that others fell into, on a decoder and a T5 encoder that no domain ships."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from benchmarks.models import LLAMA, T5
from conftest import Recipes
from small_models import CPU, batches, changed, defaults, measured, predicted, task_of
from torch import nn

from zoo.card import ModelCard
from zoo.planner import decide, limits_of
from zoo.plans import Workload
from zoo.resolve import Job
from zoo.step import PHASES, Setup, build, train_step
from zoo.techniques import Technique
from zoo.techniques.adapter import ALL_LINEAR, LoRA
from zoo.techniques.precision import BF16
from zoo.techniques.quantization import NF4, Int8
from zoo.training.values import loader_of

KINDS = {"llama_small": "sequence_classification", "t5_encoder_small": "token_classification"}
SMALL = [
    changed(LLAMA, num_hidden_layers=2, hidden_size=64, intermediate_size=96),
    changed(T5, num_layers=2, d_model=64, d_ff=96, d_kv=8),
]
CARDS = [pytest.param(card, id=card.name) for card in SMALL]


def _built(card: ModelCard, **techniques: Technique) -> Setup:
    task = task_of(KINDS[card.name], card)
    return build(card, task, defaults(**techniques), CPU, load=loader_of(card, "random", 0))


def _linear(setup: Setup) -> Iterator[tuple[str, Any]]:
    """Names in the model as its card has them, and modules: linear layers, adapted and quantized ones."""
    for name, module in setup.base.named_modules():
        if isinstance(module, nn.Linear) or hasattr(module, "full_weight") or hasattr(module, "lora_A"):
            yield name, module


def test_the_last_product_of_t5s_mlp_stays_in_fp32_and_is_trained_so() -> None:
    setup = _built(SMALL[1], precision=BF16())
    kept = {name: p for name, p in setup.model.named_parameters() if ".wo." in name}
    assert len(kept) == 2
    assert {p.dtype for p in kept.values()} == {torch.float32}
    assert {p.dtype for name, p in setup.model.named_parameters() if name not in kept} == {torch.bfloat16}
    before = {name: p.detach().clone() for name, p in kept.items()}
    loss = train_step(setup, batches(setup.task, (9, 5, 12))).loss  # type: ignore[arg-type]
    assert torch.isfinite(loss)
    assert all(not torch.equal(before[name], p) for name, p in kept.items())


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("quantization", [NF4, Int8])
def test_neither_codes_nor_adapters_get_into_the_task_head(card: ModelCard, quantization: Callable[[], Any]) -> None:
    setup = _built(card, quantization=quantization(), adapter=LoRA(targets=(ALL_LINEAR,)))
    (head,) = card.roles["head"]
    layers = dict(_linear(setup))
    in_head = {name: module for name, module in layers.items() if name.startswith(head)}
    assert in_head
    for name, module in in_head.items():
        assert type(module) is nn.Linear, f"{name} is a {type(module).__name__}"
        assert module.weight.dtype == torch.float32
    trained = {name for name in setup.trainable() if f"{head}.modules_to_save" in name}
    assert trained, "PEFT leaves a head as it is unless it is named"
    adapted = {name for name, module in layers.items() if hasattr(module, "lora_A")}
    role = [name for part in ("attention", "mlp") for name in setup.modules_of(part)]
    assert adapted == set(role), "every linear layer of the blocks, and no other"


@pytest.mark.parametrize("card", CARDS)
def test_heads_are_trained_beside_adapters(card: ModelCard) -> None:
    setup = _built(card, adapter=LoRA())
    heads = {name: p for name, p in setup.trainable().items() if "lora_" not in name}
    assert heads
    before = {name: p.detach().clone() for name, p in heads.items()}
    train_step(setup, batches(setup.task, (9, 5, 12)))  # type: ignore[arg-type]
    assert all(not torch.equal(before[name], p) for name, p in heads.items())


@pytest.mark.parametrize("card", [LLAMA, T5], ids=lambda card: card.name)
@pytest.mark.parametrize("techniques", [{}, {"adapter": LoRA(), "quantization": NF4()}], ids=["full", "nf4-lora"])
def test_predicted_peaks_equal_measured_ones(card: ModelCard, techniques: dict[str, Technique]) -> None:
    card = changed(card, **{str(card.depth): 2})
    task = task_of(KINDS[card.name], card)
    plan = predicted(card, task, defaults(**techniques), 16, 64).peaks()
    real = measured(card, task, defaults(**techniques), 16, 64)
    for phase in PHASES:
        assert plan[phase] == pytest.approx(real[phase], rel=0.01), phase


@pytest.mark.usefixtures("traced_once")
def test_adapters_that_save_little_are_not_chosen_and_the_plan_says_so(recipes: Recipes) -> None:
    """Activations are most of what a small model holds: adapters alone do not halve it, recomputing blocks does."""

    def job(**techniques: str) -> Job:
        fixed = {"precision": "fp32", "attention": "sdpa", "quantization": "none", "optimizer": "adamw"}
        return recipes.job({"techniques": fixed | {"loss": "full", "offload": "none"} | techniques})

    def needed(**techniques: str) -> int:
        one = job(**techniques)
        return decide(one, Workload(140, 8, "a test"), limits_of(one.recipe.budget)).chosen.needed_bytes

    plain = needed(adapter="full", checkpointing="none")
    adapters = needed(adapter="lora", checkpointing="none")
    recomputed = needed(adapter="full", checkpointing="block")
    assert adapters > 0.6 * plain, "a small model saves little with adapters"
    assert recomputed < 0.6 * adapters
    open_ = recipes.job({"budget.device": f"{recomputed}B", "techniques": {"precision": "fp32"}})
    decision = decide(open_, Workload(140, 8, "a test"), limits_of(open_.recipe.budget))
    assert decision.fits
    assert {t.key: t.name for t in decision.chosen.techniques}["adapter"] == "full"
    refused = [r for r in decision.rejected if any(t.name == "lora" for t in r.techniques)]
    assert refused, "what was not chosen is listed"
    assert all(r.reason for r in refused)
