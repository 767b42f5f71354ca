"""A run's folder: what it holds, written so that no file is ever half there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import InputError, TrainingError
from zoo.units import format_bytes


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary neighbour of `path` and put it in place when it is complete and on disk.

    Raises `TrainingError` when the disk is full or the folder cannot be written; `path` is then as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        reason = str(error)
        if isinstance(error, RuntimeError):
            reason = f"is the disk full? {format_bytes(shutil.disk_usage(path.parent).free)} are free ({error})"
        partial.unlink(missing_ok=True)
        raise TrainingError(f"{path} cannot be written: {reason}; what was there before is untouched") from error


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=False) + "\n")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """An object of a run that has `keys`. Raises `InputError` for a file that is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({error}); put it back, or train again in another --output") from error
    lacking = [key for key in keys if not isinstance(content, dict) or key not in content]
    if lacking:
        lacks = f"it lacks {', '.join(lacking)}"
        raise InputError(f"{path}: is damaged ({lacks}); put it back, or train again in another --output")
    return dict(content)


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A CSV file with these columns; values that a row lacks are empty."""
    import pandas as pd

    table = pd.DataFrame(list(rows), columns=list(columns))
    write_atomically(path, lambda partial: table.to_csv(partial, index=False))


@dataclass(frozen=True)
class RunFolder:
    """Names of a run's files."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        return self.path / "resolved.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def skipped(self) -> Path:
        return self.path / "skipped_rows.csv"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.csv"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint" / "last.pt"

    @property
    def best(self) -> Path:
        return self.path / "checkpoint" / "best.pt"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def prepare(self, *, resume: bool, needed_bytes: int) -> None:
        """Make the folder, and make sure that training can write there what it will have to.

        Raises `InputError` when a run is there that is not to be resumed, `TrainingError` when it cannot be written or
        the disk has not enough room.
        """
        if self.resolved.exists() and not resume:
            raise InputError(f"{self.path}: holds a run already; go on with --resume, or choose another --output")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise TrainingError(f"{self.path}: cannot be written: {error.strerror}; choose another --output") from error
        free = shutil.disk_usage(self.path).free
        own = (file for part in (self.checkpoint.parent, self.model) for file in part.rglob("*") if file.is_file())
        if free + sum(file.stat().st_size for file in own) < needed_bytes:
            raise TrainingError(
                f"{self.path}: the disk has {format_bytes(free)} free, checkpoints and the model need "
                f"{format_bytes(needed_bytes)}; make room or choose another --output"
            )


def environment() -> dict[str, Any]:
    """Versions and machine, as a run's report states them."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    versions = {}
    for name in ("science-zoo", "torch", "transformers", "peft", "numpy", "pandas", "rdkit", "biotite", "scikit-learn"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "versions": versions,
    }
