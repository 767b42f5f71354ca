"""Checkpoints into models as a build does it: made without storage, made real, loaded, the rest drawn from a seed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from zoo.card import Source, SourceFile
from zoo.errors import WeightsError
from zoo.step import materialise
from zoo.weights import LoadReport, fetch, initialise, initialise_and_load, load_into, read_state_dict

SMALL: dict[str, Any] = {
    "vocab_size": 33, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 40, "pad_token_id": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
CONFIGS = {
    "esm": transformers.EsmConfig(**SMALL, position_embedding_type="rotary", token_dropout=True, mask_token_id=32),
    "bert": transformers.BertConfig(**SMALL),
    "albert": transformers.AlbertConfig(**SMALL, embedding_size=16),
    "roberta": transformers.RobertaConfig(**SMALL),
}
HEADS: dict[str, Any] = {
    "masked_lm": transformers.AutoModelForMaskedLM,
    "sequence": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
    "base": transformers.AutoModel,
}
every_model = pytest.mark.parametrize("kind", sorted(CONFIGS))
every_head = pytest.mark.parametrize("head", sorted(HEADS))


def direct(kind: str, head: str, seed: int = 7) -> nn.Module:
    """The model as transformers makes it, every weight moved away from its initial value."""
    torch.manual_seed(seed)
    model: nn.Module = HEADS[head].from_config(CONFIGS[kind])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def empty(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model made without storage, then real and full of nonsense, so that what nobody sets is seen."""
    with torch.device("meta"):
        model = make().to(dtype)
    materialise(model, torch.device("cpu"))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(77)
    return model.eval()


def built(kind: str, head: str, state: Any, seed: int = 0, **options: Any) -> tuple[nn.Module, LoadReport]:
    model = empty(lambda: HEADS[head].from_config(CONFIGS[kind]))
    return model, initialise_and_load(model, state, seed, **options)


def output(model: nn.Module) -> torch.Tensor:
    tokens = torch.tensor([[0, 5, 6, 7, 8, 9, 2], [0, 10, 11, 12, 2, 1, 1]])
    with torch.no_grad():
        result = model(input_ids=tokens, attention_mask=(tokens != 1).long())
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


@every_head
@every_model
def test_a_build_equals_direct_construction_with_the_same_weights(kind: str, head: str) -> None:
    reference = direct(kind, head)
    model, report = built(kind, head, reference.state_dict())
    assert report.newly_initialised == report.unused == report.ignored == ()
    assert set(report.loaded) == set(reference.state_dict())
    theirs, ours = dict(reference.named_buffers()), dict(model.named_buffers())
    assert theirs.keys() == ours.keys()
    for name, buffer in theirs.items():
        assert torch.equal(ours[name], buffer), name
    for name, value in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    # same weights and buffers, same kernels: 1e-6 only allows for another order of summation
    assert torch.allclose(output(model), output(reference), atol=1e-6)


