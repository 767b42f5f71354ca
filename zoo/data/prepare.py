"""From a table of text to examples: check, clean, encode, deduplicate, split; and account for every row.

Rows that cannot be used are never dropped silently: they are an error, or, where the recipe says ``skip``, counted
and listed with their reasons.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.card import Source, load_ref
from zoo.data import splits
from zoo.data.tables import column, read_table
from zoo.domain import Cleaned, DataRequest, Tokenizer
from zoo.errors import InputError, unknown

if TYPE_CHECKING:
    import pandas as pd

Fetch = Callable[[Source], Path]
ParseTarget = Callable[[str, str], Any]
"""(text of the target column, cleaned input) -> target; raises ValueError with the reason."""


@dataclass(frozen=True)
class Example:
    """One input, ready for the model: `ids` are token ids with special tokens; `row` is its row in the table.

    A row that was cut into windows gives several examples with the same `row`; `start` is the position of the first
    token in it.
    """

    row: int
    text: str
    ids: tuple[int, ...]
    target: Any = None
    start: int = 0


@dataclass(frozen=True)
class Skipped:
    """A row that is not used, and why."""

    row: int
    part: str
    reason: str


@dataclass(frozen=True)
class Data:
    """Examples by part, and what happened to the rows on the way. `split` names the split for every number reported."""

    train: tuple[Any, ...]
    valid: tuple[Any, ...]
    test: tuple[Any, ...]
    split: str
    skipped: tuple[Skipped, ...] = ()
    notes: dict[str, int] = field(default_factory=dict)

    def part(self, name: str) -> tuple[Any, ...]:
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        return parts[name]


@dataclass
class _Row:
    row: int
    part: str
    raw: str
    target_text: str
    text: str = ""
    target: Any = None


def read_parts(request: DataRequest, fetch: Fetch) -> tuple[dict[str, pd.DataFrame], str]:
    """Tables of a recipe's data by part (``all``, or the publisher's ``train`` and ``test``), and a name for errors."""
    spec = request.recipe.data
    if spec.path is not None:
        path = Path(spec.path)
        return {"all": read_table(path, request.domain.readers)}, str(path)
    card = request.dataset
    if card is None:
        raise InputError(f'data.source: "{spec.source}" has no card')
    folder = fetch(card.source)
    return {
        part: read_table(folder / name, request.domain.readers, card.reader) for part, name in card.files.items()
    }, card.name


def prepare_sequences(request: DataRequest, fetch: Fetch, tokenizer: Tokenizer, parse: ParseTarget | None) -> Data:
    """Examples of a recipe's data. `parse` reads the target column; None where the task needs no target.

    Raises `InputError` for missing columns, for rows that cannot be used (unless skipped), for empty parts.
    """
    spec = request.recipe.data
    tables, name = read_parts(request, fetch)
    rows = _collect(request, tables, name, with_target=parse is not None)
    skipped: list[Skipped] = []
    notes: Counter[str] = Counter()
    rows = _readable(request, rows, parse, name, skipped, notes)
    if spec.duplicates == "remove":
        rows = _deduplicated(rows, skipped, notes)
    rows = _leaks(request, rows, skipped, notes)
    parts, split = _split(request, rows, tables)
    limit = min(spec.max_length or request.card.max_length, request.card.max_length)
    examples: dict[str, list[Example]] = defaultdict(list)
    too_long: list[str] = []
    for row, part in zip(rows, parts, strict=True):
        ids = tokenizer.encode(row.text)
        unknown_tokens = 0 if tokenizer.unk_id is None else ids.count(tokenizer.unk_id)
        if unknown_tokens:
            notes["inputs with tokens that the model does not know"] += 1
        if len(ids) > limit:
            notes[f"inputs beyond {limit} tokens"] += 1
            if spec.too_long == "error":
                too_long.append(f"{name} row {row.row + 1}: {len(ids)} tokens, the limit is {limit}")
                continue
        for start, window in fit(ids, limit, spec.too_long, tokenizer):
            examples[part].append(Example(row.row, row.text, window, row.target, start))
    if too_long:
        raise InputError(
            [
                *too_long[:10],
                f"{len(too_long)} inputs are too long; set data.too_long to truncate or window, or data.max_length",
            ]
        )
    for part in ("train", "test") if request.recipe.data.split.method != "column" else ("train",):
        if not examples[part]:
            raise InputError(f"{name}: no usable rows in the {part} part of the split ({split})")
    return Data(
        tuple(examples["train"]), tuple(examples["valid"]), tuple(examples["test"]), split, tuple(skipped), dict(notes)
    )


def fit(ids: Sequence[int], limit: int, policy: str, tokenizer: Tokenizer) -> list[tuple[int, tuple[int, ...]]]:
    """`ids` as sequences of at most `limit` tokens, special tokens at both ends kept, each with where it starts."""
    if len(ids) <= limit:
        return [(0, tuple(ids))]
    before, after = len(tokenizer.before), len(tokenizer.after)
    body = ids[before : len(ids) - after]
    size = limit - before - after
    cuts = range(0, len(body), size) if policy == "window" else range(0, 1)
    return [(cut, (*tokenizer.before, *body[cut : cut + size], *tokenizer.after)) for cut in cuts]


def cleaner(request: DataRequest) -> Callable[[str], Cleaned]:
    """The domain's cleaning function, or one that only strips white space."""
    if request.domain.clean is not None:
        function: Callable[[str], Cleaned] = load_ref(request.domain.clean)
        return function

    def strip(text: str) -> Cleaned:
        if not text.strip():
            raise ValueError("the input is empty")
        return Cleaned(text.strip())

    return strip


