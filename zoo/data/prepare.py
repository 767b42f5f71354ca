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
    token in it. `truncated`: the end of the input is not in it.
    """

    row: int
    text: str
    ids: tuple[int, ...]
    target: Any = None
    start: int = 0
    truncated: bool = False


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
    raw: str = ""
    target_text: str = ""
    problem: str = ""
    text: str = ""
    target: Any = None
    ids: list[int] = field(default_factory=list)


Tables = dict[str, tuple["pd.DataFrame", dict[int, str]]]


def read_parts(request: DataRequest, fetch: Fetch) -> tuple[Tables, str]:
    """Tables of a recipe's data by part (``all``, or the publisher's ``train`` and ``test``), and a name for errors.

    With each table, its rows that are none and why.
    """
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

    Every row of the files is in the examples or in `Data.skipped`. Raises `InputError` for missing columns, for rows
    that cannot be used (unless skipped), for empty parts.
    """
    spec = request.recipe.data
    tables, name = read_parts(request, fetch)
    skipped: list[Skipped] = []
    notes: Counter[str] = Counter()
    rows = _collect(request, tables, name, skipped, notes, with_target=parse is not None)
    rows = _readable(request, rows, parse, tokenizer, name, skipped, notes)
    given = spec.split.method == "given"
    if given:  # before the split, so that the validation part has its share of what remains
        rows = _leaks(request, rows, [row.part for row in rows], skipped, notes)
    if spec.duplicates == "remove":
        rows = _deduplicated(rows, skipped, notes, within_parts=given)
    parts, split = _split(request, rows, tables)
    if not given:
        assigned = {row.row: part for row, part in zip(rows, parts, strict=True)}
        rows = _leaks(request, rows, parts, skipped, notes)
        parts = [assigned[row.row] for row in rows]
    limit = min(spec.max_length or request.card.max_length, request.card.max_length)
    examples: dict[str, list[Example]] = defaultdict(list)
    too_long: list[str] = []
    for row, part in zip(rows, parts, strict=True):
        ids = row.ids
        unknown_tokens = 0 if tokenizer.unk_id is None else ids.count(tokenizer.unk_id)
        if unknown_tokens:
            notes["inputs with tokens that the model does not know"] += 1
        if len(ids) > limit:
            done = {"truncate": ", truncated", "window": ", cut into windows"}.get(spec.too_long, "")
            notes[f"inputs beyond {limit} tokens{done}"] += 1
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
    _check_parts(request, examples, name, split)
    return Data(
        tuple(examples["train"]),
        tuple(examples["valid"]),
        tuple(examples["test"]),
        split,
        tuple(sorted(skipped, key=lambda s: s.row)),
        {note: count for note, count in notes.items() if count},
    )


