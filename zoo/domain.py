"""Domains and tasks: what a scientific field brings to the zoo, and how it is found.

A domain is one `Domain` object in anybody's package, registered under the entry-point group ``zoo.domains``;
the built-in ones come the same way. A domain holds facts and the names of functions; the core calls them.
A task decides what a model must have as a head, turns data into batches, and defines loss and metrics.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from zoo.card import DatasetCard, ModelCard, Ref, Source
from zoo.errors import InputError, unknown

if TYPE_CHECKING:
    import pandas
    import torch
    from numpy.typing import NDArray

    from zoo.data.prepare import Data
    from zoo.recipe import Recipe


@dataclass(frozen=True)
class Head:
    """What a task needs on top of the pretrained trunk.

    `kind` is ``sequence`` (one output vector per input), ``token`` (one per token), ``masked_lm`` (the
    pretraining head) or a kind that a domain's own models know. `outputs` counts classes or target values.
    """

    kind: str
    outputs: int = 1


@dataclass(frozen=True)
class Batch:
    """One micro-batch, ready for the model.

    `inputs` are keyword arguments of the model's forward; `targets` is what the loss compares with. `weight` is
    the number of targets that count (rows, tokens), known on the host, so that accumulated micro-batches weigh
    what they contain. `rows` are positions in the split, for putting predictions back in order.
    """

    inputs: dict[str, torch.Tensor]
    targets: torch.Tensor
    weight: int
    rows: tuple[int, ...] = ()

    def to(self, device: torch.device) -> Batch:
        return Batch({k: v.to(device) for k, v in self.inputs.items()}, self.targets.to(device), self.weight, self.rows)


@dataclass(frozen=True)
class Cleaned:
    """An input as the model will read it, and what was done to it (each note is counted in the report)."""

    text: str
    notes: tuple[str, ...] = ()


class Tokenizer(Protocol):
    """Text to token ids.

    `encode` puts the special tokens `before` and `after` around the text; `special_ids` are never masked or labelled.
    """

    vocabulary_size: int
    pad_id: int
    unk_id: int | None
    mask_id: int | None
    special_ids: frozenset[int]
    before: list[int]
    after: list[int]

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Scores:
    """Scores of a file of forecasts: `facts`, JSON-ready, for machines; for people `tables`, and `notes` below them.

    A table is a list of rows, each a mapping of column to text; its key is its title.
    """

    facts: Mapping[str, Any]
    tables: Mapping[str, Sequence[Mapping[str, str]]]
    notes: tuple[str, ...] = ()


class DataRequest(Protocol):
    """What a task may know when it prepares data."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def domain(self) -> Domain: ...
    @property
    def card(self) -> ModelCard: ...
    @property
    def dataset(self) -> DatasetCard | None: ...


