"""Tiny recipes on a real model (Sapiens-VH, 0.6 M parameters): peptides whose charge is to be told."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from zoo.recipe_file import read_recipe
from zoo.resolve import Job, resolve
from zoo.weights import lean

# A command that plans leaves stand-ins for what it does not use; other tests of the process do.
lean.only_plans = lambda: None

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"

# Where a processor has AMX, oneDNN adds up 16-bit products in fp32 tensors of its own (4 bytes for each result), which
# is much of what a tiny model holds. With other instructions every machine takes the same.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")


def peptides(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Different peptides of 6 to 16 residues with a label and a number that their composition decides."""
    draw = random.Random(seed)
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        basic = len(found) % 2 == 0
        sequence = "".join(draw.choice("KRKRAG" if basic else "DEDEAG") for _ in range(draw.randint(6, 16)))
        charge = sum(sequence.count(r) for r in "KR") - sum(sequence.count(r) for r in "DE")
        found[sequence] = {"sequence": sequence, "label": "basic" if basic else "acidic", "charge": charge}
    return list(found.values())


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = list(rows[0])
    path.write_text("\n".join([",".join(names), *(",".join(str(row[n]) for n in names) for row in rows)]) + "\n")
    return path


def merge(into: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` by dotted key; None removes a key."""
    for dotted, value in changes.items():
        section, *rest = dotted.split(".", 1)
        if rest:
            into[section] = merge(dict(into.get(section) or {}), {rest[0]: value})
        elif value is None:
            into.pop(section, None)
        else:
            into[section] = value
    return into


class Recipes:
    """Writes recipes to a folder; keys are changed by dotted name, None removes one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def csv(self, rows: list[dict[str, Any]] | None = None, name: str = "peptides.csv") -> Path:
        return write_csv(self.folder / name, peptides(24) if rows is None else rows)

    def write(self, changes: dict[str, Any] | None = None, name: str = "tiny", path: Path | None = None) -> Path:
        """Classification in fp32 with all parameters trained (dropout on), 6 steps of 8 of 24 peptides."""
        recipe: dict[str, Any] = {
            "name": name,
            "domain": "biology",
            "model": "sapiens_vh",
            "task": "sequence_classification",
            "data": {
                "path": str(path or self.csv()),
                "columns": {"input": "sequence", "target": "label"},
                "split": {"method": "random", "fractions": [0.7, 0.15, 0.15], "seed": 1},
            },
            "budget": {"device": "2GiB"},
            "techniques": {"precision": "fp32", "adapter": "full", "checkpointing": "none"},
            "train": {"max_steps": 6, "global_batch_size": 8, "learning_rate": 1e-3, "warmup": 0.1, "seed": 3},
            "output": str(self.folder / "run"),
        }
        target = self.folder / f"{name}.yaml"
        target.write_text(yaml.safe_dump(merge(recipe, changes or {}), sort_keys=False))
        return target

    def job(self, changes: dict[str, Any] | None = None, path: Path | None = None) -> Job:
        return resolve(read_recipe(self.write(changes, path=path)))


REGRESSION: dict[str, Any] = {"task": "sequence_regression", "data.columns.target": "charge"}
MASKED: dict[str, Any] = {"task": "masked_language_modelling", "data.columns": {"input": "sequence"}}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a network that may be used."""
    for name in ("ZOO_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def recipes(tmp_path: Path) -> Recipes:
    return Recipes(tmp_path)


@pytest.fixture(scope="session")
def session_recipes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Recipes]:
    """Recipes in a folder that lives as long as the session, for runs that several tests look at."""
    return lambda name: Recipes(tmp_path_factory.mktemp(name))


@pytest.fixture(scope="session")
def regression_run(session_recipes: Callable[[str], Recipes]) -> Path:
    """A finished run: all of Sapiens, a number per peptide; precision and checkpointing were left to the planner."""
    made = session_recipes("regression")
    return finished(made, {**REGRESSION, "techniques": {"adapter": "full"}, "train.max_grad_norm": 1.0})


@pytest.fixture(scope="session")
def lora_run(session_recipes: Callable[[str], Recipes]) -> Path:
    """A finished run: LoRA with dropout on a bf16 base, a class per peptide."""
    lora = {"adapter": {"lora": {"rank": 4, "dropout": 0.1}}, "precision": "bf16", "checkpointing": "none"}
    return finished(session_recipes("lora"), {"techniques": lora})


def finished(made: Recipes, changes: dict[str, Any]) -> Path:
    from zoo.training.run import train

    return train(made.job(changes), output=made.folder / "run").folder.path


@pytest.fixture(autouse=True, scope="session")
def _one_process() -> Iterator[None]:
    """Traces that tests share are known to this process only; those that test several processes ask for them."""
    from zoo.memory import workers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_cores", lambda: 1)
        yield


_TRACES: dict[Any, Any] = {}


@pytest.fixture
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning is most of the time that a tiny run takes: runs of the same shape share their traces."""
    from zoo.tracer import Tracer

    plain = Tracer._trace

    def trace(self: Any, techniques: Any, card: Any, *args: Any, **kwargs: Any) -> Any:
        job = self.job
        facts = (type(job.task).__name__, job.task.head, self.tokens, job.recipe.train.max_grad_norm)
        key = (techniques, card.model_dump_json(), facts, args, tuple(sorted(kwargs.items())))
        if key not in _TRACES:
            _TRACES[key] = plain(self, techniques, card, *args, **kwargs)
        return _TRACES[key]

    monkeypatch.setattr(Tracer, "_trace", trace)
