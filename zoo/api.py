"""The command line's verbs as functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.card import ModelCard, load_ref
from zoo.domain import Head, Tokenizer, find_model
from zoo.domain import models as _models
from zoo.errors import InputError
from zoo.places import target as written
from zoo.plans import Decision
from zoo.resolve import load_job
from zoo.step import materialise, storage_free
from zoo.tasks.sequence import tokenizer_of
from zoo.training import run as _run
from zoo.training.finished import Run, predict_file
from zoo.training.values import values_for
from zoo.weights import fetch

Overrides = Sequence[str]


@dataclass(frozen=True)
class Loaded:
    """A pretrained model with its published weights, and its tokenizer if it reads text, for work of one's own."""

    card: ModelCard
    model: nn.Module
    tokenizer: Tokenizer | None


def models() -> Mapping[str, ModelCard]:
    """Every model card by name."""
    return _models()


def load(name_or_run: str | Path, *, head: Head | None = None) -> Loaded | Run:
    """A pretrained model by its card's name, with its pretraining head or another `head`; or a finished run's folder.

    A text that is a model's name is that model, even beside a folder of the same name; a `Path` is a run.
    Raises `InputError` for a name that is neither, `WeightsError` when the weights cannot be had.
    """
    if not isinstance(name_or_run, str | Path):
        raise InputError(f"zoo.load: takes the name of a model or the folder of a run, not {name_or_run!r}")
    if Path(name_or_run).is_dir() and (isinstance(name_or_run, Path) or name_or_run not in _models()):
        return Run.open(Path(name_or_run))
    card = find_model(str(name_or_run), "zoo.load")
    with storage_free():
        model: nn.Module = load_ref(card.build)(card, head or Head("masked_lm", 0))
    materialise(model, torch.device("cpu"))
    values_for(model, card, "pretrained", seed=0)
    return Loaded(card, model.eval(), tokenizer_of(card, fetch) if card.tokenizer else None)


def plan(
    recipe: str | Path, budget: str | int | None = None, *, gpu: str | None = None, overrides: Overrides = ()
) -> Decision:
    """What `zoo plan` answers: whether a recipe fits, how, and why."""
    return _run.plan(load_job(recipe, overrides, budget=budget, gpu=gpu))[0]


def train(
    recipe: str | Path,
    budget: str | int | None = None,
    *,
    gpu: str | None = None,
    max_steps: int | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    baselines: bool = False,
    overrides: Overrides = (),
) -> dict[str, Any]:
    """Train a recipe; returns the run's summary. Raises as `zoo.training.run.train` does."""
    job = load_job(recipe, overrides, budget=budget, gpu=gpu, max_steps=max_steps)
    folder = None if output is None else written(output)
    return _run.train(job, output=folder, resume=resume, with_baselines=baselines).summary


def predict(
    run: str | Path | Run, source: str | Path, target: str | Path, *, overrides: Overrides = ()
) -> tuple[int, int]:
    """Predict every row of a file into a CSV, TSV or Parquet file. Returns (rows, rows that could not be read).

    `overrides` are of options that the task has for predicting. Raises `InputError` for those of a run that is open.
    """
    if isinstance(run, Run) and overrides:
        raise InputError("overrides: the run is open already; give its folder instead, or open it with Run.open")
    if not isinstance(source, str | Path):
        kind = type(source).__name__
        raise InputError(f"zoo.predict: reads a file, not a {kind}; for a table, Run.predict_table of zoo.load(run)")
    opened = run if isinstance(run, Run) else Run.open(Path(run), overrides=overrides)
    return predict_file(opened, source, written(target))


def evaluate(run: str | Path | Run) -> dict[str, dict[str, float]]:
    """Metrics of a finished run on its own validation and test parts."""
    return (run if isinstance(run, Run) else Run.open(Path(run))).evaluate()
