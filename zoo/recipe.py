"""The recipe: one YAML file that names a model, a task, data, a budget and how to train.

This module holds the shape of a recipe and nothing else; `zoo.recipe_file` reads one from disk with file and
line in every error, and `zoo.resolve` checks its names against what is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, WithJsonSchema, field_validator, model_validator

from zoo.card import Frozen
from zoo.errors import InputError
from zoo.explain import got
from zoo.places import is_url
from zoo.units import parse_bytes


def _bytes(value: Any) -> int:
    if type(value) not in (str, int):
        raise ValueError(f"got {got(value)}; needs an amount of memory such as 8GiB, 24GB or 512MiB")
    try:
        return parse_bytes(value)
    except InputError as error:  # pydantic collects ValueErrors, with the place where each was found
        raise ValueError(str(error)) from None


Bytes = Annotated[
    int,
    BeforeValidator(_bytes),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "exclusiveMinimum": 0},
                {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*([kKmMgGtT][iI]?)?[bB]?\s*$"},
            ]
        }
    ),
]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="of the random numbers")]


class Split(Frozen):
    """How rows are divided. `method`: random, scaffold, cluster (a domain's groups), given (the publisher's), column.

    `fractions` are of train, valid and test. With ``given`` the publisher's test part is kept and `fractions[1]` of
    the rest becomes the validation part. With ``column``, `column` holds the words train, valid, test.
    """

    method: str = Field(default="random", description="random, given, column, or a domain's groups")
    fractions: tuple[float, float, float] = Field(
        default=(0.8, 0.1, 0.1), description="of train, valid and test; they sum to 1"
    )
    seed: Seed = 0
    column: str | None = Field(
        default=None, description="with method: column, the column of the words train, valid, test"
    )

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
    `leaked`: what happens to inputs that the test part shares with training: ``report``, or
    ``remove`` from training.
    """

    source: str | None = Field(default=None, description="name of a dataset; see `zoo datasets`")
    path: str | None = Field(default=None, description="a file of your own, instead of source")
    columns: dict[str, str] = Field(default_factory=dict, description="what the task needs -> name of the column")
    split: Split = Split()
    where: dict[str, str] = Field(default_factory=dict, description="keep rows whose column equals the value")
    max_length: PositiveInt | None = Field(default=None, description="tokens; default: the model's own")
    too_long: Literal["error", "truncate", "window"] = Field(
        default="error", description="for inputs beyond max_length"
    )
    unreadable: Literal["error", "skip"] = Field(
        default="error", description="for rows that cannot be read or lack a label"
    )
    duplicates: Literal["keep", "remove"] = Field(default="keep", description="for repeated inputs")
    leaked: Literal["report", "remove"] = Field(
        default="report", description="for inputs that test shares with training"
    )

    @model_validator(mode="after")
    def _one_of(self) -> DataSpec:
        if (self.source is None) == (self.path is None):
            raise ValueError("give either source (a dataset's name) or path (a file), not both and not neither")
        return self


class Budget(Frozen):
    """What may be used: `device` bytes on each of `count` devices (or a `gpu` by name), and `host` bytes."""

    device: Bytes | None = Field(default=None, description="memory of each device, such as 8GiB")
    gpu: str | None = Field(default=None, description="a GPU by name, instead of device")
    host: Bytes | None = Field(default=None, description="memory of the host, such as 16GiB")
    count: PositiveInt = Field(default=1, description="how many devices")

    @model_validator(mode="after")
    def _not_both(self) -> Budget:
        if self.device is not None and self.gpu is not None:
            raise ValueError("give either device (bytes) or gpu (a name), not both")
        return self

    @property
    def host_is_less(self) -> bool:
        """Whether the device is this machine's and may have more than the host."""
        return self.gpu is None and self.host is not None and self.device is not None and self.host < self.device


class Train(Frozen):
    """How to train. Either `epochs` or `max_steps`; a step is one optimizer update on `global_batch_size` rows."""

    epochs: PositiveInt | None = Field(default=None, description="passes over the training rows")
    max_steps: PositiveInt | None = Field(default=None, description="optimizer updates, instead of epochs")
    global_batch_size: PositiveInt = Field(default=32, description="rows per optimizer update, over all devices")
    learning_rate: float = Field(default=1e-4, gt=0, allow_inf_nan=False, description="the highest, after warmup")
    warmup: float = Field(default=0.0, ge=0, lt=1, description="fraction of all steps")
    schedule: Literal["constant", "linear", "cosine"] = Field(default="linear", description="after warmup")
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False, description="decoupled, as in AdamW")
    max_grad_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="clip gradients to it")
    seed: Seed = 0
    evaluate_every: PositiveInt | None = Field(default=None, description="steps; default: once per epoch")
    early_stopping: PositiveInt | None = Field(default=None, description="evaluations without improvement")

    @model_validator(mode="after")
    def _length(self) -> Train:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("give either epochs or max_steps")
        return self


TechniqueChoice = str | dict[str, dict[str, Any]]


class Recipe(Frozen):
    """Model, task, data, budget, techniques and training of one run. See ``zoo schema``."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="names the run folder: letters, digits, and _ . - inside"
    )
    domain: str = Field(description="the scientific field")
    model: str = Field(description="name of a model card; see `zoo models`")
    checkpoint: str = Field(default="pretrained", description="pretrained, random, or the URI of a source")
    task: str | dict[str, dict[str, Any]] = Field(description="`NAME`, or `{NAME: {option: value}}`")
    data: DataSpec
    budget: Budget = Budget()
    techniques: Literal["auto"] | dict[str, TechniqueChoice] = Field(
        default="auto",
        description="auto, or a section {KEY: auto | OPTION | {OPTION: {parameter: value}}}; the rest stays open",
    )
    train: Train
    output: str | None = Field(default=None, min_length=1, description="run folder; default: runs/NAME")

    @field_validator("task", mode="after")
    @classmethod
    def _one_task(cls, value: str | dict[str, dict[str, Any]]) -> str | dict[str, dict[str, Any]]:
        if isinstance(value, dict) and len(value) != 1:
            raise ValueError("name one task: `task: NAME` or `task: {NAME: {option: value}}`")
        return value

    @field_validator("output", mode="after")
    @classmethod
    def _on_this_machine(cls, value: str | None) -> str | None:
        if value is not None and is_url(value):
            raise ValueError("nothing is written to an address; name a folder of this machine")
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
