"""Fused and eager attention: switched from outside, the same up to rounding, and what a model lacks is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import CPU, NAMES, batches, defaults, measured, predicted, run_steps, small, task_of
from torch import nn

from zoo.card import ModelCard
from zoo.domain import Head
from zoo.errors import InputError
from zoo.memory.trace import World
from zoo.step import PHASES, Setup, build
from zoo.techniques.adapter import LoRA
from zoo.techniques.attention import EagerAttention, FusedAttention
from zoo.techniques.precision import BF16
from zoo.training.values import loader_of
from zoo.weights.hf import build as build_model

LENGTHS = (17, 9, 30, 12)
KIND = "sequence_classification"


def _made(card: ModelCard, technique: FusedAttention | EagerAttention) -> Setup:
    return build(card, task_of(KIND, card), defaults(attention=technique), CPU, load=loader_of(card, "random", 0))


def _attention_operations(setup: Setup) -> set[str]:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: set[str] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.add(func._schema.name)
            return func(*args, **(kwargs or {}))

    inputs = batches(task_of(KIND, setup.card), LENGTHS)[0].inputs
    with Watch():
        setup.model(**inputs)
    return {name for name in seen if "scaled_dot_product" in name or name == "aten::_softmax"}


@pytest.mark.parametrize("name", NAMES)
def test_eager_makes_the_scores_and_sdpa_does_not(name: str) -> None:
    card = small(name)
    fused = {"aten::_scaled_dot_product_flash_attention_for_cpu"}
    assert _attention_operations(_made(card, FusedAttention())) == fused
    assert _attention_operations(_made(card, EagerAttention())) == {"aten::_softmax"}


@pytest.mark.parametrize("name", NAMES)
def test_eager_gives_what_fused_attention_gives(name: str) -> None:
    card = small(name)
    fused, eager = (_made(card, technique).model for technique in (FusedAttention(), EagerAttention()))
    inputs = batches(task_of(KIND, card), LENGTHS)[0].inputs
    theirs, ours = (model(**inputs).logits for model in (fused, eager))
    torch.testing.assert_close(ours, theirs)
    assert all(torch.equal(a, b) for a, b in zip(fused.parameters(), eager.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_default_changes_nothing(name: str) -> None:
    card = small(name, dropout=0.1)
    task = task_of(KIND, card)
    steps = [batches(task, LENGTHS)]
    without = tuple(t for t in defaults() if t.key != "attention")
    ours, theirs = (run_steps(card, task, techniques, steps) for techniques in (defaults(), without))
    assert torch.equal(ours.losses[0], theirs.losses[0])
    assert all(torch.equal(ours.weights[0][n], theirs.weights[0][n]) for n in theirs.weights[0])


def test_eager_attention_trains_under_lora_in_16_bits() -> None:
    card = small("antiberty", dropout=0.1)
    task = task_of(KIND, card)
    chosen = defaults(attention=EagerAttention(), adapter=LoRA(rank=2), precision=BF16())
    assert run_steps(card, task, chosen, [batches(task, LENGTHS)]).losses[0].isfinite()


# ------------------------------------------------------------------------------------------------ refusals


def _only(card: ModelCard, *attention: str) -> ModelCard:
    return card.model_copy(update={"attention": attention})


def test_what_the_card_does_not_list_is_refused() -> None:
    with pytest.raises(InputError, match="attention: sdpa: esm2_t6_8m computes attention as eager only"):
        _made(_only(small("esm2_t6_8m"), "eager"), FusedAttention())
    with pytest.raises(InputError, match="attention: eager: esm2_t6_8m computes attention as sdpa only"):
        _made(_only(small("esm2_t6_8m"), "sdpa"), EagerAttention())
    with pytest.raises(InputError, match="attention: eager: esm2_t6_8m computes attention as it is written only"):
        _made(_only(small("esm2_t6_8m")), EagerAttention())


def build_eager(card: ModelCard, head: Head) -> nn.Module:
    model: Any = build_model(card, head)
    model.set_attn_implementation("eager")
    return model  # type: ignore[no-any-return]


def test_a_builder_that_fixes_an_implementation_must_say_so_in_the_card() -> None:
    card = small("esm2_t6_8m").model_copy(update={"build": f"{__name__}:build_eager"})
    said = "attention: sdpa: esm2_t6_8m is built with attention eager; its card must list that one in `attention`"
    with pytest.raises(InputError, match=said):
        _made(card, FusedAttention())
    assert _attention_operations(_made(_only(card, "eager"), EagerAttention())) == {"aten::_softmax"}


class _Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 8)
        self.classifier = nn.Linear(8, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.embed(input_ids).mean(1))
        return out


def build_plain(card: ModelCard, head: Head) -> nn.Module:
    return _Plain()


def test_a_model_without_a_switch_is_left_alone_by_default_and_refuses_eager() -> None:
    roles = {"head": ("classifier",), "block": ("embed",)}
    card = small("esm2_t6_8m").model_copy(update={"build": f"{__name__}:build_plain", "roles": roles})
    assert isinstance(_made(card, FusedAttention()).model, _Plain)
    with pytest.raises(InputError, match=r"attention: eager: esm2_t6_8m has no switch .*set_attn_implementation"):
        _made(card, EagerAttention())


class _Stubborn(_Plain):
    """Has a config that the switch does not reach."""

    class config:  # noqa: N801
        _attn_implementation = "sdpa"

    def set_attn_implementation(self, name: str) -> None:
        pass


def build_stubborn(card: ModelCard, head: Head) -> nn.Module:
    return _Stubborn()


def test_a_switch_that_does_nothing_is_noticed() -> None:
    card = small("esm2_t6_8m").model_copy(update={"build": f"{__name__}:build_stubborn"})
    with pytest.raises(InputError, match="attention: eager: transformers cannot switch _Stubborn of esm2_t6_8m"):
        _made(card, EagerAttention())


def test_where_there_is_only_eager_the_planner_takes_it() -> None:
    card = small("esm2_t6_8m")
    for one, wanted in ((card, (True, False)), (_only(card, "eager"), (False, True)), (None, (True, False))):
        assert (FusedAttention().automatic_for(one), EagerAttention().automatic_for(one)) == wanted


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize(("name", "dropout"), [("esm2_t6_8m", 0.0), ("antiberty", 0.1)])
def test_predicted_peaks_are_measured_ones(name: str, dropout: float) -> None:
    card = small(name, dropout=dropout, hidden_size=256, intermediate_size=512)
    given = (card, task_of(KIND, card), defaults(attention=EagerAttention()), 16, 64)
    fake, meta, real = predicted(*given).peaks(), predicted(*given, world="meta").peaks(), measured(*given)
    for phase in PHASES:
        assert fake[phase] == pytest.approx(real[phase], rel=0.01), phase
        assert meta[phase] == pytest.approx(fake[phase], rel=0.002), phase


@pytest.mark.parametrize("world", ["fake", "meta", "accelerator"])
def test_eager_keeps_score_matrices(world: World) -> None:
    card = small("esm2_t6_8m", num_hidden_layers=2)
    task = task_of(KIND, card)
    rows, length, heads = 4, 128, 4
    fused, eager = (
        predicted(card, task, defaults(attention=technique), rows, length, world=world).peaks()["forward"]
        for technique in (FusedAttention(), EagerAttention())
    )
    # Each of two blocks keeps one; what fused attention keeps instead is small.
    assert eager - fused > 1.5 * rows * heads * length * length * 4