def _collect(request: DataRequest, tables: dict[str, pd.DataFrame], name: str, *, with_target: bool) -> list[_Row]:
    spec = request.recipe.data
    where = f"{name}: data.columns"
    needed = ("input", "target") if with_target else ("input",)
    extra = sorted(set(spec.columns) - {"input", "target"})
    missing = [key for key in needed if key not in spec.columns]
    problems = [unknown(where, "column of a sequence task", key, ("input", "target")) for key in extra]
    problems += [f'{where}: task {request.recipe.task_name} needs "{key}: NAME OF A COLUMN"' for key in missing]
    if problems:
        raise InputError(problems)
    rows: list[_Row] = []
    offset = 0
    for part, table in tables.items():
        keep = [True] * len(table)
        for key, value in spec.where.items():
            keep = [k and v == value for k, v in zip(keep, column(table, key, f"{name}: data.where"), strict=True)]
        inputs = column(table, spec.columns["input"], f"{where}.input")
        targets = column(table, spec.columns["target"], f"{where}.target") if with_target else [""] * len(inputs)
        for i, (text, target, kept) in enumerate(zip(inputs, targets, keep, strict=True)):
            if kept:
                rows.append(_Row(offset + i, part, text, target))
        offset += len(table)
    if not rows:
        raise InputError(f"{name}: data.where leaves no row of {offset} ({spec.where})")
    return rows


def _readable(
    request: DataRequest,
    rows: list[_Row],
    parse: ParseTarget | None,
    name: str,
    skipped: list[Skipped],
    notes: Counter[str],
) -> list[_Row]:
    clean = cleaner(request)
    good: list[_Row] = []
    bad: list[Skipped] = []
    for row in rows:
        try:
            cleaned = clean(row.raw)
            row.text = cleaned.text
            if parse is not None:
                row.target = parse(row.target_text.strip(), row.text)
        except ValueError as error:
            bad.append(Skipped(row.row, row.part, str(error)))
            continue
        notes.update(cleaned.notes)
        good.append(row)
    if bad and request.recipe.data.unreadable == "error":
        shown = [f"{name} row {b.row + 1}: {b.reason}" for b in bad[:10]]
        raise InputError(
            [
                *shown,
                f"{len(bad)} of {len(rows)} rows cannot be used; mend them, or say data.unreadable: skip",
            ]
        )
    if bad:
        notes["rows that cannot be read"] = len(bad)
        skipped.extend(bad)
    return good


def _deduplicated(rows: list[_Row], skipped: list[Skipped], notes: Counter[str]) -> list[_Row]:
    """One row per input; inputs whose rows contradict each other go altogether."""
    same: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        same[row.text].append(row)
    kept: list[_Row] = []
    for group in same.values():
        if len({repr(row.target) for row in group}) > 1:
            notes["inputs with contradictory labels, removed"] += 1
            skipped.extend(Skipped(r.row, r.part, "the same input has another label elsewhere") for r in group)
            continue
        kept.append(group[0])
        notes["repeated rows, removed"] += len(group) - 1
        skipped.extend(Skipped(r.row, r.part, f"repeats row {group[0].row + 1}") for r in group[1:])
    return sorted(kept, key=lambda row: row.row)


def _leaks(request: DataRequest, rows: list[_Row], skipped: list[Skipped], notes: Counter[str]) -> list[_Row]:
    """Inputs that the publisher's test part shares with its training part."""
    held_out = {row.text for row in rows if row.part == "test"}
    shared = [row for row in rows if row.part != "test" and row.text in held_out]
    if not shared:
        return rows
    if request.recipe.data.leaked == "report":
        notes["training rows that are also in the test part"] = len(shared)
        return rows
    notes["training rows that are also in the test part, removed"] = len(shared)
    skipped.extend(Skipped(r.row, r.part, "is also in the test part") for r in shared)
    gone = {row.row for row in shared}
    return [row for row in rows if row.row not in gone]


def _split(request: DataRequest, rows: list[_Row], tables: dict[str, pd.DataFrame]) -> tuple[list[str], str]:
    """A part for every row, and the name of the split."""
    spec = request.recipe.data.split
    if spec.method == "given":
        if "test" not in tables:
            raise InputError("data.split.method: given needs a dataset whose publisher held out a test part")
        own = [i for i, row in enumerate(rows) if row.part != "test"]
        inner = splits.by_rows(len(own), (1 - spec.fractions[1], spec.fractions[1], 0.0), spec.seed)
        parts = ["test"] * len(rows)
        for i, part in zip(own, inner, strict=True):
            parts[i] = part
        return parts, "given"
    if spec.method == "column":
        assert spec.column is not None
        values = [v for table in tables.values() for v in column(table, spec.column, "data.split.column")]
        return splits.by_column([values[row.row] for row in rows], "data.split.column"), f"column {spec.column}"
    label = f"{spec.method} (seed {spec.seed})"
    if spec.method == "random":
        return splits.by_rows(len(rows), spec.fractions, spec.seed), label
    if spec.method not in request.domain.groups:
        known = ("random", "given", "column", *request.domain.groups)
        raise InputError(unknown("data.split.method", "split", spec.method, known))
    groups = load_ref(request.domain.groups[spec.method])([row.text for row in rows])
    return splits.by_groups(groups, spec.fractions, spec.seed), label
