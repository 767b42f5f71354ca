"""A finished run, used: predictions for a file, and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch
from torch import nn

from zoo.data.tables import CORE_SUFFIXES, read_table, write_table
from zoo.domain import Scores
from zoo.errors import InputError
from zoo.places import Place
from zoo.places import path as local_path
from zoo.recipe import Recipe, Split
from zoo.recipe_file import RecipeFile, changed
from zoo.resolve import Job, resolve
from zoo.training import inference
from zoo.training.export import load_model
from zoo.training.files import RunFolder, read_json, write_atomically
from zoo.training.run import Fetch, fetcher, training_device

PREDICT_ROWS = 32
"""Rows of a batch when predicting; no gradients are kept, so that a batch is far smaller than when training."""


@dataclass
class Run:
    """A trained model with the task and the recipe that made it."""

    job: Job
    model: nn.Module
    device: torch.device
    folder: RunFolder
    plan: dict[str, Any]

    @classmethod
    def open(cls, path: Path, *, progress: bool = False, overrides: Sequence[str] = ()) -> Run:
        """Load the run in a folder. Raises `InputError` when there is none or it did not finish.

        `overrides` are ``task.NAME.option=value``, of the options that a task has for predicting.
        """
        folder = RunFolder(path)
        if not folder.resolved.exists():
            raise InputError(
                f"{path}: is not a run's folder ({folder.resolved.name} is missing); make one with zoo train"
            )
        if not folder.model.exists() or not folder.summary.exists():
            raise InputError(f"{path}: this run did not finish; finish it with zoo train --resume --output {path}")
        resolved = read_json(folder.resolved, "recipe", "overrides", "task")
        try:
            recipe = Recipe.model_validate(resolved["recipe"])
        except ValueError as error:
            raise InputError(f"{folder.resolved}: holds no recipe of this version of the zoo: {error}") from error
        file = RecipeFile(recipe, folder.recipe, "", tuple(resolved["overrides"]))
        job = resolve(file, needs_data=False)
        if overrides:
            options = getattr(job.task, "when_predicting", ())
            file = changed(file, overrides, [("task", recipe.task_name, option) for option in options])
            job = resolve(file, needs_data=False)
        job.task.restore(resolved["task"])
        if (files := getattr(job.task, "load_files", None)) is not None:
            files(folder.path)
        plan = read_json(folder.plan, "chosen")["chosen"]
        device = training_device()
        model = load_model(job, folder.model, device, chosen=plan["techniques"])
        return cls(job, model, device, folder, plan)

    @property
    def split(self) -> str:
        """The name of the split that the run's metrics belong to."""
        return str(read_json(self.folder.summary, "split")["split"])

    def predict_table(self, table: pd.DataFrame, malformed: Mapping[int, str] = MappingProxyType({})) -> pd.DataFrame:
        """The table with prediction columns added; rows that cannot be read keep their place and get an ``error``.

        Rows in `malformed` (row -> reason) are not predicted.
        """
        return self._predicted(table, malformed)[0]

    def _predicted(self, table: pd.DataFrame, malformed: Mapping[int, str]) -> tuple[pd.DataFrame, dict[str, int]]:
        """And what is to be known of the predictions, with how many they are."""
        examples, errors = self.job.task.read_inputs(self.job, self._fetch, table)
        examples = [e for e in examples if e.row not in malformed]
        longest = max((self.job.task.length(e) for e in examples), default=0)
        combined = self.job.task.combine(self._predict(examples, PREDICT_ROWS, longest), examples)
        errors.update({row: "the prediction is not finite" for row, v in combined.items() if not inference.finite(v)})
        errors.update(malformed)
        names = list(dict.fromkeys(name for values in combined.values() for name in values)) or self._names()
        taken = [name for name in [*names, "error"] if name in table.columns]
        if taken:
            raise InputError(f"the input has columns named {', '.join(taken)} already, which predictions would replace")
        out = table.copy()
        for name in names:
            out[name] = _values([combined.get(row, {}).get(name) for row in range(len(table))])
        out["error"] = [errors.get(row, "") for row in range(len(table))]
        cut = len({e.row for e in examples if getattr(e, "truncated", False)})
        return out, {"predicted from truncated inputs": cut} if cut else {}

    def _names(self) -> list[str]:
        """Names of the prediction columns, from predicting something that means nothing."""
        batch = self.job.task.blank_batch(self.job.card, 1, self.job.card.special_tokens + 1).to(self.device)
        with inference.evaluating(self.model):
            return list(self.job.task.predict(self.model, batch)[0])

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Metrics on the validation and test parts of the run's own data: the very numbers of its summary."""
        state = self.job.task.state()
        data = self.job.task.prepare(self.job, self._fetch)
        self.job.task.restore(state)
        parts = {part: data.part(part) for part in ("valid", "test") if data.part(part)}
        # the batches of the run, so that not even rounding differs
        rows, longest = int(self.plan["micro_batch_size"]), int(self.plan["tokens_per_row"])
        return {
            part: inference.score(self.job.task, self._predict(examples, rows, longest), examples)
            for part, examples in parts.items()
        }

    def evaluate_file(self, path: Place) -> tuple[dict[str, float], dict[str, int]]:
        """Metrics on a file that has the target column too, the number of `rows` in them and of `rows_skipped`.

        And what is to be known of the file's rows, with how many there are.
        """
        if not hasattr(self.job.task, "predict_file"):
            path = local_path(path, "tables")
        # all rows are scored, repeated ones too, whatever split the recipe asks for
        split = Split(method="random", fractions=(1.0, 0.0, 0.0))
        changes = {"source": None, "path": str(path), "split": split, "duplicates": "keep"}
        data = self.job.recipe.data.model_copy(update=changes)
        recipe = self.job.recipe.model_copy(update={"data": data})
        job = Job(self.job.file, recipe, self.job.domain, self.job.card, self.job.task, None, self.job.choices)
        state = self.job.task.state()
        prepared = self.job.task.prepare(job, self._fetch)
        self.job.task.restore(state)
        examples = prepared.train
        longest = max(self.job.task.length(e) for e in examples)
        metrics = inference.score(self.job.task, self._predict(examples, PREDICT_ROWS, longest), examples)
        counts = {"rows": len({e.row for e in examples}), "rows_skipped": len(prepared.skipped)}
        return {**metrics, **counts}, dict(prepared.notes)

    def scored(self, source: Place | None) -> tuple[dict[str, dict[str, float]], dict[str, int], str]:
        """Metrics by part, or of a file (see `evaluate_file`), what is to be known of its rows, and of which split."""
        if source is None:
            return self.evaluate(), {}, self.split
        metrics, notes = self.evaluate_file(source)
        return {str(source): metrics}, notes, "none: every row of the file"

    def _predict(self, examples: Any, rows: int, longest: int) -> list[dict[str, Any]]:
        return inference.predict(self.job.task, self.model, examples, self.device, rows=rows, longest=longest)

    @property
    def _fetch(self) -> Fetch:
        return fetcher(progress=False)


