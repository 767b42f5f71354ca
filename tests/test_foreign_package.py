"""A package that the zoo has never heard of brings a domain, a model, a dataset and a technique: all work."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parent / "foreign_domain"
RECIPE = PACKAGE / "well_logs.yaml"


class Zoo:
    """The command line in a process of its own, where packages in `folder` count as installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: str | Path, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [Path(sys.executable).with_name("zoo"), *arguments],
            cwd=self.folder, env={**os.environ, "PYTHONPATH": str(self.folder)}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == exit_code, done.stdout + done.stderr
        return done

    def json(self, *arguments: str | Path) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """The foreign package, installed by pip beside the zoo."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-compile"]
    subprocess.run([*pip, "--target", folder, PACKAGE], check=True, capture_output=True, text=True)
    return Zoo(folder)


@pytest.fixture(scope="module")
def trained(zoo: Zoo) -> Path:
    """A run with LoRA adapters in the foreign model."""
    adapter = "techniques.adapter.lora.targets=[mlp]"
    zoo.run("train", RECIPE, "--max-steps", "8", "--output", zoo.folder / "lora", "--set", adapter)
    return zoo.folder / "lora"


def assert_predicted_is_measured(summary: dict[str, Any]) -> None:
    predicted, measured = summary["memory"]["predicted_bytes"], summary["memory"]["measured_bytes"]
    for phase in ("peak", "forward", "backward", "optimizer"):
        assert predicted[phase] == pytest.approx(measured[phase], rel=0.01), phase


def test_a_domain_takes_at_most_sixty_lines_of_python() -> None:
    assert len((PACKAGE / "geology.py").read_text().splitlines()) <= 60


def test_foreign_model_and_dataset_are_listed_beside_the_built_in_ones(zoo: Zoo) -> None:
    names = {model["name"]: model["domain"] for model in zoo.json("models")}
    assert names["log_reader"] == "geology"
    assert names["esm2_t6_8m"] == "biology"
    assert "well_logs" in {dataset["name"] for dataset in zoo.json("datasets")}


def test_planner_tries_the_foreign_technique(zoo: Zoo) -> None:
    plan = zoo.json("plan", RECIPE, "--all")
    assert plan["fits"]
    assert plan["chosen"]["techniques"]["freezing"] == "nothing"
    frozen = [r for r in plan["rejected"] if r["techniques"]["freezing"] == "embedding"]
    assert frozen
    built = {r["reason"] for r in frozen if r["peak_bytes"] is not None}
    assert built == {"fits, but changes more than is needed"}


def test_foreign_model_trains_as_predicted(zoo: Zoo) -> None:
    folder = zoo.folder / "full"
    summary = zoo.json("train", RECIPE, "--max-steps", "8", "--output", folder)
    assert_predicted_is_measured(summary)
    assert summary["metrics"]["test"]["accuracy"] > 0.9  # a coin has 0.5
    assert (folder / "model" / "model.safetensors").is_file()
    assert zoo.json("evaluate", folder)["test"] == pytest.approx(summary["metrics"]["test"])


def test_foreign_technique_is_applied_and_counted(zoo: Zoo) -> None:
    small = [RECIPE, "--set", "techniques.checkpointing=block"]
    whole = zoo.json("plan", *small, "--set", "techniques.freezing=nothing")["chosen"]
    frozen = zoo.json("plan", *small, "--set", "techniques.freezing=embedding")["chosen"]
    states = 6 * 48 * 4 * 2 + 4  # AdamW: two moments of tokens x width in fp32, and a count of steps
    assert whole["peak_by_category"]["optimizer"] - frozen["peak_by_category"]["optimizer"] == states


def test_adapters_of_a_foreign_model_train_as_predicted_and_predict(zoo: Zoo, trained: Path) -> None:
    assert_predicted_is_measured(json.loads((trained / "summary.json").read_text()))
    assert (trained / "model" / "adapter_model.safetensors").is_file()
    zoo.run("predict", trained, PACKAGE / "well_logs.csv", "--output", zoo.folder / "out.csv")
    given = list(csv.DictReader((PACKAGE / "well_logs.csv").open()))
    predicted = list(csv.DictReader((zoo.folder / "out.csv").open()))
    assert [row["bed"] for row in predicted] == [row["bed"] for row in given]
    assert {row["prediction"] for row in predicted} <= {"fining", "coarsening"}


def registered(folder: Path, group: str, entry: str, module: str, source: str) -> Zoo:
    """A package of one module in `folder`, as pip would leave it."""
    info = folder / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
    (folder / f"{module}.py").write_text(source)
    return Zoo(folder)


@pytest.mark.parametrize(
    ("group", "entry", "source", "sentence"),
    [
        ("zoo.techniques", "rocks = rocks", "1 / 0", 'technique module "rocks" cannot be loaded: division by'),
        (
            "zoo.techniques",
            "rocks = rocks",
            "OPTIONS = ()",
            'technique module "rocks" must bring the options of one new',
        ),
    ],
)
def test_a_broken_package_is_named(tmp_path: Path, group: str, entry: str, source: str, sentence: str) -> None:
    stranger = registered(tmp_path, group, entry, "rocks", source)
    assert sentence in stranger.run("check", RECIPE, exit_code=2).stderr


@pytest.mark.parametrize(
    ("entry", "source", "reason"),
    [
        ("rocks = rocks:DOMAIN", "1 / 0", "rocks:DOMAIN cannot be loaded: ZeroDivisionError: division by zero"),
        ("rocks = rocks:DOMAIN", "DOMAIN = 3", "rocks:DOMAIN is not a zoo.domain.Domain of that name"),
    ],
)
def test_a_domain_that_cannot_be_used_stops_only_its_own_recipes(
    tmp_path: Path, entry: str, source: str, reason: str
) -> None:
    stranger = registered(tmp_path, "zoo.domains", entry, "rocks", source)
    note = f'note: domain "rocks" is left out: {reason}\n'
    shipped = "recipes/chemistry/solubility.yaml"
    assert stranger.run("check", shipped).stderr == note
    refused = stranger.run("check", shipped, "--set", "domain=rocks", exit_code=2).stderr
    assert refused == f"error: --set domain: {reason}\n{note}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("", 'rocks:DOMAIN has names that are taken: "antiberty" (of science-zoo); its package, stranger, must choose'),
        (', name="freesolv"', 'rocks:DOMAIN has names that are taken: "freesolv" (of science-zoo); its package'),
        (', name="slate", domain="biology"', 'rocks:DOMAIN has a card "slate" that says domain "biology"'),
    ],
)
def test_names_that_are_taken_leave_a_strangers_domain_out(tmp_path: Path, change: str, reason: str) -> None:
    """Of models and datasets alike: one name means one thing, and nothing of a package changes what is there."""
    source = f"""
import dataclasses
from zoo.biology import DOMAIN as BIOLOGY
card = BIOLOGY.models[0].model_copy(update={{"domain": "rocks"}} | dict({change.removeprefix(", ")}))
DOMAIN = dataclasses.replace(BIOLOGY, name="rocks", models=(card,), datasets=())
"""
    stranger = registered(tmp_path, "zoo.domains", "rocks = rocks:DOMAIN", "rocks", source)
    said = stranger.run("models", "--json")
    assert f'note: domain "rocks" is left out: {reason}' in said.stderr
    assert "rocks" not in {model["domain"] for model in json.loads(said.stdout)}
    assert stranger.run("check", "recipes/chemistry/solubility.yaml").stdout