@runtime_checkable
class Task(Protocol):
    """A question asked of a model. One object per run; `prepare` fills in what the data decides.

    `head` is known after `prepare` (number of classes), or from the recipe when no data is at hand.
    `monitor` names the metric that picks the best checkpoint, `lower_is_better` its direction.

    A task may have, beside what stands below: `columns` and `splits`, which its recipes may name; `length_unit`, what
    `length` counts; ``assume(request) -> length`` where no data is at hand; ``predict_file(request, model, device,
    source, target) -> (predictions, unreadable, others left out by reason)`` where predictions are no table;
    ``floors(predictions)`` that come with them; ``save_files(folder)`` and ``load_files(folder)`` for what is too
    large for `state`; ``illustrate(model, device, data, predictions, folder)``; ``score_file(request, forecast, truth,
    target, picture) -> Scores`` of forecasts in a file against what came; and `when_predicting`, those of its options
    that a finished run can be told anew.
    """

    name: str
    monitor: str
    lower_is_better: bool

    @property
    def head(self) -> Head: ...

    def prepare(self, request: DataRequest, fetch: Callable[[Source], Path]) -> Data:
        """Read, check, split and encode the recipe's data; `fetch` makes a source local. Raises `InputError`."""

    def read_inputs(
        self, request: DataRequest, fetch: Callable[[Source], Path], table: pandas.DataFrame
    ) -> tuple[list[Any], dict[int, str]]:
        """Examples without targets, for predicting on a table; and row -> reason for rows that cannot be read."""

    def blank_batch(self, card: ModelCard, rows: int, length: int) -> Batch:
        """The largest micro-batch of `rows` examples with `length` tokens each: shapes are right, values arbitrary."""

    def collate(self, examples: Sequence[Any], rows: Sequence[int], epoch: int | None) -> Batch:
        """Pad examples to one micro-batch. `epoch` (None when evaluating) seeds whatever is drawn anew per epoch."""

    def length(self, example: Any) -> int:
        """Size of one example along the axis that is padded (tokens)."""

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Sum, not mean, of the losses of the batch's targets: a scalar in fp32."""

    def predict(self, model: torch.nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """One mapping of prediction columns per row, in the batch's order, in the units of the data."""

    def combine(
        self, predictions: Sequence[Mapping[str, Any]], examples: Sequence[Any]
    ) -> Mapping[int, Mapping[str, Any]]:
        """One prediction per row of the data: what belongs to a row in parts (windows) put together."""

    def targets(self, examples: Sequence[Any]) -> Mapping[int, Any]:
        """Targets by row of the data."""

    def metrics(self, predictions: Sequence[Mapping[str, Any]], targets: Sequence[Any]) -> dict[str, float]:
        """Published metrics of combined predictions against targets, both in the same order."""

    def state(self) -> dict[str, Any]:
        """JSON-ready facts that `prepare` learned (classes, target scale), for `restore` when predicting later."""

    def restore(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Domain:
    """Everything a field brings. Values are `Ref`s, imported when used.

    - `tasks`: tasks of its own, name -> class of a `Task`; standard sequence tasks are there for everyone.
    - `readers`: file suffix -> ``(path) -> pandas.DataFrame`` of strings; CSV and Parquet are there for everyone.
    - `clean`: ``(text) -> Cleaned``; raises ValueError with the reason for an input that cannot be read.
    - `groups`: split method -> ``(inputs: list[str]) -> list[group key]``; members of a group stay together.
    - `baselines`: name -> ``(train_inputs, train_targets, test_inputs, task_name, seed) -> predictions``, the floor
      that a model has to beat: predicted values for regression, predicted probabilities (N x classes) otherwise.
    - `formats`: suffixes of files and folders that the domain's own tasks read themselves, tables or not.
    - `extra`: the pip extra that brings its libraries, named in the error when one is missing.
    """

    name: str
    title: str
    models: tuple[ModelCard, ...]
    datasets: tuple[DatasetCard, ...] = ()
    tasks: Mapping[str, Ref] = field(default_factory=dict)
    readers: Mapping[str, Ref] = field(default_factory=dict)
    clean: Ref | None = None
    groups: Mapping[str, Ref] = field(default_factory=dict)
    baselines: Mapping[str, Ref] = field(default_factory=dict)
    formats: tuple[str, ...] = ()
    extra: str | None = None


class Baseline(Protocol):
    """The signature behind `Domain.baselines`."""

    def __call__(
        self,
        train_inputs: Sequence[str],
        train_targets: Sequence[Any],
        test_inputs: Sequence[str],
        task_name: str,
        seed: int,
    ) -> NDArray[Any]: ...


def cards_in(package: str) -> tuple[ModelCard, ...]:
    """Every card that the modules of a package list in ``CARDS``: adding a model is adding one file."""
    found: list[ModelCard] = []
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        found.extend(getattr(importlib.import_module(f"{package}.{info.name}"), "CARDS", ()))
    return tuple(sorted(found, key=lambda card: card.name))


def domains() -> Mapping[str, Domain]:
    """All installed domains by name, but those that are `left_out`."""
    return installed_domains()[0]


def left_out() -> Mapping[str, str]:
    """By name, why a domain of an installed package cannot be used: it stops none of the others."""
    return installed_domains()[1]


@functools.cache
def installed_domains() -> tuple[Mapping[str, Domain], Mapping[str, str]]:
    """The domains of installed packages, and why others of theirs are left out."""
    found: dict[str, Domain] = {}
    lacking: dict[str, str] = {}
    # one name means one thing, model or dataset, and what is here already keeps its name
    taken = {path.parent.name: OWN for path in _shipped_datasets()}
    for entry in sorted(entry_points(group="zoo.domains"), key=lambda e: (_package(e) != OWN, e.name)):
        try:
            domain = entry.load()
        except Exception as error:  # a stranger's package may fail in any way; say whose it is
            lacking[entry.name] = f"{entry.value} cannot be loaded: {type(error).__name__}: {error}"
            continue
        if reason := _unfit(entry, domain, found, taken):
            lacking[entry.name] = reason
            continue
        found[domain.name] = domain
        taken.update((card.name, _package(entry)) for card in (*domain.models, *domain.datasets))
    return found, lacking


OWN = "science-zoo"
"""The distribution that this file belongs to."""


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "?"


def _unfit(entry: EntryPoint, domain: Any, found: Mapping[str, Domain], taken: Mapping[str, str]) -> str | None:
    """Why what an entry point brings cannot be used beside the domains `found` and the names that are `taken`."""
    if entry.name in found:
        return f"{entry.value} comes second: another installed package has a domain of that name"
    if not (isinstance(domain, Domain) and domain.name == entry.name):
        return f"{entry.value} is not a zoo.domain.Domain of that name"
    if strange := [card for card in domain.models if card.domain != domain.name]:
        return f'{entry.value} has a card "{strange[0].name}" that says domain "{strange[0].domain}"'
    names = [*(card.name for card in domain.models), *(card.name for card in domain.datasets)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        return f'{entry.value} calls more than one model or dataset "{twice[0]}"'
    if known := ", ".join(f'"{name}" (of {taken[name]})' for name in names if name in taken):
        return f"{entry.value} has names that are taken: {known}; its package, {_package(entry)}, must choose others"
    return None


def note_left_out() -> None:
    """Say on stderr what was done without, where somebody has asked for domains."""
    if installed_domains.cache_info().currsize:
        for name, reason in left_out().items():
            print(f'note: domain "{name}" is left out: {reason}', file=sys.stderr)


def extra_that_brings(module: str) -> str | None:
    """``science-zoo[chemistry]`` for ``rdkit``: the extra, of whichever package of domains or techniques, or None."""
    for group in ("zoo.domains", "zoo.techniques"):
        for entry in entry_points(group=group):
            for requirement in (entry.dist.requires or []) if entry.dist else []:
                match = re.match(r"([\w.-]+).*;.*extra == ['\"]([\w.-]+)['\"]", requirement)
                if entry.dist and match and re.sub(r"[-_.]+", "_", match[1]).lower() == module.lower():
                    return f"{entry.dist.name}[{match[2]}]"
    return None


@functools.cache
def models() -> Mapping[str, ModelCard]:
    """All model cards of all domains by name."""
    return {card.name: card for domain in domains().values() for card in domain.models}


def _shipped_datasets() -> list[Path]:
    """Cards of the datasets in ``datasets/``, each in a folder of the dataset's name."""
    from zoo.resources import shared

    return sorted((shared() / "datasets").glob("*/card.yaml"))


@functools.cache
def datasets() -> Mapping[str, DatasetCard]:
    """All dataset cards by name: those shipped in ``datasets/`` and those that domains bring."""
    import yaml

    found: dict[str, DatasetCard] = {}
    for path in _shipped_datasets():
        card = DatasetCard.model_validate(yaml.safe_load(path.read_text()))
        if card.name != path.parent.name:
            raise InputError(f'{path}: name is "{card.name}" but the folder is "{path.parent.name}"')
        found[card.name] = card
    for domain in domains().values():
        found.update({card.name: card for card in domain.datasets})
    return found


def find_model(name: str, where: str = "model") -> ModelCard:
    """The card of that name. Raises `InputError` with the nearest spelling."""
    if name not in models():
        raise InputError(unknown(where, "model", name, models()))
    return models()[name]