def _check_parts(request: DataRequest, examples: dict[str, list[Example]], name: str, split: str) -> None:
    """No part that the recipe asks for may be empty."""
    spec = request.recipe.data.split
    shares = dict(zip(splits.PARTS, spec.fractions, strict=True))
    wanted = {"train"} if spec.method == "column" else {"train", *(part for part in shares if shares[part] > 0)}
    if spec.method == "given":
        wanted.add("test")
    empty = [part for part in splits.PARTS if part in wanted and not examples[part]]
    if empty:
        sizes = ", ".join(f"{len({e.row for e in examples[part]})} {part}" for part in splits.PARTS)
        raise InputError(
            f"{name}: no usable rows in the {empty[0]} part of the split {split} ({sizes}); "
            "give more rows, or other data.split.fractions"
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


def _collect(
    request: DataRequest,
    tables: Tables,
    name: str,
    skipped: list[Skipped],
    notes: Counter[str],
    *,
    with_target: bool,
) -> list[_Row]:
    spec = request.recipe.data
    where = f"{name}: data.columns"
    rows: list[_Row] = []
    offset = 0
    for part, (table, malformed) in tables.items():
        filters = {key: column(table, key, f"{name}: data.where") for key in spec.where}
        inputs = column(table, spec.columns["input"], f"{where}.input")
        targets = column(table, spec.columns["target"], f"{where}.target") if with_target else [""] * len(inputs)
        for i, (text, target) in enumerate(zip(inputs, targets, strict=True)):
            other = next((key for key, values in filters.items() if values[i] != spec.where[key]), None)
            if i in malformed:
                rows.append(_Row(offset + i, part, problem=malformed[i]))
                continue
            if other is None:
                rows.append(_Row(offset + i, part, text, target))
                continue
            notes["rows that data.where leaves out"] += 1
            skipped.append(Skipped(offset + i, part, f"data.where: {other} is {filters[other][i]}"))
        offset += len(table)
    if not rows:
        asked = ", ".join(f"{key}: {value}" for key, value in spec.where.items())
        raise InputError(f"{name}: data.where ({asked}) leaves none of {offset} rows")
    return rows


def _readable(
    request: DataRequest,
    rows: list[_Row],
    parse: ParseTarget | None,
    tokenizer: Tokenizer,
    name: str,
    skipped: list[Skipped],
    notes: Counter[str],
) -> list[_Row]:
    clean = cleaner(request)
    good: list[_Row] = []
    bad: list[Skipped] = []
    for row in rows:
        try:
            if row.problem:
                raise ValueError(row.problem)
            cleaned = clean(row.raw)
            row.text = cleaned.text
            row.ids = tokenizer.encode(row.text)
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


def _deduplicated(rows: list[_Row], skipped: list[Skipped], notes: Counter[str], *, within_parts: bool) -> list[_Row]:
    """One row per input; inputs whose rows contradict each other go altogether.

    Every row whose input stood in an earlier row counts as repeated; a contradictory input counts once more, for its
    first row: the two counts add up to the rows that go. `within_parts` leaves what the publisher's parts share to
    `_leaks`.
    """
    same: dict[tuple[str, str], list[_Row]] = defaultdict(list)
    for row in rows:
        same[row.part if within_parts else "", row.text].append(row)
    kept: list[_Row] = []
    for group in same.values():
        notes["repeated rows, removed"] += len(group) - 1
        if len({repr(row.target) for row in group}) > 1:
            notes["inputs with contradictory labels, removed"] += 1
            skipped.extend(Skipped(r.row, r.part, "the same input has another label elsewhere") for r in group)
            continue
        kept.append(group[0])
        skipped.extend(Skipped(r.row, r.part, f"repeats row {group[0].row + 1}") for r in group[1:])
    return sorted(kept, key=lambda row: row.row)


def _leaks(
    request: DataRequest, rows: list[_Row], parts: Sequence[str], skipped: list[Skipped], notes: Counter[str]
) -> list[_Row]:
    """Inputs of the test part that are in another part as well; `parts` says where each row is."""
    held_out = {row.text for row, part in zip(rows, parts, strict=True) if part == "test"}
    shared = [row for row, part in zip(rows, parts, strict=True) if part != "test" and row.text in held_out]
    if not shared:
        return rows
    if request.recipe.data.leaked == "report":
        notes["training rows that are also in the test part"] = len(shared)
        return rows
    notes["training rows that are also in the test part, removed"] = len(shared)
    skipped.extend(Skipped(r.row, r.part, "is also in the test part") for r in shared)
    gone = {row.row for row in shared}
    return [row for row in rows if row.row not in gone]


def _split(request: DataRequest, rows: list[_Row], tables: Tables) -> tuple[list[str], str]:
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
        values = [v for table, _ in tables.values() for v in column(table, spec.column, "data.split.column")]
        return splits.by_column([values[row.row] for row in rows], "data.split.column"), f"column {spec.column}"
    label = f"{spec.method} (seed {spec.seed})"
    if spec.method == "random":
        return splits.by_rows(len(rows), spec.fractions, spec.seed), label
    if spec.method not in request.domain.groups:
        known = ("random", "given", "column", *request.domain.groups)
        raise InputError(unknown("data.split.method", "split", spec.method, known))
    groups = load_ref(request.domain.groups[spec.method])([row.text for row in rows])
    return splits.by_groups(groups, spec.fractions, spec.seed), label
