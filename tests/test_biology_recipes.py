"""The recipes of biology are valid, and name models, tasks, columns and roles that exist."""

from __future__ import annotations

import pytest
import yaml

from zoo.biology import DOMAIN
from zoo.card import load_ref
from zoo.domain import datasets
from zoo.recipe import Recipe
from zoo.resources import shared
from zoo.weights import fetch

RECIPES = sorted((shared() / "recipes" / "biology").glob("*.yaml"))
CARDS = {card.name: card for card in DOMAIN.models}


def test_the_promised_recipes_are_there():
    assert [path.stem for path in RECIPES] == ["antimicrobial_peptides", "mouse_v_genes"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_what_exists(path):
    recipe = Recipe.model_validate(yaml.safe_load(path.read_text()))
    assert recipe.name == path.stem
    assert recipe.domain == DOMAIN.name
    card, dataset = CARDS[recipe.model], datasets()[recipe.data.source or ""]
    assert recipe.task_name in card.tasks
    assert recipe.data.split.method in DOMAIN.groups
    suffix = dataset.reader or "." + dataset.files["all"].rpartition(".")[2]
    table = load_ref(DOMAIN.readers[suffix])(fetch(dataset.source) / dataset.files["all"])
    named = {*recipe.data.columns.values(), *recipe.data.where}
    assert named <= set(table.columns)
    for column, value in recipe.data.where.items():
        assert (table[column] == value).any()
    if isinstance(recipe.techniques, dict) and isinstance(adapter := recipe.techniques["adapter"], dict):
        assert set(adapter["lora"]["targets"]) <= set(card.roles)
    longest = table.sequence.str.len().max() + card.special_tokens
    assert longest <= card.max_length  # too_long: error is safe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_sequence_of_a_recipe_is_clean_already(path):
    recipe = Recipe.model_validate(yaml.safe_load(path.read_text()))
    dataset = datasets()[recipe.data.source or ""]
    suffix = dataset.reader or "." + dataset.files["all"].rpartition(".")[2]
    table = load_ref(DOMAIN.readers[suffix])(fetch(dataset.source) / dataset.files["all"])
    assert {note for text in table.sequence for note in load_ref(DOMAIN.clean or "")(text).notes} == set()
