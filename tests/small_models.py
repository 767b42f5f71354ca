"""Small models of real architectures, batches for them, and training that shows its losses, gradients and weights."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from zoo.card import ModelCard
from zoo.data.prepare import Example
from zoo.domain import Batch, Task, find_model
from zoo.memory.ledger import Record
from zoo.memory.trace import World, trace
from zoo.step import Loader, Setup, build, train_step
from zoo.tasks.classification import SequenceClassification
from zoo.tasks.masked_lm import MaskedLanguageModelling
from zoo.tasks.regression import SequenceRegression
from zoo.tasks.sequence import SequenceTask
from zoo.tasks.tokens import TokenClassification
from zoo.techniques import Technique, registry
from zoo.techniques.chunking import ROLE, Positions
from zoo.techniques.loss import ChunkedLoss
from zoo.training.meter import CpuMeter
from zoo.training.values import loader_of
from zoo.weights import fetch, initialise_and_load

CPU = torch.device("cpu")
SCRATCH = 128 * 1024
"""Bytes that oneDNN takes inside one 16-bit product on two threads, in no tensor of the program: 111,744 and 71,424
were seen, none on one thread. It is more than 1 % of phases below 13 MiB only, which models of real size do not have;
the table of `tests.benchmarks.cpu_memory` is held to 1 % without it."""

_SIZES: dict[str, dict[str, int]] = {
    "esm2_t6_8m": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128},
    "rxnmapper_albert": {"num_hidden_layers": 3, "hidden_size": 64, "embedding_size": 32, "intermediate_size": 128},
    "antiberty": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128},
}
NAMES = tuple(_SIZES)
"""An encoder with rotary positions, one whose layers share their weights, one with dropout in attention."""


def changed(card: ModelCard, **config: Any) -> ModelCard:
    """The card with other values in its configuration."""
    return card.model_copy(update={"config": {**card.config, **config}})


def small(name: str, *, dropout: float = 0.0, **config: Any) -> ModelCard:
    """A card of `NAMES` with two or three narrow layers and the given dropout everywhere."""
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if name == "rxnmapper_albert":
        rates["classifier_dropout_prob"] = dropout
    return changed(find_model(name), **{**_SIZES[name], **rates, **config})


def task_of(kind: str, card: ModelCard) -> SequenceTask:
    """A standard task by name, ready to collate."""
    classes = ["a", "b", "c"]
    tasks: dict[str, Callable[[], SequenceTask]] = {
        "sequence_regression": SequenceRegression,
        "sequence_classification": lambda: SequenceClassification(classes),
        "token_classification": lambda: TokenClassification(classes),
        "masked_language_modelling": MaskedLanguageModelling,
    }
    task = tasks[kind]()
    task.use_tokenizer(card, fetch)
    return task


def examples(task: SequenceTask, lengths: Sequence[int], seed: int = 0) -> list[Example]:
    """Random inputs of the given `lengths` in tokens, with random targets of the task's kind."""
    rng = np.random.default_rng(seed)
    tokenizer = task.tokenizer
    ordinary = [i for i in range(tokenizer.vocabulary_size) if i not in tokenizer.special_ids]
    made = []
    for row, length in enumerate(lengths):
        size = length - len(tokenizer.before) - len(tokenizer.after)
        body = [int(i) for i in rng.choice(ordinary, size=size)]
        target: Any = None
        if isinstance(task, SequenceRegression):
            target = float(rng.normal())
        elif isinstance(task, SequenceClassification):
            target = str(rng.choice(task.classes))
        elif isinstance(task, TokenClassification):
            target = tuple(str(c) for c in rng.choice([*task.classes, "-"], size=size))
        made.append(Example(row, "", (*tokenizer.before, *body, *tokenizer.after), target))
    return made


def batches(task: SequenceTask, lengths: Sequence[int], *divisions: int, seed: int = 0) -> list[Batch]:
    """One global batch as micro-batches of `divisions` rows (one micro-batch where none are given)."""
    rows = examples(task, lengths, seed)
    assert not divisions or sum(divisions) == len(rows)
    found, start = [], 0
    for size in divisions or (len(rows),):
        found.append(task.collate(rows[start : start + size], range(start, start + size), epoch=0))
        start += size
    return found


