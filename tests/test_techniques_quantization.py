"""The frozen base in 4 or 8 bits: which layers, how exactly, what it takes, and what becomes of a trained model."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import safetensors.torch
import torch
from conftest import Recipes, finished
from small_models import CPU, SCRATCH, batches, changed, defaults, loads, measured, predicted, run_steps, small, task_of
from torch import nn

from zoo.card import ModelCard
from zoo.domain import find_model
from zoo.errors import InputError
from zoo.memory.trace import World
from zoo.step import PHASES, Setup, build, train_step
from zoo.tasks.sequence import SequenceTask, logits
from zoo.techniques import Technique
from zoo.techniques.adapter import HeadOnly, LoRA
from zoo.techniques.precision import BF16, FP32
from zoo.techniques.quantization import NF4, Int8, NF4Double, layers
from zoo.training import state
from zoo.training.export import save_model
from zoo.training.finished import Run
from zoo.training.state import Progress
from zoo.training.values import loader_of

KINDS: tuple[Technique, ...] = (NF4(), NF4Double(), Int8())
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
each_type = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
LENGTHS = (17, 9, 30, 12)
NAMES = ("esm2_t6_8m", "antiberty")


def _layer(kind: Technique, linear: nn.Linear) -> Any:
    """One of our layers with the weight of `linear`."""
    made_by = layers()
    with torch.device("meta"):
        made = made_by.empty_8bit(linear) if kind.name == "int8" else made_by.empty_4bit(linear, compress=_double(kind))
    made.fill(linear.weight.detach())
    return made


def _double(kind: Technique) -> bool:
    return kind.name == "nf4-double"


def _theirs(kind: Technique, linear: nn.Linear) -> Any:
    """The layer of bitsandbytes, made as its documentation says."""
    made: Any
    if kind.name == "int8":
        made = bitsandbytes.nn.Linear8bitLt(linear.in_features, linear.out_features, has_fp16_weights=False)
        made.weight = bitsandbytes.nn.Int8Params(linear.weight.detach().clone(), requires_grad=False)
    else:
        made = bitsandbytes.nn.Linear4bit(
            linear.in_features, linear.out_features, compute_dtype=linear.weight.dtype,
            compress_statistics=_double(kind), quant_type="nf4",
        )  # fmt: skip
        made.weight = bitsandbytes.nn.Params4bit(
            linear.weight.detach().clone(), requires_grad=False, compress_statistics=_double(kind), quant_type="nf4",
            module=made,
        )  # fmt: skip
    made.bias = nn.Parameter(linear.bias.detach().clone())
    return made.to("cpu")


def _linear(dtype: torch.dtype, inputs: int = 96, outputs: int = 80) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Linear(inputs, outputs).to(dtype)


def _run(layer: nn.Module, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(3, 7, 96, generator=draw).to(dtype).requires_grad_()
    out = layer(x)
    out.backward(torch.randn(out.shape, generator=draw).to(dtype))
    bias: Any = layer.bias
    assert x.grad is not None
    return out.detach(), x.grad, bias.grad


# ------------------------------------------------------------------------------------------------ one layer


@each_kind
@each_type
def test_a_layer_computes_what_that_of_bitsandbytes_does_while_training(kind: Technique, dtype: torch.dtype) -> None:
    linear = _linear(dtype)
    ours, theirs = _run(_layer(kind, linear), dtype), _run(_theirs(kind, linear), dtype)
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        assert mine.dtype == other.dtype == dtype
        assert torch.equal(mine, other)


@each_kind
@each_type
def test_a_layer_is_the_linear_layer_of_its_dequantized_weight(kind: Technique, dtype: torch.dtype) -> None:
    linear = _linear(dtype)
    quantized = _layer(kind, linear)
    plain = _linear(dtype)
    with torch.no_grad():
        plain.weight.copy_(quantized.full_weight())
    assert not torch.equal(plain.weight, linear.weight)
    linear.bias.grad = None
    for mine, other in zip(_run(quantized, dtype), _run(plain, dtype), strict=True):
        assert (mine - other).norm() <= 2**-8 * other.norm() if dtype == torch.bfloat16 else 1e-6 * other.norm()


@each_kind
def test_evaluation_computes_what_training_did_and_spoils_nothing(kind: Technique) -> None:
    """On some CPUs 4-bit layers of bitsandbytes repack their weight in eval() and pass no gradient ever after."""
    layer = _layer(kind, _linear(torch.bfloat16))
    codes = layer.weight.data.clone()
    first = _run(layer, torch.bfloat16)
    x = torch.randn(3, 7, 96, generator=torch.Generator().manual_seed(2)).bfloat16()
    layer.eval()
    with torch.no_grad():
        assert torch.equal(layer(x), first[0])
    layer.train()
    layer.bias.grad = None
    assert torch.equal(layer.weight.data, codes)
    for before, after in zip(first, _run(layer, torch.bfloat16), strict=True):
        assert torch.equal(before, after)


def _widest_gap() -> float:
    """Half the widest gap between two of the 16 values of NF4."""
    values = bitsandbytes.functional.get_4bit_type("nf4", device="cpu").sort().values
    return float(values.diff().max()) / 2


@each_kind
def test_dequantized_weights_are_within_the_bound_of_their_format(kind: Technique) -> None:
    linear = _linear(torch.float32, 256, 128)
    weight = linear.weight.detach()
    error = (_layer(kind, linear).full_weight() - weight).abs()
    if kind.name == "int8":
        scale = weight.abs().amax(1, keepdim=True)
        bound = scale * (0.5 / 127 + 2**-10)  # half a step; weights pass through fp16, twice rounded to 11 bits
    else:
        blocks = weight.reshape(-1, 64).abs().amax(1, keepdim=True)
        # scales are codes of 8 bits around their mean, where quantized doubly: half a step of that map is 1/128 at most
        off = (blocks - blocks.mean()).abs().max() * 2**-6 if _double(kind) else 0.0
        bound = (blocks * (_widest_gap() + 1e-6) + off).expand(-1, 64).reshape(weight.shape)
    assert bool((error <= bound).all())
    assert float((error / bound).max()) > 0.8, "the bound is not tight: it would pass for anything"


# ------------------------------------------------------------------------------------------------ which layers


def _codes(setup: Setup) -> set[str]:
    return {name for name, module in setup.base.named_modules() if _quantized(module)}


def _quantized(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and hasattr(module, "full_weight")


def _built(
    card: ModelCard, kind: Technique, task: str = "sequence_regression", load: Any = None, **other: Technique
) -> Setup:
    chosen = {"adapter": LoRA(rank=2), "quantization": kind, **other}
    return build(card, task_of(task, card), defaults(**chosen), CPU, load=load or loader_of(card, "random", 0))


@pytest.mark.parametrize(
    ("adapter", "kind", "task"),
    [
        (LoRA(rank=2), NF4(), "token_classification"),
        (LoRA(rank=2), Int8(), "masked_language_modelling"),
        (HeadOnly(), NF4Double(), "sequence_regression"),
        (HeadOnly(), Int8(), "masked_language_modelling"),
    ],
    ids=["lora-nf4", "lora-int8", "head-nf4-double", "head-int8"],
)
@pytest.mark.parametrize("name", [*NAMES, "rxnmapper_albert"])
def test_all_linear_layers_of_the_trunk_are_quantized_and_nothing_else(
    name: str, task: str, adapter: Technique, kind: Technique
) -> None:
    card = small(name)
    plain = build(card, task_of(task, card), defaults(), CPU)
    heads = tuple(plain.modules_of("head"))
    wanted = {
        n for n, m in plain.model.named_modules()
        if isinstance(m, nn.Linear) and not any(n == h or n.startswith(f"{h}.") for h in heads)
    }  # fmt: skip
    setup = _built(card, kind, task, adapter=adapter)
    found = {n.removesuffix(".base_layer") for n in _codes(setup)}
    assert found == wanted
    assert len(found) >= 6
    for n, p in setup.model.named_parameters():
        assert p.is_floating_point() or n.removesuffix(".weight").removesuffix(".base_layer").endswith(tuple(found))
    assert all(p.is_floating_point() for p in setup.trainable().values())
    heads = tuple(setup.modules_of("head"))
    assert any(any(f".{h}" in f".{n}" for h in heads) for n in setup.trainable()), "the head is not trained"


def t5(name: str = "t5_small") -> ModelCard:
    """A T5 of two narrow layers; `wo` is to stay in fp32, says its class."""
    return find_model("esm2_t6_8m").model_copy(
        update={
            "name": name,
            "config": {
                "model_type": "t5", "vocab_size": 33, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
                "num_decoder_layers": 2, "num_heads": 4, "dropout_rate": 0.0, "pad_token_id": 1, "eos_token_id": 2,
                "decoder_start_token_id": 1, "tie_word_embeddings": True,
            },
            "depth": None,
            "roles": {
                "attention": ("**.SelfAttention.q", "**.SelfAttention.v"),
                "block": ("**.encoder.block.*",),
                "head": ("classifier", "classification_head"),
            },
        }
    )  # fmt: skip


@each_kind
@pytest.mark.parametrize("precision", [FP32(), BF16()], ids=lambda p: p.name)
def test_what_the_model_keeps_in_fp32_is_not_quantized(kind: Technique, precision: Technique) -> None:
    card = t5()
    setup = _built(card, kind, "token_classification", precision=precision)
    found = {n.removesuffix(".base_layer") for n in _codes(setup)}
    assert found
    assert not {n for n in found if n.endswith(".wo")}
    assert "transformer.encoder.block.0.layer.1.DenseReluDense.wi" in found
    assert any(".wo" in note and "kept in full" in note for note in setup.notes)
    train_step(setup, batches(setup.task, LENGTHS))  # type: ignore[arg-type]
    named = card.model_copy(update={"fp32_modules": ("**.DenseReluDense.wi",)})
    assert not {n for n in _codes(_built(named, kind, "token_classification")) if n.endswith((".wi", ".wo"))}


# ------------------------------------------------------------------------------------------------ refused


@each_kind
def test_training_the_whole_trunk_is_refused(kind: Technique) -> None:
    card = small("esm2_t6_8m")
    with pytest.raises(InputError) as caught:
        build(card, task_of("sequence_regression", card), defaults(quantization=kind), CPU)
    assert f"quantization: {kind.name}: adapter: full trains the weights that would be quantized" in str(caught.value)
    assert "write adapter: lora or adapter: head" in str(caught.value)


def test_a_missing_bitsandbytes_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"bitsandbytes is not installed.*pip install 'science-zoo\[quantization\]'"):
        _built(small("esm2_t6_8m"), NF4())


def test_a_model_with_nothing_to_quantize_is_refused() -> None:
    card = small("esm2_t6_8m")
    card = card.model_copy(update={"fp32_modules": ("esm.**",)})
    with pytest.raises(InputError, match="esm2_t6_8m has no linear layer outside its head for nf4 to quantize"):
        _built(card, NF4(), adapter=HeadOnly())


@each_kind
def test_a_recipe_may_name_it_and_the_planner_tries_all_but_int8(kind: Technique, recipes: Recipes) -> None:
    job = recipes.job({"techniques": {"adapter": "lora"}})
    assert [option.name for option in job.choices["quantization"]] == ["none", "nf4", "nf4-double"]
    job = recipes.job({"techniques": {"adapter": "lora", "quantization": kind.name}})
    assert job.choices["quantization"] == (kind,)


# ------------------------------------------------------------------------------------------------ training


def _published(card: ModelCard, task: SequenceTask) -> dict[str, torch.Tensor]:
    setup = build(card, task, defaults(), CPU, load=loader_of(card, "random", 0))
    return {name: value.detach().clone() for name, value in setup.model.state_dict().items()}


@each_kind
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("adapter", [LoRA(rank=2), LoRA(rank=2, dora=True, targets=("all-linear",)), HeadOnly()])
def test_gradients_are_those_on_the_dequantized_base(name: str, kind: Technique, adapter: Technique) -> None:
    card = small(name, dropout=0.1)
    task = task_of("sequence_regression", card)
    published = _published(card, task)
    steps = [batches(task, LENGTHS, 3, 1, seed=seed) for seed in range(3)]
    chosen = {"adapter": adapter, "quantization": kind}
    ours = run_steps(card, task, defaults(**chosen), steps, load=loads(published))
    dequantized = dict(published)
    for n, module in ours.setup.base.named_modules():
        if _quantized(module):
            dequantized[f"{n.removesuffix('.base_layer')}.weight"] = module.full_weight()
    theirs = run_steps(card, task, defaults(adapter=adapter), steps, load=loads(dequantized))
    for a, b in zip(ours.losses, theirs.losses, strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-6)
    for step, (mine, other) in enumerate(zip(ours.gradients, theirs.gradients, strict=True)):
        assert mine.keys() == other.keys()
        for n in mine:
            allowed = (1e-5 if step == 0 else 1e-3) * other[n].norm() + 1e-7  # Adam makes much of what is nearly zero
            assert (mine[n] - other[n]).norm() <= allowed, n
    moved = run_steps(card, task, defaults(adapter=adapter), steps[:1], load=loads(published))
    assert any(not torch.equal(moved.gradients[0][n], ours.gradients[0][n]) for n in mine), "nothing was quantized"


@each_kind
def test_codes_are_those_of_the_checkpoint_not_of_its_rounding(kind: Technique) -> None:
    card = small("antiberty")
    task = task_of("sequence_regression", card)
    load = loads(_published(card, task))
    fp32, bf16 = (_built(card, kind, load=load, precision=p) for p in (FP32(), BF16()))
    compared = 0
    for (n, mine), (_, other) in zip(bf16.base.named_modules(), fp32.base.named_modules(), strict=True):
        if _quantized(mine):
            assert torch.equal(mine.weight, other.weight), n  # type: ignore[arg-type]
            assert mine.full_weight().dtype == torch.bfloat16
            compared += 1
    assert compared == len(_codes(bf16))
    assert not bf16.reference


@each_kind
@pytest.mark.parametrize("precision", [FP32(), BF16()], ids=lambda p: p.name)
def test_adapters_beside_codes_have_the_type_of_the_precision(kind: Technique, precision: Technique) -> None:
    from peft.tuners.lora import bnb

    setup = _built(small("esm2_t6_8m"), kind, precision=precision, adapter=LoRA(rank=2, dora=True))
    wanted = torch.bfloat16 if precision.name == "bf16" else torch.float32
    assert {p.dtype for p in setup.trainable().values()} == {wanted}
    kinds = {type(m) for m in setup.model.modules() if hasattr(m, "lora_A")}
    assert kinds == {bnb.Linear8bitLt if kind.name == "int8" else bnb.Linear4bit}


@each_kind
def test_a_step_never_touches_the_codes(kind: Technique) -> None:
    card = small("antiberty", dropout=0.1)
    task = task_of("sequence_classification", card)
    found = run_steps(card, task, defaults(adapter=LoRA(rank=2), quantization=kind), [batches(task, LENGTHS)] * 3)
    moved = {n for n in found.weights[0] if not torch.equal(found.weights[0][n], found.weights[2][n])}
    assert moved
    assert moved <= set(found.setup.trainable())
    assert sum(not p.is_floating_point() for p in found.weights[0].values()) == 12


@each_kind
def test_a_run_goes_on_from_a_checkpoint_to_the_bit(kind: Technique, tmp_path: Path) -> None:
    card = small("esm2_t6_8m", dropout=0.1)
    task = task_of("sequence_regression", card)
    steps = [batches(task, LENGTHS, seed=seed) for seed in range(3)]
    setup = _built(card, kind, precision=BF16())
    torch.manual_seed(0)
    for step in steps[:2]:
        train_step(setup, step)
    state.save(tmp_path / "state.pt", setup, Progress(step=2))
    train_step(setup, steps[2])
    again = _built(card, kind, precision=BF16())
    assert state.restore(tmp_path / "state.pt", again).step == 2
    train_step(again, steps[2])
    for n, p in again.model.named_parameters():
        assert torch.equal(p, dict(setup.model.named_parameters())[n]), n


# ------------------------------------------------------------------------------------------------ memory


@functools.cache
def _measured_card(name: str) -> ModelCard:
    sizes = {"hidden_size": 256, "intermediate_size": 512} if name == "antiberty" else {}
    return changed(find_model(name), num_hidden_layers=2, **sizes)


@each_kind
@pytest.mark.parametrize("precision", [FP32(), BF16()], ids=lambda p: p.name)
@pytest.mark.parametrize("name", NAMES)
def test_predicted_peaks_equal_measured_ones(name: str, kind: Technique, precision: Technique) -> None:
    card = _measured_card(name)
    task = task_of("sequence_regression", card)
    techniques = defaults(quantization=kind, adapter=LoRA(rank=4), precision=precision)
    fake = predicted(card, task, techniques, 4, 128).peaks()
    real = measured(card, task, techniques, 4, 128)
    for phase in PHASES:
        allowed = max(0.01 * real[phase], SCRATCH if precision.name == "bf16" else 0)
        assert abs(fake[phase] - real[phase]) <= allowed, f"{phase}: {fake[phase]} for {real[phase]}"


@each_kind
@pytest.mark.parametrize(
    "adapter", [LoRA(rank=4, dora=True, targets=("all-linear",)), HeadOnly()], ids=lambda a: a.name
)
def test_predicted_peaks_equal_measured_ones_with_other_adapters(kind: Technique, adapter: Technique) -> None:
    card = _measured_card("esm2_t6_8m")
    task = task_of("sequence_regression", card)
    techniques = defaults(quantization=kind, adapter=adapter)
    fake = predicted(card, task, techniques, 4, 128).peaks()
    real = measured(card, task, techniques, 4, 128)
    for phase in PHASES:
        assert fake[phase] == pytest.approx(real[phase], rel=0.01), phase


BITS = {"nf4": 4.5, "nf4-double": 4.127, "int8": 8.0}


@each_kind
@pytest.mark.parametrize("world", ["fake", "meta", "accelerator"])
def test_every_world_holds_the_same_codes(kind: Technique, world: World) -> None:
    card = small("antiberty", hidden_size=256, intermediate_size=1024)
    task = task_of("sequence_regression", card)

    def held(option: dict[str, Technique]) -> dict[str, int]:
        return predicted(card, task, defaults(adapter=LoRA(rank=2), **option), 2, 32, world=world).at_peak()

    plain, quantized = held({}), held({"quantization": kind})
    scales = quantized["optimizer"] - plain["optimizer"]  # they are in no parameter of the model
    saved = plain["parameters"] - quantized["parameters"] - scales
    assert saved == pytest.approx(_frozen(card) * (32 - BITS[kind.name]) / 8, rel=0.005)


def _frozen(card: ModelCard) -> int:
    width, inner = int(card.config["hidden_size"]), int(card.config["intermediate_size"])
    return int(card.config["num_hidden_layers"]) * (4 * width * width + 2 * width * inner)


@each_kind
def test_the_device_never_holds_the_whole_model_while_loading(kind: Technique) -> None:
    card = small("antiberty", hidden_size=256, intermediate_size=512, num_hidden_layers=6)
    task = task_of("sequence_regression", card)

    def loading(**option: Technique) -> int:
        techniques = defaults(adapter=LoRA(rank=2), **option)
        return predicted(card, task, techniques, 1, 8, world="accelerator", steps=1).peaks()["outside"]

    largest = 256 * 512 * 4
    plain, codes = loading(), loading(quantization=kind)
    assert codes <= plain - _frozen(card) * (32 - BITS[kind.name]) / 8 * 0.99 + 3 * largest


# ------------------------------------------------------------------------------------------------ afterwards


@each_kind
def test_adapters_are_saved_without_the_codes_and_never_merged(kind: Technique, tmp_path: Path) -> None:
    card = small("esm2_t6_8m")
    task = task_of("sequence_classification", card)
    setup = run_steps(card, task, defaults(adapter=LoRA(rank=2), quantization=kind), [batches(task, LENGTHS)] * 2).setup
    before = {n: p.detach().clone() for n, p in setup.model.named_parameters()}
    save_model(setup, tmp_path / "model")
    saved = safetensors.torch.load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert saved
    assert all(value.is_floating_point() for value in saved.values())
    assert not {key for key in saved if "absmax" in key or "SCB" in key or "base_layer" in key}
    assert not any(getattr(module, "merged", False) for module in setup.model.modules())
    for n, p in setup.model.named_parameters():
        assert torch.equal(p, before[n])


@each_kind
def test_a_head_is_saved_with_the_dequantized_trunk(kind: Technique, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    card = small("antiberty")
    task = task_of("sequence_classification", card)
    setup = run_steps(card, task, defaults(adapter=HeadOnly(), quantization=kind), [batches(task, LENGTHS)] * 2).setup
    save_model(setup, tmp_path / "model")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert all(p.is_floating_point() for p in loaded.parameters())
    setup.model.eval()
    with torch.no_grad():
        inputs = batches(task, LENGTHS)[0].inputs
        assert torch.equal(logits(loaded, inputs), logits(setup.model, inputs))


@pytest.mark.parametrize(
    "techniques",
    [
        {"adapter": {"lora": {"rank": 4, "dropout": 0.1}}, "quantization": "nf4", "precision": "bf16"},
        {"adapter": {"lora": {"rank": 4, "dora": True}}, "quantization": "int8", "precision": "fp32"},
        {"adapter": "head", "quantization": "nf4-double", "precision": "bf16"},
    ],
    ids=["nf4-lora", "int8-dora", "nf4-double-head"],
)
def test_a_finished_run_scores_as_it_did(techniques: dict[str, Any], recipes: Recipes) -> None:
    path = finished(recipes, {"techniques": {**techniques, "checkpointing": "none"}, "train.max_steps": 3})
    run = Run.open(path)
    quantized = [m for m in run.model.modules() if _quantized(m)]
    assert bool(quantized) == (techniques["adapter"] != "head"), "a head goes with the dequantized trunk"
    assert run.evaluate() == json.loads(run.folder.summary.read_text())["metrics"]


@each_kind
def test_what_was_loaded_on_the_host_is_brought_to_the_device(kind: Technique) -> None:
    """The device has no storage here: all that tells is where tensors are, and of what kind."""
    card = small("antiberty")
    task = task_of("masked_language_modelling", card)
    load = loads(_published(card, task))
    seen: list[set[str]] = []

    def watched(setup: Setup) -> None:
        seen.append({p.device.type for p in setup.model.parameters()})
        load(setup)

    techniques = defaults(adapter=LoRA(rank=2), quantization=kind, precision=BF16())
    setup = build(card, task, techniques, torch.device("meta"), load=watched)
    assert seen == [{"cpu"}]
    assert {t.device.type for t in (*setup.model.parameters(), *setup.model.buffers())} == {"meta"}
    assert len(_codes(setup)) == 12
    tied = setup.base.get_input_embeddings().weight  # type: ignore[operator]
    assert any(
        p is tied for n, p in setup.base.named_parameters(remove_duplicate=False) if n.endswith("decoder.weight")
    )
