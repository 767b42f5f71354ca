"""Tables of text, from any file that the zoo or a domain can read."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.card import Ref, load_ref
from zoo.errors import InputError, unknown

if TYPE_CHECKING:
    import pandas as pd  # a plan without data does without

CORE_SUFFIXES = (".csv", ".tsv", ".parquet")


def read_table(
    path: Path, readers: Mapping[str, Ref], reader: str | None = None, *, malformed: dict[int, str] | None = None
) -> pd.DataFrame:
    """All rows and columns of a file, every value as the text that the file holds ("" where empty).

    `reader` overrides the suffix. Lines of CSV and TSV that are none (too many fields, quotes that do not match) are
    an error, or, where `malformed` is given, rows of whatever can be told, with the reason in `malformed` by row.
    A blank line is a row where the file has one column, except at its end; elsewhere it is none.

    Raises `InputError` for a missing, empty or unreadable file and an unknown suffix.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    suffix = reader or path.suffix.lower()
    known = (*CORE_SUFFIXES, *sorted(readers))
    if suffix not in known:
        raise InputError(f'{path}: files of kind "{suffix}" cannot be read (kinds: {", ".join(known)})')
    try:
        table = _read(path, suffix, readers, malformed)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as {suffix}: {error}") from error
    if table.empty:
        raise InputError(f"{path}: has no rows")
    return table.reset_index(drop=True)


def _read(path: Path, suffix: str, readers: Mapping[str, Ref], malformed: dict[int, str] | None) -> pd.DataFrame:
    if suffix in readers:
        table: pd.DataFrame = load_ref(readers[suffix])(path)
        return table
    if suffix == ".parquet":
        import pandas as pd

        raw = pd.read_parquet(path)
        return raw.astype(object).where(raw.notna(), "").astype(str)
    return _delimited(path, "\t" if suffix == ".tsv" else ",", malformed)


def _delimited(path: Path, delimiter: str, malformed: dict[int, str] | None) -> pd.DataFrame:
    """A CSV file by Python's reader: that of pandas passes over blank rows, renames columns and stops at bad lines."""
    import pandas as pd

    records = [*_records(path.read_bytes().decode("utf-8-sig"), delimiter)]
    while records and not records[-1][1]:
        records.pop()
    first = next((n for n, (_, fields, _) in enumerate(records) if fields), None)
    if first is None:
        raise ValueError("there is no header")
    line, names, problem = records[first]
    if problem:
        raise ValueError(f"line {line}, the header: {problem}")
    width = len(names)
    rows: list[list[str]] = []
    problems: list[str] = []
    for line, fields, problem in records[first + 1 :]:
        if not fields and width > 1:
            continue
        if len(fields) > width:
            problem = f"{len(fields)} fields, the header has {width}"
        if problem and malformed is not None:
            malformed[len(rows)] = problem
        elif problem:
            problems.append(f"{path}:{line}: {problem}")
        rows.append([*fields[:width], *([""] * (width - len(fields)))])
    if problems:
        more = [f"{path}: {len(problems)} lines are malformed"] if len(problems) > 10 else []
        raise InputError([*problems[:10], *more])
    return pd.DataFrame(rows, columns=names, dtype="str")


def _records(text: str, delimiter: str) -> Iterator[tuple[int, list[str], str]]:
    """Line, fields and, of a line that is no record, what is wrong with it. Such a line is a field as it stands."""
    lines = list(io.StringIO(text, newline=""))
    limit = csv.field_size_limit(sys.maxsize)  # by default shorter than a chromosome
    try:
        start = now = 0
        while start < len(lines):
            rest = map(lines.__getitem__, range(start, len(lines)))
            reader = csv.reader(rest, delimiter=delimiter, strict=True)
            try:
                for fields in reader:
                    yield now + 1, fields, ""
                    now = start + reader.line_num
                return
            except csv.Error as error:  # an open quote takes all that follows: go on with the next line
                yield now + 1, [lines[now].rstrip("\r\n")], f"its quotes do not match ({error})"
                start = now = now + 1
    finally:
        csv.field_size_limit(limit)


def write_table(table: pd.DataFrame, path: Path, kind: str) -> None:
    """Write `table` to `path` as ``.csv``, ``.tsv`` or ``.parquet``. Raises `InputError` where it cannot be that."""
    if kind != ".parquet":
        table.to_csv(path, index=False, sep="\t" if kind == ".tsv" else ",")
        return
    if twice := sorted({str(name) for name in table.columns[table.columns.duplicated()]}):
        raise InputError(f"Parquet has no two columns of one name ({', '.join(twice)}); write a .csv instead")
    table.to_parquet(path, index=False)


def column(table: pd.DataFrame, name: str, where: str) -> list[str]:
    """The values of a column. Raises `InputError` naming the columns there are, and where several have the name."""
    if name not in table.columns:
        raise InputError(unknown(where, "column", name, map(str, table.columns)))
    if (count := list(table.columns).count(name)) > 1:
        raise InputError(f'{where}: {count} columns are named "{name}"; give each a name of its own')
    return [str(value) for value in table[name]]