def _values(values: list[Any]) -> pd.Series[Any]:
    """A column in which integers stay integers, whatever is missing beside them."""
    whole = any(value is not None for value in values) and all(v is None or type(v) is int for v in values)
    return pd.Series(values, dtype="Int64" if whole else None)


def predict_file(run: Run, source: Place, target: Path, notes: dict[str, int] | None = None) -> tuple[int, int]:
    """Predict every row of a file into a CSV, TSV or Parquet file. Returns (rows, rows that could not be read).

    `notes` is told what else is to be known, with how many there are: truncated inputs, or what a task with files of
    its own leaves out for other reasons.
    Raises `InputError` for a `target` of another kind, and where it would replace the file that is read.
    """
    if (own := getattr(run.job.task, "predict_file", None)) is not None:  # a task whose predictions are no table
        rows, unread, others = own(run.job, run.model, run.device, source, target)
        if notes is not None:
            notes.update(others)
        return rows, unread
    source = local_path(source, "tables")
    kind = target.suffix.lower()
    if kind not in CORE_SUFFIXES:
        kinds = ", ".join(CORE_SUFFIXES)
        raise InputError(
            f'{target}: predictions cannot be written as "{kind}" (kinds: {kinds}); give it such an ending'
        )
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"{target}: is the input itself; write the predictions to another file")
    table, malformed = read_table(source, run.job.domain.readers)
    out, known = run._predicted(table, malformed)
    if notes is not None:
        notes.update(known)
    write_atomically(target, lambda partial: write_table(out, partial, kind))
    return len(out), int((out["error"] != "").sum())


def score_file(
    run: Run, forecast: Place | None, truth: Place | None, target: Path | None = None, picture: Path | None = None
) -> Scores:
    """Score forecasts in a file against a file of what came; all scores go to `target`, curves to `picture`.

    Raises `InputError` where either is missing, and for a task whose predictions are no file of forecasts.
    """
    if forecast is None:
        raise InputError("-o, --plot: are of the scores of a forecast file; name it with --forecast, or leave them out")
    if truth is None:
        raise InputError(
            f"--forecast: no file of what came; say zoo evaluate {run.folder.path} STATES --forecast {forecast}"
        )
    own = getattr(run.job.task, "score_file", None)
    if own is None:
        raise InputError(
            f"--forecast: {run.job.recipe.task_name} makes no forecast files; to score a file with inputs and targets "
            f"say zoo evaluate {run.folder.path} FILE"
        )
    found: Scores = own(run.job, forecast, truth, target, picture)
    return found
