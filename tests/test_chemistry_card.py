"""The card of RXNMapper's ALBERT against the model that it builds and the checkpoint that it names."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from zoo.card import load_ref
from zoo.chemistry import DOMAIN
from zoo.domain import Head
from zoo.weights import fetch

(CARD,) = (card for card in DOMAIN.models if card.name == "rxnmapper_albert")
KINDS = ("sequence", "token", "masked_lm")
_LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"


def _model(kind: str) -> torch.nn.Module:
    with torch.device("meta"):
        return load_ref(CARD.build)(CARD, Head(kind))


@pytest.fixture(scope="module")
def folder():
    return fetch(CARD.source)


@pytest.fixture(scope="module")
def checkpoint(folder):
    return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)


def test_parameters_are_those_of_the_pretraining_model():
    assert sum(p.numel() for p in _model("masked_lm").parameters()) == CARD.parameters


def test_config_is_the_published_one(folder):
    published = json.loads((folder / "config.json").read_text())
    assert {key: published[key] for key in CARD.config} == dict(CARD.config)


def test_checkpoint_fills_the_pretraining_model_and_leaves_only_the_pooler_over(checkpoint):
    wanted = _model("masked_lm").state_dict()
    assert {name: tuple(t.shape) for name, t in wanted.items()} == {
        name: tuple(t.shape) for name, t in checkpoint.items() if not name.startswith("albert.pooler")
    }
    assert set(checkpoint) - set(wanted) == {"albert.pooler.weight", "albert.pooler.bias"}


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_only_the_classifier_of_a_new_task_is_missing_from_the_checkpoint(kind, checkpoint):
    assert set(_model(kind).state_dict()) - set(checkpoint) == {"classifier.weight", "classifier.bias"}


def test_pooler_of_the_checkpoint_was_never_trained(checkpoint):
    # The reason why the pooler has role "head": initialiser values, where the trained layer beside it moved away.
    assert not checkpoint["albert.pooler.bias"].any()
    assert checkpoint["albert.pooler.weight"].std().item() == pytest.approx(CARD.config["initializer_range"], rel=0.01)
    assert checkpoint[f"{_LAYER}.ffn.weight"].std().item() > 3 * CARD.config["initializer_range"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_role_names_modules_of_every_kind_of_model(kind):
    names = dict(_model(kind).named_modules())
    found = {role: {name for name in patterns if name in names} for role, patterns in CARD.roles.items()}
    heads = {"sequence": {"classifier"}, "token": {"classifier"}, "masked_lm": {"predictions"}}
    assert found == {
        "block": {_LAYER},
        "attention": {f"{_LAYER}.attention.{part}" for part in ("query", "key", "value", "dense")},
        "mlp": {f"{_LAYER}.ffn", f"{_LAYER}.ffn_output"},
        "head": heads[kind],
        "embedding": {"albert.embeddings"},
    }
    linear = [names[name] for role in ("attention", "mlp") for name in found[role]]
    assert all(isinstance(module, torch.nn.Linear) for module in linear)


def test_roles_cover_every_linear_layer_of_the_block():
    block = _model("sequence").get_submodule(_LAYER)
    linear = {f"{_LAYER}.{name}" for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)}
    assert linear == {*CARD.roles["attention"], *CARD.roles["mlp"]}


def test_shallow_model_shares_its_layer_so_depth_adds_no_parameters():
    counts = []
    for depth in (1, 12):
        card = CARD.shallow(depth)
        with torch.device("meta"):
            model = load_ref(card.build)(card, Head("sequence"))
        counts.append(sum(p.numel() for p in model.parameters()))
    assert counts[0] == counts[1]


def test_listing_the_domain_imports_no_heavy_library():
    code = (
        "import sys, zoo.chemistry; "
        "print([m for m in ('torch', 'rdkit', 'transformers', 'sklearn', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_reference_of_the_domain_resolves():
    named = [*DOMAIN.readers.values(), *DOMAIN.groups.values(), *DOMAIN.baselines.values(), DOMAIN.clean]
    assert all(callable(load_ref(ref)) for ref in [*named, CARD.build, CARD.tokenizer])
