"""Which rows are trained on and which are held out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import Recipes, peptides

from zoo.data import splits
from zoo.data.prepare import Data
from zoo.errors import InputError
from zoo.recipe_file import read_recipe
from zoo.resolve import Job, resolve
from zoo.resources import shared
from zoo.weights import fetch

SOLUBILITY = shared() / "recipes/chemistry/solubility.yaml"


def prepare(job: Job) -> Data:
    data: Data = job.task.prepare(job, fetch)
    return data


def shipped(*overrides: str) -> Data:
    return prepare(resolve(read_recipe(SOLUBILITY, overrides)))


def rows_of(data: Data) -> dict[str, set[int]]:
    return {part: {e.row for e in data.part(part)} for part in splits.PARTS}


@pytest.mark.parametrize("count", [10, 37, 100, 1025])
@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
def test_a_random_split_has_the_sizes_asked_for(count: int, fractions: tuple[float, float, float]) -> None:
    sizes = Counter(splits.by_rows(count, fractions, seed=5))
    assert sizes.total() == count
    for part, fraction in zip(splits.PARTS, fractions, strict=True):
        assert abs(sizes[part] - fraction * count) <= 1
        assert fraction > 0 or sizes[part] == 0


def test_a_seed_gives_one_split_and_another_seed_another() -> None:
    split = splits.by_rows(100, (0.8, 0.1, 0.1), seed=1)
    assert split == splits.by_rows(100, (0.8, 0.1, 0.1), seed=1)
    assert split != splits.by_rows(100, (0.8, 0.1, 0.1), seed=2)


def test_rows_of_a_group_stay_together_and_sizes_come_out_close() -> None:
    groups = [f"g{i * i % 41}" for i in range(400)]
    parts = splits.by_groups(groups, (0.8, 0.1, 0.1), seed=0)
    where = {group: {part for g, part in zip(groups, parts, strict=True) if g == group} for group in groups}
    assert all(len(found) == 1 for found in where.values())
    sizes = Counter(parts)
    largest = max(Counter(groups).values())
    assert all(abs(sizes[p] - f * 400) <= largest for p, f in zip(splits.PARTS, (0.8, 0.1, 0.1), strict=True))


def test_scaffolds_of_molecules_never_straddle_parts() -> None:
    from zoo.chemistry.smiles import scaffold

    data = shipped("data.split={method: scaffold, fractions: [0.8, 0.1, 0.1]}")
    keys = {part: set(scaffold([e.text for e in data.part(part)])) for part in splits.PARTS}
    assert all(keys.values())
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["valid"]
    assert not keys["valid"] & keys["test"]
    assert data.split == "scaffold (seed 0)"


def test_a_split_column_is_obeyed(recipes: Recipes) -> None:
    words = ["train", "train", "test", "valid"]
    rows = [{**row, "fold": words[i % 4]} for i, row in enumerate(peptides(12))]
    split = {"method": "column", "column": "fold"}
    data = prepare(recipes.job({"data.split": split}, path=recipes.csv(rows)))
    assert rows_of(data) == {
        part: {i for i in range(12) if words[i % 4] == part} for part in splits.PARTS
    }  # fmt: skip
    assert data.split == "column fold"


def test_a_split_column_holds_three_words_only(recipes: Recipes) -> None:
    rows = [{**row, "fold": "training"} for row in peptides(6)]
    job = recipes.job({"data.split": {"method": "column", "column": "fold"}}, path=recipes.csv(rows))
    with pytest.raises(InputError) as error:
        prepare(job)
    assert str(error.value) == "data.split.column: the split column may hold train, valid and test, not 'training'"


def test_a_split_column_that_is_not_there_is_named_with_its_nearest_spelling(recipes: Recipes) -> None:
    path = recipes.csv([{**row, "fold": "train"} for row in peptides(6)])
    with pytest.raises(InputError) as error:
        recipes.job({"data.split": {"method": "column", "column": "flod"}}, path=path)
    assert str(error.value).endswith(
        f'data.split.column: "flod" is not a known column of {path}; did you mean "fold"? '
        "(known: charge, fold, label, sequence)"
    )


def test_the_publishers_test_part_is_kept_and_its_four_leaks_are_removed_from_training() -> None:
    data = shipped()
    assert {part: len(rows) for part, rows in rows_of(data).items()} == {"train": 919, "valid": 102, "test": 257}
    assert rows_of(data)["test"] == set(range(1025, 1282))
    assert data.notes == {"training rows that are also in the test part, removed": 4}
    assert [(s.part, s.reason) for s in data.skipped] == [("train", "is also in the test part")] * 4
    assert not {e.text for e in (*data.train, *data.valid)} & {e.text for e in data.test}
    assert data.split == "given"


def test_leaks_are_reported_where_the_recipe_does_not_remove_them() -> None:
    data = shipped("data.leaked=report")
    assert data.notes == {"training rows that are also in the test part": 4}
    assert data.skipped == ()
    assert len(data.train) + len(data.valid) == 1025


def test_removing_duplicates_leaves_the_publishers_test_part_whole() -> None:
    """Of 4 pairs within the training part one has the same value twice (see the dataset's card), 3 contradict."""
    data = shipped("data.duplicates=remove")
    assert len(data.test) == 257
    assert data.notes == {
        "training rows that are also in the test part, removed": 4,
        "repeated rows, removed": 4,
        "inputs with contradictory labels, removed": 3,
    }
    assert len(data.skipped) == 4 + 4 + 3


def repeated(recipes: Recipes) -> Path:
    """40 rows, every peptide twice: a random split puts many on both sides."""
    rows: list[dict[str, Any]] = peptides(20)
    return recipes.csv([*rows, *rows])


def test_leaks_of_a_random_split_are_found_too(recipes: Recipes) -> None:
    data = prepare(recipes.job(path=repeated(recipes)))
    held_out = {e.text for e in data.test}
    shared_rows = [e for e in (*data.train, *data.valid) if e.text in held_out]
    assert shared_rows
    assert data.notes == {"training rows that are also in the test part": len(shared_rows)}


def test_leaks_of_a_random_split_can_be_removed(recipes: Recipes) -> None:
    data = prepare(recipes.job({"data.leaked": "remove"}, path=repeated(recipes)))
    assert not {e.text for e in (*data.train, *data.valid)} & {e.text for e in data.test}
    gone = data.notes["training rows that are also in the test part, removed"]
    assert gone == len(data.skipped) > 0
    assert len(data.train) + len(data.valid) + len(data.test) + gone == 40


def test_a_part_that_comes_out_empty_is_an_error(recipes: Recipes) -> None:
    path = recipes.csv(peptides(3))
    with pytest.raises(InputError) as error:
        prepare(recipes.job(path=path))
    assert str(error.value) == (
        f"{path}: no usable rows in the test part of the split random (seed 1) (2 train, 1 valid, 0 test); "
        "give more rows, or other data.split.fractions"
    )


def test_a_part_may_be_empty_where_the_recipe_asks_for_none(recipes: Recipes) -> None:
    data = prepare(recipes.job({"data.split.fractions": [1.0, 0.0, 0.0]}, path=recipes.csv(peptides(3))))
    assert {part: len(rows) for part, rows in rows_of(data).items()} == {"train": 3, "valid": 0, "test": 0}


def test_a_split_without_training_rows_is_an_error(recipes: Recipes) -> None:
    with pytest.raises(InputError, match=r"no usable rows in the train part of the split random \(seed 1\)"):
        prepare(recipes.job({"data.split.fractions": [0.0, 0.5, 0.5]}))


def test_the_given_split_needs_a_publisher_who_gave_one(recipes: Recipes) -> None:
    job = recipes.job()
    split = job.recipe.data.split.model_copy(update={"method": "given"})
    recipe = job.recipe.model_copy(update={"data": job.recipe.data.model_copy(update={"split": split})})
    wrong = Job(job.file, recipe, job.domain, job.card, job.task, None, job.choices)
    with pytest.raises(InputError) as error:
        prepare(wrong)
    assert str(error.value) == "data.split.method: given needs a dataset whose publisher held out a test part"


def test_a_split_that_nobody_knows_is_named(recipes: Recipes) -> None:
    job = recipes.job()
    split = job.recipe.data.split.model_copy(update={"method": "clusters"})
    recipe = job.recipe.model_copy(update={"data": job.recipe.data.model_copy(update={"split": split})})
    with pytest.raises(InputError, match=r'"clusters" is not a known split; did you mean "cluster"\?'):
        prepare(Job(job.file, recipe, job.domain, job.card, job.task, None, job.choices))