@every_head
@every_model
def test_a_random_build_has_the_buffers_of_direct_construction_and_obeys_the_seed(kind: str, head: str) -> None:
    before = torch.random.get_rng_state()
    first, report = built(kind, head, None, seed=3)
    again, _ = built(kind, head, None, seed=3)
    other, _ = built(kind, head, None, seed=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert report.loaded == ()
    assert set(report.newly_initialised) == set(first.state_dict())
    for name, buffer in direct(kind, head).named_buffers():
        assert torch.equal(first.get_buffer(name), buffer), name
    for name, parameter in first.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.abs().max() < 2, name
        assert torch.equal(parameter, again.get_parameter(name)), name
    assert any(not torch.equal(p, other.get_parameter(n)) for n, p in first.named_parameters())


@every_model
def test_a_masked_lm_checkpoint_gives_a_classifier_its_trunk_and_a_new_head(kind: str) -> None:
    pretrained = direct(kind, "masked_lm")
    model, report = built(kind, "sequence", pretrained.state_dict(), seed=1)
    assert all(name.startswith("classifier") or ".pooler." in name for name in report.newly_initialised)
    assert any(name.startswith("classifier") for name in report.newly_initialised)
    assert report.unused
    assert all(not name.startswith(kind) for name in report.unused)
    for name in report.loaded:
        assert torch.equal(model.state_dict()[name], pretrained.state_dict()[name]), name
    twin, _ = built(kind, "sequence", pretrained.state_dict(), seed=1)
    for name in report.newly_initialised:
        assert torch.equal(model.state_dict()[name], twin.state_dict()[name]), name
        assert model.state_dict()[name].abs().max() < 2, name


@every_model
def test_a_classifier_checkpoint_gives_a_masked_lm_its_trunk(kind: str) -> None:
    classifier = direct(kind, "token")
    model, report = built(kind, "masked_lm", classifier.state_dict())
    assert report.unused == ("classifier.weight", "classifier.bias")
    assert report.newly_initialised
    assert not any(name.startswith(f"{kind}.") for name in report.newly_initialised)
    assert output(model).isfinite().all()


@every_model
def test_a_trunk_checkpoint_fits_a_head_model_and_the_other_way_round(kind: str) -> None:
    trunk, headed = direct(kind, "base"), direct(kind, "token", seed=8)
    model, report = built(kind, "token", trunk.state_dict())
    assert report.newly_initialised == ("classifier.weight", "classifier.bias")
    for name, value in model.get_submodule(kind).state_dict().items():
        assert torch.equal(value, trunk.state_dict()[name]), name
    back, report = built(kind, "base", headed.state_dict())
    assert all("pooler" in name for name in report.newly_initialised)
    for name in report.loaded:
        assert torch.equal(back.state_dict()[name], headed.state_dict()[f"{kind}.{name}"]), name


def test_old_names_of_layer_norms_and_stored_position_ids_are_understood() -> None:
    state = direct("bert", "masked_lm").state_dict()
    old = {
        re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name)): value
        for name, value in state.items()
    }
    assert set(old) != set(state)
    old["bert.embeddings.position_ids"] = torch.full((1, 40), 5)
    model, report = built("bert", "masked_lm", old)
    assert report.ignored == ("bert.embeddings.position_ids",)
    assert set(report.loaded) == set(state)
    assert torch.equal(model.get_buffer("bert.embeddings.position_ids"), torch.arange(40)[None])
    assert report.summary == f"converted {len(state)} of {len(old)}, skipped 1 (bert.embeddings.position_ids)"


