"""What all tasks on token sequences share: encoding, padding, and averaging over windows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoo.card import ModelCard, Source, load_ref
from zoo.data.prepare import Data, Example, cleaner, fit, prepare_sequences
from zoo.data.tables import column
from zoo.domain import DataRequest, Head, Tokenizer
from zoo.errors import InputError
from zoo.tasks.vocabulary import computed, scores_of

if TYPE_CHECKING:
    import pandas as pd


class SequenceTask(ABC):
    """Base of tasks whose input is one token sequence per row.

    Shapes: `B` rows of the micro-batch, `L` tokens of its longest row, `C` outputs. Inputs are ``input_ids`` and
    ``attention_mask``, both int64 (B, L).
    """

    name: str
    monitor: str
    lower_is_better: bool
    needs_target = True

    def __init__(self) -> None:
        self._tokenizer: Tokenizer | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Keys that the recipe's ``data.columns`` must have, and may have."""
        return ("input", "target") if self.needs_target else ("input",)

    @property
    @abstractmethod
    def head(self) -> Head: ...

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise ValueError(f"{self.name} has no tokenizer yet: call prepare, read_inputs or use_tokenizer first")
        return self._tokenizer

    def use_tokenizer(self, card: ModelCard, fetch: Callable[[Source], Path]) -> None:
        """Make the card's tokenizer; its files are fetched if it needs any."""
        if self._tokenizer is None:
            self._tokenizer = tokenizer_of(card, fetch)

    def prepare(self, request: DataRequest, fetch: Callable[[Source], Path]) -> Data:
        self.use_tokenizer(request.card, fetch)
        parse = self.parse_target if self.needs_target else None
        data = prepare_sequences(request, fetch, self.tokenizer, parse)
        self.learn(data)
        return data

    def read_inputs(
        self, request: DataRequest, fetch: Callable[[Source], Path], table: pd.DataFrame
    ) -> tuple[list[Example], dict[int, str]]:
        self.use_tokenizer(request.card, fetch)
        spec = request.recipe.data
        clean = cleaner(request)
        limit = min(spec.max_length or request.card.max_length, request.card.max_length)
        examples: list[Example] = []
        errors: dict[int, str] = {}
        for row, raw in enumerate(column(table, spec.columns["input"], "input file: data.columns.input")):
            try:
                text = clean(raw).text
                ids = self.tokenizer.encode(text)
            except ValueError as error:
                errors[row] = str(error)
                continue
            if len(ids) > limit and spec.too_long == "error":
                errors[row] = f"{len(ids)} tokens, the limit is {limit} (data.too_long: error)"
                continue
            windows = fit(ids, limit, spec.too_long, self.tokenizer)
            cut = len(ids) > limit and spec.too_long == "truncate"
            examples += [Example(row, text, window, start=start, truncated=cut) for start, window in windows]
        return examples, errors

    def parse_target(self, text: str, cleaned: str) -> Any:
        """The target in a cell, or ValueError with the reason why there is none."""
        raise NotImplementedError(f"{self.name} reads no targets")

    def learn(self, data: Data) -> None:
        """Take from the data what the head and the loss need (classes, scale)."""
        return

    def length(self, example: Example) -> int:
        return len(example.ids)

    def pad(self, sequences: Sequence[Sequence[int]], value: int) -> torch.Tensor:
        """Int64 (B, L), filled up with `value`."""
        longest = max(len(s) for s in sequences)
        return torch.tensor([[*s, *([value] * (longest - len(s)))] for s in sequences], dtype=torch.long)

    def inputs(self, sequences: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        return {
            "input_ids": self.pad(sequences, self.tokenizer.pad_id),
            "attention_mask": self.pad([[1] * len(s) for s in sequences], 0),
        }

    def blank_inputs(self, rows: int, length: int) -> dict[str, torch.Tensor]:
        return {
            "input_ids": torch.zeros((rows, length), dtype=torch.long),
            # Not all ones: a model may skip its mask for a batch without padding, and most batches have some.
            "attention_mask": torch.zeros((rows, length), dtype=torch.long),
        }

    def merge(self, windows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One row's prediction from those of its windows."""
        return dict(windows[0])

    def combine(
        self, predictions: Sequence[Mapping[str, Any]], examples: Sequence[Example]
    ) -> dict[int, dict[str, Any]]:
        """Predictions by row of the table, its windows merged."""
        rows: dict[int, list[Mapping[str, Any]]] = {}
        for prediction, example in zip(predictions, examples, strict=True):
            rows.setdefault(example.row, []).append(prediction)
        return {row: self.merge(windows) for row, windows in rows.items()}

    def targets(self, examples: Sequence[Example]) -> dict[int, Any]:
        """Targets by row of the table."""
        return {example.row: example.target for example in examples}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        return


def tokenizer_of(card: ModelCard, fetch: Callable[[Source], Path]) -> Tokenizer:
    """The card's tokenizer; its files are fetched if it needs any. Raises `InputError` for a card that has none."""
    if card.tokenizer is None:
        raise InputError(f"{card.name} has no tokenizer: its inputs are no text")
    files = fetch(card.source) if card.source and card.tokenizer_files else None
    made: Tokenizer = load_ref(card.tokenizer)(files)
    return made


def logits(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the model's head says, in fp32 at least, whether it returns a tensor or an object with ``logits``."""
    scores = scores_of(model, inputs)
    return scores if isinstance(scores, torch.Tensor) else computed(scores.full())
