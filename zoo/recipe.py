"""The recipe: one YAML file that names a model, a task, data, a budget and how to train.

This module holds the shape of a recipe and nothing else; `zoo.recipe_file` reads one from disk with file and
line in every error, and `zoo.resolve` checks its names against what is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, field_validator, model_validator

from zoo.card import Frozen
from zoo.units import parse_bytes


def _bytes(value: Any) -> Any:
    return parse_bytes(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else value


Bytes = Annotated[int, BeforeValidator(_bytes)]


class Split(Frozen):
    """How rows are divided. `method`: random, scaffold, cluster (a domain's groups), given (the publisher's), column.

    `fractions` are of train, valid and test. With ``given`` the publisher's test part is kept and `fractions[1]` of
    the rest becomes the validation part. With ``column``, `column` holds the words train, valid, test.
    """

    method: str = "random"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    column: str | None = None

    @model_validator(mode="after")
    def _sums(self) -> Split:
        if any(f < 0 for f in self.fractions) or abs(sum(self.fractions) - 1) > 1e-9:
            raise ValueError("fractions of train, valid and test must not be negative and must sum to 1")
        if (self.method == "column") != (self.column is not None):
            raise ValueError("column names the split column of method: column, and of no other method")
        return self


class DataSpec(Frozen):
    """What to learn from: a dataset card (`source`) or a file (`path`), its columns, and what to do with bad rows.

    `too_long` says what happens to inputs beyond `max_length` tokens (default: the model's own): ``error``,
    ``truncate`` (counted) or ``window`` (non-overlapping windows, predictions averaged). `unreadable` says what
    happens to rows that cannot be read or lack a label: ``error`` or ``skip`` (counted and listed in a file).
    `duplicates`: ``keep``, or ``remove`` repeated inputs; contradictory ones (different labels) go altogether.
    `leaked`: what happens to inputs that the publisher's test part shares with training: ``report``, or
    ``remove`` from training.
    """

    source: str | None = None
    path: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    split: Split = Split()
    where: dict[str, str] = Field(default_factory=dict, description="keep rows whose column equals the value")
    max_length: PositiveInt | None = None
    too_long: Literal["error", "truncate", "window"] = "error"
    unreadable: Literal["error", "skip"] = "error"
    duplicates: Literal["keep", "remove"] = "keep"
    leaked: Literal["report", "remove"] = "report"

    @model_validator(mode="after")
    def _one_of(self) -> DataSpec:
        if (self.source is None) == (self.path is None):
            raise ValueError("give either source (a dataset's name) or path (a file), not both and not neither")
        return self


class Budget(Frozen):
    """What may be used: `device` bytes on each of `count` devices (or a `gpu` by name), and `host` bytes."""

    device: Bytes | None = None
    gpu: str | None = None
    host: Bytes | None = None
    count: PositiveInt = 1

    @model_validator(mode="after")
    def _not_both(self) -> Budget:
        if self.device is not None and self.gpu is not None:
            raise ValueError("give either device (bytes) or gpu (a name), not both")
        return self


class Train(Frozen):
    """How to train. Either `epochs` or `max_steps`; a step is one optimizer update on `global_batch_size` rows."""

    epochs: PositiveInt | None = None
    max_steps: PositiveInt | None = None
    global_batch_size: PositiveInt = 32
    learning_rate: float = Field(1e-4, gt=0)
    warmup: float = Field(0.0, ge=0, lt=1, description="fraction of all steps")
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float | None = Field(None, gt=0)
    seed: int = 0
    evaluate_every: PositiveInt | None = Field(None, description="steps; default: once per epoch")
    early_stopping: PositiveInt | None = Field(None, description="evaluations without improvement")

    @model_validator(mode="after")
    def _length(self) -> Train:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("give either epochs or max_steps")
        return self


TechniqueChoice = str | dict[str, dict[str, Any]]


class Recipe(Frozen):
    """Model, task, data, budget, techniques and training of one run. See ``zoo schema``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    domain: str
    model: str
    checkpoint: str = Field("pretrained", description="pretrained, random, or the URI of a source")
    task: str | dict[str, dict[str, Any]]
    data: DataSpec
    budget: Budget = Budget()
    techniques: Literal["auto"] | dict[str, TechniqueChoice] = "auto"
    train: Train
    output: str | None = None

    @field_validator("task", mode="after")
    @classmethod
    def _one_task(cls, value: str | dict[str, dict[str, Any]]) -> str | dict[str, dict[str, Any]]:
        if isinstance(value, dict) and len(value) != 1:
            raise ValueError("name one task: `task: NAME` or `task: {NAME: {option: value}}`")
        return value

    @property
    def task_name(self) -> str:
        return self.task if isinstance(self.task, str) else next(iter(self.task))

    @property
    def task_options(self) -> dict[str, Any]:
        return {} if isinstance(self.task, str) else next(iter(self.task.values()))

    @property
    def output_folder(self) -> Path:
        return Path(self.output) if self.output else Path("runs") / self.name
