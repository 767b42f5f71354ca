"""The JSON schema for editors says yes to what the zoo accepts and no to what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from zoo.domain import models
from zoo.errors import InputError
from zoo.recipe_file import read_recipe, schema
from zoo.resources import shared
from zoo.strict_yaml import Places, read_yaml

SHIPPED = sorted((shared() / "recipes").rglob("*.yaml"))

TASK, OTHER_TASK = models()["rxnmapper_albert"].tasks[:2]

GOOD: dict[str, Any] = {
    "name": "toy", "domain": "chemistry", "model": "rxnmapper_albert", "task": TASK,
    "data": {"path": "x.csv"}, "train": {"epochs": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


def test_there_are_shipped_recipes() -> None:
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_shipped_recipe_passes_the_schema_and_the_reader(
    path: Path, validator: jsonschema.Draft202012Validator
) -> None:
    validator.validate(read_yaml(path.read_text(), Places(str(path)), []))
    read_recipe(path)


@pytest.mark.parametrize(
    ("section", "change", "valid"),
    [
        ("", {}, True),
        ("", {"model": "esm9"}, False),
        ("", {"domain": "astrology"}, False),
        ("", {"techniques": "auto"}, True),
        ("", {"techniques": "none"}, False),
        ("", {"techniques": {"adapter": "lora", "precision": {"bf16": {}}}}, True),
        ("", {"techniques": {"adapter": 3}}, False),
        ("", {"task": {TASK: {}}}, True),
        ("", {"task": {TASK: {}, OTHER_TASK: {}}}, False),
        ("", {"task": "divination"}, False),
        ("", {"modle": "x"}, False),
        ("", {"budget": {"device": "8GiB"}}, True),
        ("", {"budget": {"device": 8589934592}}, True),
        ("", {"budget": {"device": "8 gigs"}}, False),
        ("", {"budget": {"device": -1}}, False),
        ("", {"budget": {"device": "8GiB", "gpu": "t4"}}, False),
        ("", {"budget": {"device": "8GiB", "gpu": None}}, True),
        ("", {"output": ""}, False),
        ("train", {"max_steps": 5}, False),
        ("train", {"max_steps": None}, True),
        ("train", {"epochs": None}, False),
        ("train", {"epochs": "3"}, False),
        ("train", {"learning_rate": 0}, False),
        ("train", {"seed": -1}, False),
        ("data", {"source": "nothing_of_that_name"}, False),
        ("data", {"source": None}, True),
        ("data", {"path": None}, False),
        ("data", {"split": {"fractions": [0.5, 0.25, 0.25]}}, True),
        ("data", {"split": {"fractions": [0.5, 0.5]}}, False),
        ("data", {"columns": {"target": 3}}, False),
    ],
)
def test_schema_and_reader_agree(
    section: str, change: dict[str, Any], valid: bool, validator: jsonschema.Draft202012Validator, tmp_path: Path
) -> None:
    recipe = {**GOOD, **({section: {**GOOD[section], **change}} if section else change)}
    assert validator.is_valid(recipe) == valid
    named = any(isinstance(v, str) for k, v in change.items() if k in ("model", "domain", "task", "source"))
    if not named:  # names are checked against what is installed by `zoo.resolve`
        (tmp_path / "r.yaml").write_text(json.dumps(recipe))
        if valid:
            read_recipe(tmp_path / "r.yaml")
        else:
            with pytest.raises(InputError):
                read_recipe(tmp_path / "r.yaml")


def test_schema_is_made_for_editors() -> None:
    found = schema()
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert found["title"] == "science-zoo recipe"
    assert found["description"]
    undescribed = [
        f"{name}.{key}"
        for name, part in (("", found), *found["$defs"].items())
        for key, value in part["properties"].items()
        if "description" not in value and "$ref" not in value
    ]
    assert undescribed == []
    json.dumps(found)