def test_rotary_frequencies_and_positions_of_old_esm_checkpoints_are_ignored() -> None:
    reference = direct("esm", "masked_lm")
    old = dict(reference.state_dict())
    old["esm.embeddings.position_embeddings.weight"] = torch.zeros(40, 32)
    for layer in range(2):
        old[f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"] = torch.zeros(4)
    model, report = built("esm", "masked_lm", old)
    assert len(report.ignored) == 3
    assert report.unused == ()
    assert torch.allclose(output(model), output(reference), atol=1e-6)


@every_head
def test_rotary_frequencies_under_the_names_of_published_and_of_saved_esm_checkpoints(
    head: str, tmp_path: Path
) -> None:
    """Published ESM-2 files have them in every layer, ``save_pretrained`` writes one name with a literal asterisk."""
    reference = direct("esm", head)
    reference.save_pretrained(tmp_path)  # type: ignore[operator]
    saved = read_state_dict(tmp_path)
    state = reference.state_dict()
    base = "" if head == "base" else "esm."
    frequencies = state.pop(f"{base}rotary_embeddings.inv_freq")
    names = [f"{base}encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq" for layer in range(2)]
    for layout in (saved, {**state, **dict.fromkeys(names, frequencies)}, state):
        assert f"{base}rotary_embeddings.inv_freq" not in layout
        model, report = built("esm", head, layout)
        assert report.newly_initialised == (f"{base}rotary_embeddings.inv_freq",)
        assert torch.equal(model.get_buffer(f"{base}rotary_embeddings.inv_freq"), frequencies)
        assert torch.equal(output(model), output(reference))


def test_one_of_several_tied_names_is_enough() -> None:
    reference = direct("bert", "masked_lm")
    state = reference.state_dict()
    del state["cls.predictions.decoder.weight"], state["cls.predictions.decoder.bias"]
    model, report = built("bert", "masked_lm", state)
    assert report.newly_initialised == ()
    assert model.get_parameter("cls.predictions.decoder.weight") is model.get_input_embeddings().weight  # type: ignore[operator]
    assert torch.allclose(output(model), output(reference), atol=1e-6)


def test_tied_names_that_disagree_are_an_error() -> None:
    state = direct("bert", "masked_lm").state_dict()
    state["cls.predictions.decoder.weight"] = state["cls.predictions.decoder.weight"] + 1
    with pytest.raises(WeightsError, match=r"decoder\.weight differ, but the model has one tensor for both"):
        built("bert", "masked_lm", state)


def test_a_missing_trunk_weight_is_an_error_unless_allowed() -> None:
    state = direct("roberta", "masked_lm").state_dict()
    del state["roberta.encoder.layer.1.output.dense.weight"]
    with pytest.raises(WeightsError, match=r"lacks 1 weights of the trunk: roberta\.encoder\.layer\.1\.output\.dense"):
        built("roberta", "sequence", state)
    model, report = built("roberta", "sequence", state, allow_missing=["*.1.output.dense.*"])
    assert "roberta.encoder.layer.1.output.dense.weight" in report.newly_initialised
    assert 0 < model.get_parameter("roberta.encoder.layer.1.output.dense.weight").std() < 0.1


def test_a_deeper_checkpoint_is_an_error_in_either_layout() -> None:
    state = direct("bert", "base").state_dict()
    state["encoder.layer.2.output.dense.weight"] = torch.zeros(32, 64)
    for head in ("base", "sequence"):
        with pytest.raises(WeightsError, match=r"blocks that the model lacks.*encoder\.layer\.2\.output\.dense"):
            built("bert", head, state)


def test_every_wrong_shape_is_named_and_the_model_left_alone() -> None:
    state = direct("esm", "token").state_dict()
    state["classifier.weight"], state["classifier.bias"] = torch.zeros(5, 32), torch.zeros(5)
    model = empty(lambda: HEADS["token"].from_config(CONFIGS["esm"]))
    with pytest.raises(WeightsError) as error:
        load_into(model, state)
    assert "classifier.weight has shape (5, 32), but classifier.weight of the model has (2, 32)" in str(error.value)
    assert "classifier.bias has shape (5,), but classifier.bias of the model has (2,)" in str(error.value)
    assert all((parameter == 77).all() for parameter in model.parameters())


def test_integers_for_a_parameter_are_an_error() -> None:
    state = direct("esm", "token").state_dict()
    state["classifier.bias"] = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(WeightsError, match=r"classifier\.bias is torch\.int64, but classifier\.bias .* torch\.float32"):
        built("esm", "token", state)


def test_a_foreign_checkpoint_shows_names_of_both_sides() -> None:
    with pytest.raises(WeightsError, match=r"none of the checkpoint's 1 names fits.*It has unet\.0\.w.*has esm\."):
        built("esm", "token", {"unet.0.w": torch.zeros(1)})


def test_prefixes_are_replaced_first() -> None:
    reference = direct("esm", "token")
    state = {f"module.net.{name}": value for name, value in reference.state_dict().items()}
    model, _ = built("esm", "token", state, prefixes={"module.net.": ""})
    assert torch.equal(output(model), output(reference))


def test_lower_precision_keeps_the_checkpoints_values_for_masters() -> None:
    state = direct("esm", "token").state_dict()
    model = empty(lambda: HEADS["token"].from_config(CONFIGS["esm"]), torch.bfloat16)
    kept: dict[nn.Parameter, torch.Tensor] = {}
    initialise_and_load(model, state, 0, reference=kept)
    assert set(kept) == set(model.parameters())
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, state[name].bfloat16())
        assert torch.equal(kept[parameter], state[name])


def test_a_model_without_storage_is_an_error() -> None:
    with torch.device("meta"):
        model = HEADS["token"].from_config(CONFIGS["esm"])
    with pytest.raises(WeightsError, match=r"have no storage yet; materialise the model first"):
        load_into(model, {})


