"""The cards of biology against the models that they build and the checkpoints that they name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from zoo.biology import DOMAIN
from zoo.biology.sapiens import to_transformers
from zoo.card import ModelCard, load_ref
from zoo.domain import Head, Task
from zoo.errors import WeightsError
from zoo.step import Setup
from zoo.weights import fetch, read_state_dict

CARDS = {card.name: card for card in DOMAIN.models}
KINDS = ("sequence", "token", "masked_lm")
HEADS = {"sequence": {"classifier", "bert.pooler"}, "token": {"classifier"}, "masked_lm": {"lm_head", "cls"}}
# Sizes by which the publishers name them, and their architecture (Lin et al. 2023, and each repository's config.json).
ESM2 = {
    "esm2_t6_8m": (6, 320, 20, 8e6),
    "esm2_t12_35m": (12, 480, 20, 35e6),
    "esm2_t30_150m": (30, 640, 20, 150e6),
    "esm2_t33_650m": (33, 1280, 20, 650e6),
    "esm2_t36_3b": (36, 2560, 40, 3e9),
    "esm2_t48_15b": (48, 5120, 40, 15e9),
}


def _model(card: ModelCard, kind: str = "masked_lm") -> nn.Module:
    with torch.device("meta"):
        return load_ref(card.build)(card, Head(kind, 2))


def _matching(card: ModelCard, kind: str, role: str) -> dict[str, nn.Module]:
    task: Task | None = None
    setup = Setup(card, task, _model(card.shallow(2), kind), torch.device("meta"))  # type: ignore[arg-type]
    return setup.modules_of(role)


def test_every_promised_card_is_there():
    assert set(CARDS) == {*ESM2, "antiberty", "sapiens_vh", "sapiens_vl"}


@pytest.mark.parametrize("name", CARDS)
def test_parameters_are_those_of_the_masked_language_model(name):
    assert sum(p.numel() for p in _model(CARDS[name]).parameters()) == CARDS[name].parameters


@pytest.mark.parametrize("name", ESM2)
def test_esm2_has_the_published_size(name):
    layers, hidden, heads, size = ESM2[name]
    config = CARDS[name].config
    assert (config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"]) == (
        layers,
        hidden,
        heads,
    )
    assert config["intermediate_size"] == 4 * hidden
    assert CARDS[name].parameters == pytest.approx(size, rel=0.07)  # the names round: 8M is 7.5 million


def test_esm2_counts_are_derived_from_the_architecture():
    layers, hidden, heads = 6, 320, 20
    block = 4 * (hidden**2 + hidden) + 2 * 4 * hidden**2 + 5 * hidden + 4 * hidden  # attention, mlp, two norms
    embedding, last_norm, contact_head = 33 * hidden, 2 * hidden, layers * heads + 1
    lm_head = hidden**2 + hidden + 2 * hidden + 33  # its decoder is the embedding
    total = layers * block + embedding + last_norm + contact_head + lm_head
    assert CARDS["esm2_t6_8m"].parameters == total


@pytest.mark.parametrize("name", CARDS)
def test_sources_are_pinned(name):
    source = CARDS[name].source
    kind, _, rest = source.uri.partition(":")
    if kind == "hf":
        assert len(rest.partition("@")[2]) == 40  # a commit, not a branch
    else:
        assert kind == "pypi"
        assert "==" in rest
        assert source.sha256 is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CARDS)
def test_roles_name_exactly_their_modules(name, kind):
    card = CARDS[name]
    blocks = _matching(card, kind, "block")
    assert len(blocks) == 2
    assert {type(block).__name__ for block in blocks.values()} <= {"EsmLayer", "BertLayer", "RobertaLayer"}
    linear = {
        f"{name}.{inner}"
        for name, block in blocks.items()
        for inner, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }
    attention, mlp = _matching(card, kind, "attention"), _matching(card, kind, "mlp")
    assert (len(attention), len(mlp)) == (8, 4)
    assert {*attention, *mlp} == linear
    head = _matching(card, kind, "head")
    assert head
    assert set(head) <= HEADS[kind]
    assert len(_matching(card, kind, "embedding")) == 1
    assert not any("contact_head" in name for role in card.roles for name in _matching(card, kind, role))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CARDS)
def test_a_head_holds_every_module_outside_the_trunk(name, kind):
    card = CARDS[name]
    model = _model(card.shallow(2), kind)
    trunk = next(name for name, _ in model.named_children())
    outside = {
        name for name, module in model.named_children() if name != trunk and any(True for _ in module.parameters())
    }
    assert outside == {name for name in _matching(card, kind, "head") if not name.startswith(f"{trunk}.")}


@pytest.mark.parametrize("name", CARDS)
def test_tokenizer_fits_the_embedding_and_the_longest_input_fits_the_positions(name):
    card = CARDS[name]
    tokenizer = load_ref(card.tokenizer)(None)
    assert tokenizer.vocabulary_size == card.config["vocab_size"]
    assert tokenizer.pad_id == card.config["pad_token_id"]
    assert tokenizer.mask_id == card.config.get("mask_token_id", tokenizer.mask_id)
    assert len(tokenizer.encode("A" * (card.max_length - card.special_tokens))) == card.max_length


# ---------------------------------------------------------------------------------------------- checkpoints


def test_antiberty_fills_the_model_and_leaves_only_the_listed_heads_over():
    card = CARDS["antiberty"]
    folder = fetch(card.source)
    checkpoint = read_state_dict(folder / "AntiBERTy_md_smooth" / "pytorch_model.bin")
    wanted = _model(card).state_dict()
    assert {name: tuple(t.shape) for name, t in wanted.items()}.items() <= {
        name: tuple(t.shape) for name, t in checkpoint.items()
    }.items()
    left = {name.rpartition(".")[0] for name in set(checkpoint) - set(wanted)}
    assert left == {"bert.pooler.dense", "cls.species", "cls.chain", "cls.graft", "bert.embeddings"}
    sequence = _model(card, "sequence").state_dict()
    assert set(sequence) - set(checkpoint) == {"classifier.weight", "classifier.bias"}


def test_antiberty_config_and_vocabulary_are_the_published_ones():
    card = CARDS["antiberty"]
    folder = fetch(card.source)
    published = json.loads((folder / "AntiBERTy_md_smooth" / "config.json").read_text())
    assert {key: published[key] for key in card.config} == dict(card.config)
    assert (folder / "vocab.txt").read_text().split() == list(load_ref(card.tokenizer)(folder).tokens)


@pytest.mark.parametrize("name", ["sapiens_vh", "sapiens_vl"])
def test_sapiens_converts_completely(name):
    card = CARDS[name]
    state = load_ref(card.convert)(fetch(card.source))
    wanted = _model(card).state_dict()
    assert {key: tuple(t.shape) for key, t in state.items()} == {key: tuple(t.shape) for key, t in wanted.items()}
    assert torch.equal(state["lm_head.decoder.weight"], state["roberta.embeddings.word_embeddings.weight"])  # tied


def test_sapiens_vocabulary_is_the_published_dictionary():
    card = CARDS["sapiens_vh"]
    lines = (fetch(card.source) / "dict.txt").read_text().splitlines()
    residues = [line.split()[0] for line in lines]
    assert load_ref(card.tokenizer)(None).tokens == ("<s>", "<pad>", "</s>", "<unk>", *residues, "<mask>")


def test_sapiens_reads_142_residues_and_no_more():
    card = CARDS["sapiens_vh"]
    model = load_ref(card.build)(card, Head("masked_lm")).eval()
    tokenizer = load_ref(card.tokenizer)(None)
    assert card.max_length == 144
    assert model(input_ids=torch.tensor([tokenizer.encode("A" * 142)])).logits.shape == (1, 144, 25)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.tensor([tokenizer.encode("A" * 143)]))


def test_a_checkpoint_with_other_tensors_is_refused(tmp_path: Path):
    torch.save({"model": {"decoder.sentence_encoder.layers.0.moe.weight": torch.zeros(1)}}, tmp_path / "checkpoint.pt")
    with pytest.raises(WeightsError, match=r'tensor "decoder.*moe.weight" has no place in a RoBERTa; this is not a'):
        to_transformers(tmp_path / "checkpoint.pt")


def test_a_missing_checkpoint_is_named(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"checkpoint_vh\.pt: no such checkpoint"):
        load_ref(CARDS["sapiens_vh"].convert)(tmp_path)


# ---------------------------------------------------------------------------------------------- domain


def test_listing_the_domain_imports_no_heavy_library():
    heavy = ("torch", "biotite", "transformers", "sklearn", "pandas", "numpy")
    code = f"import sys, zoo.biology; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_reference_of_the_domain_resolves():
    named = [*DOMAIN.readers.values(), *DOMAIN.groups.values(), *DOMAIN.baselines.values(), DOMAIN.clean]
    refs = [ref for card in DOMAIN.models for ref in (card.build, card.tokenizer, card.convert) if ref]
    assert all(callable(load_ref(ref)) for ref in [*named, *refs])