def applies(option: type[Technique], card: ModelCard, kind: str) -> bool:
    """Whether the option has something to do in the model with such a head: it is refused for having nothing."""
    if option is ChunkedLoss:
        return kind == "masked_language_modelling"
    return option is not Positions or ROLE in card.roles  # without it: tests/test_techniques_chunking.py


def defaults(**other: Technique) -> tuple[Technique, ...]:
    """The default option of every key, with `other` options in their keys' places."""
    assert set(other) <= set(registry())
    return tuple(other.get(key, options[0]()) for key, options in registry().items())


def loads(state: dict[str, torch.Tensor]) -> Loader:
    """A loader of the given values, which fills `reference` as loading a checkpoint does."""

    def load(setup: Setup) -> None:
        initialise_and_load(setup.model, state, 0, reference=setup.reference)

    return load


@dataclass
class Steps:
    """What training did: loss and gradients of every step, and the weights after it, by name of the parameter."""

    setup: Setup
    losses: list[torch.Tensor] = field(default_factory=list)
    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)
    weights: list[dict[str, torch.Tensor]] = field(default_factory=list)


def run_steps(
    card: ModelCard,
    task: Task,
    techniques: Sequence[Technique],
    steps: Sequence[Sequence[Batch]],
    *,
    load: Loader | None = None,
    after: Callable[[Setup], None] | None = None,
    learning_rate: float = 1e-3,
    max_grad_norm: float | None = None,
    device: torch.device = CPU,
) -> Steps:
    """Build and train with the random numbers of one seed; `after` is called after every step.

    Gradients are those that the optimizer finds, or, of one that steps inside the backward pass, what flowed.
    """
    setup = build(
        card, task, techniques, device, learning_rate=learning_rate, weight_decay=0.01, max_grad_norm=max_grad_norm,
        load=load or loader_of(card, "random", 0),
    )  # fmt: skip
    seen = Steps(setup)
    flowed: dict[str, torch.Tensor] = {}
    for name, parameter in setup.trainable().items():
        parameter.register_hook(functools.partial(_add_up, flowed, name))

    @contextlib.contextmanager
    def phase(name: str) -> Iterator[None]:
        if name == "optimizer":
            seen.gradients.append(
                flowed | {n: p.grad.clone() for n, p in setup.trainable().items() if p.grad is not None}
            )
            flowed.clear()
        yield

    setup.phase = phase
    torch.manual_seed(0)
    for batch in steps:
        seen.losses.append(train_step(setup, batch).loss)
        seen.weights.append({n: p.detach().clone() for n, p in setup.model.named_parameters()})
        if after is not None:
            after(setup)
    return seen


def _add_up(sums: dict[str, torch.Tensor], name: str, gradient: torch.Tensor) -> None:
    sums[name] = sums[name] + gradient if name in sums else gradient.clone()


def clipping(techniques: Sequence[Technique]) -> float | None:
    """A norm to clip to, where the optimizer sees all gradients before it steps."""
    return None if any(t.name == "adamw-in-backward" for t in techniques) else 1.0


def predicted(
    card: ModelCard,
    task: Task,
    techniques: Sequence[Technique],
    rows: int,
    length: int,
    *,
    accumulation: int = 1,
    world: World = "fake",
    **options: Any,
) -> Record:
    """A trace of two steps without storage."""
    return trace(
        lambda device: build(card, task, techniques, device, max_grad_norm=clipping(techniques)),
        lambda setup: [task.blank_batch(card, rows, length) for _ in range(accumulation)],
        world,
        **options,
    )


def measured(
    card: ModelCard, task: Task, techniques: Sequence[Technique], rows: int, length: int, *, accumulation: int = 1
) -> dict[str, int]:
    """Peaks by phase of two real steps on one thread, from the profiler: what 16-bit products take inside themselves
    (`SCRATCH`) grows with the threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured(card, task, techniques, rows, length, accumulation)
    finally:
        torch.set_num_threads(threads)


def _measured(
    card: ModelCard, task: Task, techniques: Sequence[Technique], rows: int, length: int, accumulation: int
) -> dict[str, int]:
    meter = CpuMeter()
    setup = build(card, task, techniques, CPU, max_grad_norm=clipping(techniques), load=loader_of(card, "random", 0))
    setup.phase = meter.phase
    for _ in range(2):
        step = [task.blank_batch(card, rows, length) for _ in range(accumulation)]
        train_step(setup, step)
        del step
    return meter.stop()