class Plain(nn.Module):
    """A module of nobody's library, with a buffer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.empty(4))
        self.register_buffer("steps", torch.empty(5, dtype=torch.int64), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)
        self.steps.copy_(torch.arange(5))


class Forgetful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.register_buffer("steps", torch.arange(5))


def test_a_plain_module_initialises_through_reset_parameters() -> None:
    models = [empty(Plain) for _ in range(3)]
    reports = [initialise_and_load(model, None, seed) for model, seed in zip(models, (0, 0, 1), strict=True)]
    assert set(reports[0].newly_initialised) == set(models[0].state_dict())
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name])
        assert value.isfinite().all()
    assert torch.equal(models[0].steps, torch.arange(5))
    assert not torch.equal(models[0].linear.weight, models[2].linear.weight)


def test_a_plain_module_needs_exactly_its_names() -> None:
    state = Plain().state_dict()
    model = empty(Plain)
    report = initialise_and_load(model, state, 0)
    assert set(report.loaded) == set(state)
    assert torch.equal(model.steps, torch.arange(5))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    short = {name: value for name, value in state.items() if name != "linear.bias"}
    with pytest.raises(WeightsError, match=r"lacks 1 weights of the model: linear\.bias"):
        initialise_and_load(empty(Plain), short, 0)
    model = empty(Plain)
    assert initialise_and_load(model, short, 0, allow_missing=["linear.bias"]).newly_initialised == ("linear.bias",)
    assert model.linear.bias.abs().max() < 1
    with pytest.raises(WeightsError, match="has no place for 1 names: head"):
        initialise_and_load(empty(Plain), {**state, "head": torch.zeros(1)}, 0)
    assert initialise_and_load(empty(Plain), {**state, "head": torch.zeros(1)}, 0, allow_unused=["head"]).unused


def test_a_tensor_that_nobody_initialises_is_an_error_unless_it_is_loaded() -> None:
    with pytest.raises(WeightsError, match=r"no initial value for steps; give Forgetful a reset_parameters"):
        initialise(empty(Forgetful), 0)
    model = empty(Forgetful)
    initialise_and_load(model, Forgetful().state_dict(), 0)
    assert torch.equal(model.steps, torch.arange(5))


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = transformers.EsmModel(CONFIGS["esm"])
        self.head = nn.Linear(32, 1)


def test_a_transformers_trunk_inside_a_plain_module_initialises_itself() -> None:
    model = empty(Wrapped)
    initialise(model, 0)
    for name, buffer in Wrapped().named_buffers():
        assert torch.equal(model.get_buffer(name), buffer), name
    reference = Wrapped()
    model = empty(Wrapped)
    initialise_and_load(model, reference.state_dict(), 0)
    assert torch.equal(output(model.trunk), output(reference.trunk.eval()))


RELEASES = {
    "antibody BERT": (
        Source(
            uri="pypi:antiberty==0.1.3/antiberty/trained_models/AntiBERTy_md_smooth",
            files=(SourceFile(path="config.json"), SourceFile(path="pytorch_model.bin")),
        ),
        "BertForMaskedLM",
    ),
    "reaction ALBERT": (
        Source(
            uri="pypi:rxnmapper==0.4.3/rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k",
            files=(SourceFile(path="config.json"), SourceFile(path="pytorch_model.bin")),
        ),
        "AlbertForMaskedLM",
    ),
}


@pytest.mark.parametrize("release", RELEASES)
def test_published_checkpoints_load_as_from_pretrained_loads_them(release: str) -> None:
    source, class_name = RELEASES[release]
    folder = fetch(source)
    theirs = getattr(transformers, class_name).from_pretrained(folder).eval()
    model = empty(lambda: getattr(transformers, class_name)(theirs.config))
    report = initialise_and_load(model, read_state_dict(folder, ["pytorch_model.bin"]), 0)
    assert report.newly_initialised == ()
    for name, value in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    for name, buffer in theirs.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer), name
