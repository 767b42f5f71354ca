"""Which layers adapters adapt, what is trained beside them, and that PEFT reads and continues what was saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import Recipes
from peft.tuners.lora import LoraLayer
from small_models import CPU, batches, defaults, measured, predicted, run_steps, small, task_of
from test_techniques_quantization import t5
from torch import nn

from zoo.card import ModelCard, load_ref
from zoo.domain import Head
from zoo.errors import InputError
from zoo.step import PHASES, Setup, build, storage_free
from zoo.tasks.sequence import logits
from zoo.techniques import Technique
from zoo.techniques.adapter import LoRA
from zoo.techniques.precision import BF16, FP32
from zoo.techniques.quantization import NF4, Int8
from zoo.training.export import save_model
from zoo.training.values import loader_of

ALL = LoRA(rank=2, targets=("all-linear",))
TASKS = ("sequence_regression", "sequence_classification", "token_classification", "masked_language_modelling")
LENGTHS = (17, 9, 30, 12)


def _built(card: ModelCard, adapter: Technique, task: str = "sequence_regression", **other: Technique) -> Setup:
    return build(card, task_of(task, card), defaults(adapter=adapter, **other), CPU, load=loader_of(card, "random", 0))


def _adapted(setup: Setup) -> set[str]:
    return {name for name, module in setup.base.named_modules() if isinstance(module, LoraLayer)}


def _saved(setup: Setup) -> set[str]:
    wrapper = peft.utils.ModulesToSaveWrapper
    return {name for name, module in setup.base.named_modules() if isinstance(module, wrapper)}


# ------------------------------------------------------------------------------------------------ all-linear


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "nf4"])
def test_all_linear_is_every_linear_layer_of_the_blocks(task: str, quantized: bool) -> None:
    card = small("esm2_t6_8m")
    setup = _built(card, ALL, task, **({"quantization": NF4()} if quantized else {}))
    plain = _built(card, LoRA(targets=("attention", "mlp")), task)
    assert _adapted(setup) == _adapted(plain)
    assert len(_adapted(setup)) == 2 * 6
    assert _saved(setup) == {"lm_head" if task == "masked_language_modelling" else "classifier"}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["antiberty", "rxnmapper_albert"])
def test_every_adapter_of_all_linear_learns(name: str, task: str) -> None:
    """An adapter beside a layer that nobody reads would get no gradient."""
    card = small(name)
    made = task_of(task, card)
    found = run_steps(card, made, defaults(adapter=ALL), [batches(made, LENGTHS)])
    assert _adapted(found.setup)
    wanted = {n for n in found.setup.trainable() if ".lora_B." in n}
    assert {n for n in found.gradients[0] if ".lora_B." in n and bool(found.gradients[0][n].any())} == wanted


def test_a_pooler_that_nobody_reads_is_left_alone() -> None:
    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.pooler, self.classifier = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)
            self.embedding = nn.Embedding(33, 8)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.body(self.embedding(input_ids))
            self.pooler(hidden)
            logits: torch.Tensor = self.classifier(hidden.mean(1))
            return logits

    global _unread
    _unread = Unread
    card = small("esm2_t6_8m").model_copy(
        update={"build": f"{__name__}:build_unread", "depth": None, "roles": {"head": ("classifier",)}}
    )
    assert _adapted(_built(card, ALL)) == {"body"}


_unread: Any = None


def build_unread(card: ModelCard, head: Head) -> nn.Module:
    made: nn.Module = _unread()
    return made


def test_a_model_whose_output_needs_values_asks_for_roles() -> None:
    card = t5()  # its sequence classification counts end-of-sequence tokens
    with pytest.raises(InputError) as caught:
        _built(card, ALL)
    assert "what takes part in the output of t5_small cannot be told without values" in str(caught.value)
    assert "name roles instead of all-linear (roles: attention, block, head)" in str(caught.value)


def test_a_trunk_without_linear_layers_is_an_error() -> None:
    card = small("esm2_t6_8m")
    card = card.model_copy(update={"roles": {**card.roles, "head": ("esm", "classifier")}})
    with pytest.raises(InputError, match="the trunk of esm2_t6_8m has no linear layer for LoRA to adapt"):
        _built(card, ALL)


def test_a_recipe_may_write_all_linear_beside_roles(recipes: Recipes) -> None:
    job = recipes.job({"techniques.adapter": {"lora": {"targets": ["all-linear"], "dora": True, "rslora": True}}})
    assert job.choices["adapter"] == (LoRA(targets=("all-linear",), dora=True, rslora=True),)
    with pytest.raises(InputError, match='"al-linear" is not a role of sapiens_vh'):
        recipes.job({"techniques.adapter": {"lora": {"targets": ["al-linear"]}}})


# ------------------------------------------------------------------------------------------------ heads


def test_the_head_is_no_target() -> None:
    card = small("esm2_t6_8m")
    card = card.model_copy(update={"roles": {**card.roles, "mlp": (*card.roles["mlp"], "classifier.*")}})
    with pytest.raises(InputError) as caught:
        _built(card, LoRA(targets=("attention", "mlp")))
    said = 'role "mlp" of esm2_t6_8m is in the task head (classifier.dense, classifier.out_proj), which is trained in'
    assert said in str(caught.value)


def test_names_that_others_end_with_are_an_error_and_not_adapted_too() -> None:
    card = small("esm2_t6_8m")
    roles = {**card.roles, "head": ("classifier.dense",)}
    setup = _built(card.model_copy(update={"roles": roles}), LoRA())
    assert _saved(setup) == {"classifier.dense"}
    card = card.model_copy(update={"build": f"{__name__}:build_twice", "depth": None})
    with pytest.raises(InputError, match=r"PEFT trains in full other\.classifier, which ends like a module"):
        _built(card, LoRA())


def build_twice(card: ModelCard, head: Head) -> nn.Module:
    made: nn.Module = load_ref("zoo.weights.hf:build")(card, head)
    made.other = nn.ModuleDict({"classifier": nn.Linear(8, 8)})
    return made


def _sequence_models() -> dict[str, ModelCard]:
    bart = t5("bart_small").model_copy(
        update={
            "config": {
                "model_type": "bart", "vocab_size": 33, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
                "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
                "decoder_ffn_dim": 64, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0,
            },
            "roles": {"attention": ("**.self_attn.q_proj",), "head": ("classification_head",)},
        }
    )  # fmt: skip
    return {"t5": t5().model_copy(update={"roles": {**t5().roles, "head": ("classification_head",)}}), "bart": bart}


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_heads_of_encoder_decoders_are_trained(name: str) -> None:
    """PEFT by itself leaves them frozen: it knows heads called `classifier` and `score` only."""
    card = _sequence_models()[name]
    setup = _built(card, LoRA(rank=2), "sequence_classification")
    trained = {n for n in setup.trainable() if ".lora_" not in n}
    assert trained == {
        f"base_model.model.classification_head.modules_to_save.default.{part}.{kind}"
        for part in ("dense", "out_proj")
        for kind in ("weight", "bias")
    }
    with storage_free():
        plain = load_ref(card.build)(card, Head("sequence", 3))
        config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q", "q_proj"])
        alone = peft.get_peft_model(plain, config, low_cpu_mem_usage=True)
    assert not [n for n, p in alone.named_parameters() if p.requires_grad and "classification_head" in n], (
        "mended there"
    )


def test_adapters_beside_fp32_islands_are_in_fp32() -> None:
    card = t5().model_copy(update={"fp32_modules": ("**.wo",)})
    card = card.model_copy(update={"roles": {**card.roles, "mlp": ("**.DenseReluDense.*",), "head": ("classifier",)}})
    card = card.model_copy(update={"roles": {**card.roles, "mlp": ("**.DenseReluDense.wi", "**.DenseReluDense.wo")}})
    task = task_of("token_classification", card)
    techniques = defaults(precision=BF16(), adapter=LoRA(rank=2, targets=("mlp",)))
    setup = run_steps(card, task, techniques, [batches(task, LENGTHS)]).setup
    for n, p in setup.trainable().items():
        assert p.dtype == (torch.float32 if ".wo." in n else torch.bfloat16), n


# ------------------------------------------------------------------------------------------------ DoRA and rsLoRA


@pytest.mark.parametrize("precision", [FP32(), BF16()], ids=lambda p: p.name)
@pytest.mark.parametrize("quantization", [None, NF4(), Int8()], ids=["plain", "nf4", "int8"])
def test_dora_starts_from_the_lengths_of_the_weights(precision: Technique, quantization: Technique | None) -> None:
    other = {"precision": precision, **({"quantization": quantization} if quantization else {})}
    card = small("antiberty")
    task = task_of("sequence_regression", card)
    dora, plain = _built(card, LoRA(rank=2, dora=True), **other), _built(card, LoRA(rank=2), **other)
    lengths = 0
    for module in dora.model.modules():
        if isinstance(module, LoraLayer):
            base: Any = module.get_base_layer()
            weight = base.full_weight() if quantization else base.weight
            measured_length = module.lora_magnitude_vector["default"].weight
            assert measured_length.requires_grad
            assert torch.equal(measured_length, torch.linalg.norm(weight, dim=1))
            lengths += 1
    assert lengths == 8
    inputs = batches(task, LENGTHS)[0].inputs
    with torch.no_grad():
        ours, theirs = (logits(setup.model.eval(), inputs) for setup in (dora, plain))
    assert (ours - theirs).abs().max() <= (2**-5 if precision.name == "bf16" else 1e-5) * theirs.abs().max()


def test_dora_trains_the_lengths() -> None:
    card = small("esm2_t6_8m")
    task = task_of("sequence_regression", card)
    found = run_steps(card, task, defaults(adapter=LoRA(rank=2, dora=True)), [batches(task, LENGTHS)] * 2)
    lengths = [n for n in found.setup.trainable() if "lora_magnitude_vector" in n]
    assert len(lengths) == 8
    assert all(not torch.equal(found.weights[0][n], found.weights[1][n]) for n in lengths)


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    card = small("esm2_t6_8m")
    for rslora, wanted in ((False, 16 / 4), (True, 16 / math.sqrt(4))):
        setup = _built(card, LoRA(rank=4, alpha=16, rslora=rslora))
        scales = {m.scaling["default"] for m in setup.model.modules() if isinstance(m, LoraLayer)}
        assert scales == {wanted}


@pytest.mark.parametrize("adapter", [LoRA(rank=2, dora=True, rslora=True), ALL], ids=["dora", "all-linear"])
def test_predicted_peaks_equal_measured_ones(adapter: Technique) -> None:
    card = small("esm2_t6_8m", hidden_size=320, intermediate_size=640)
    task = task_of("sequence_regression", card)
    techniques = defaults(adapter=adapter)
    real = measured(card, task, techniques, 4, 128)
    for world in ("fake", "meta"):
        peaks = predicted(card, task, techniques, 4, 128, world=world).peaks()
        for phase in PHASES:
            assert peaks[phase] == pytest.approx(real[phase], rel=0.01), (world, phase)
    assert predicted(card, task, techniques, 4, 128, world="accelerator").peaks()["backward"] > 0


@pytest.mark.parametrize("quantization", [None, NF4(), Int8()], ids=["plain", "nf4", "int8"])
def test_peft_reads_what_was_saved_and_says_the_same(quantization: Technique | None, tmp_path: Path) -> None:
    card = small("antiberty")
    task = task_of("sequence_classification", card)
    other = {"quantization": quantization} if quantization else {}
    adapter = LoRA(rank=2, dora=True, rslora=True, targets=("all-linear",))
    setup = run_steps(card, task, defaults(adapter=adapter, **other), [batches(task, LENGTHS)] * 2).setup
    save_model(setup, tmp_path / "model")
    techniques = [t for t in defaults(**other) if t.key in ("precision", "quantization")]
    base = build(card, task, techniques, CPU, load=loader_of(card, "random", 0)).model
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "model")).eval()
    inputs = batches(task, LENGTHS)[0].inputs
    with torch.no_grad():
        assert torch.equal(logits(loaded, inputs), logits(setup.model.eval(), inputs))
