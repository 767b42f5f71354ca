"""Tables, from any file that the zoo or a domain can read."""

from __future__ import annotations

import codecs
import csv
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zoo.card import Ref, load_ref
from zoo.errors import InputError, unknown

if TYPE_CHECKING:
    import pandas as pd  # a plan without data does without

CORE_SUFFIXES = (".csv", ".tsv", ".parquet")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_table(
    path: Path, readers: Mapping[str, Ref], reader: str | None = None
) -> tuple[pd.DataFrame, dict[int, str]]:
    """All rows and columns of a file with values as they are there, and by row (from 0) why a line of text is none.

    `reader` overrides the suffix. Of CSV and TSV every value is text; lines of them with too many fields, or with
    quotes that do not match, are rows whose first value is the line as it stands. A blank line is a row where the file
    has one column, except at its end; elsewhere it is none. Bytes that are not UTF-8 stay what they are
    (``surrogateescape``).

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
    malformed: dict[int, str] = {}
    try:
        table = _read(path, suffix, readers, malformed)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as {suffix}: {error}") from error
    if table.empty:
        raise InputError(f"{path}: has no rows")
    return table.reset_index(drop=True), malformed


def _read(path: Path, suffix: str, readers: Mapping[str, Ref], malformed: dict[int, str]) -> pd.DataFrame:
    if suffix in readers:
        table: pd.DataFrame = load_ref(readers[suffix])(path)
        return table
    if suffix == ".parquet":
        import pandas as pd
        from pyarrow import parquet

        # without pandas' own notes, by which columns become an index, and dates those of nanoseconds
        typed: pd.DataFrame = parquet.read_table(path).to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
        return typed
    return _delimited(path, _DELIMITERS[suffix], malformed)


def columns_of(path: Path) -> list[str] | None:
    """Names of the columns of a file whose first line or whose end tells them; None of any other."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            from pyarrow import parquet

            return [str(name) for name in parquet.read_schema(path).names]
        if suffix in _DELIMITERS:
            with path.open("rb") as content:
                if content.read(2) in _UTF16:
                    return None
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
                reader = csv.reader(lines, delimiter=_DELIMITERS[suffix], strict=True)
                return [_text(name) for name in next(filter(None, reader), ())] or None
    except (ValueError, OSError, csv.Error):  # reading the table will say what is wrong
        pass
    return None


def _delimited(path: Path, delimiter: str, malformed: dict[int, str]) -> pd.DataFrame:
    """A CSV file by Python's reader: that of pandas passes over blank rows, renames columns and stops at bad lines."""
    import pandas as pd

    content = path.read_bytes()
    if content[:2] in _UTF16:
        raise ValueError("it is UTF-16; save it as UTF-8")
    records = [*_records(content.decode("utf-8-sig", "surrogateescape"), delimiter)]
    while records and not records[-1].fields:
        records.pop()
    first = next((n for n, record in enumerate(records) if record.fields), None)
    if first is None:
        raise ValueError("there is no header")
    header = records[first]
    if header.problem:
        raise ValueError(f"line {header.line}, the header: {header.problem}")
    width = len(header.fields)
    rows: list[list[str]] = []
    for line, fields, problem, lines in records[first + 1 :]:
        if not fields and width > 1:
            continue
        if len(fields) > width:
            problem = f"{len(fields)} fields, the header has {width}"
        if problem:
            malformed[len(rows)] = f"line {line}: {problem}"
            fields = ["".join(lines).rstrip("\r\n")]
        rows.append([*fields, *([""] * (width - len(fields)))])
    return pd.DataFrame(rows, columns=pd.Index(header.fields, dtype=object), dtype=object)  # text of Arrow is UTF-8


class _Record(NamedTuple):
    """A record of delimited text, or a line that is none, with what is wrong; where it begins, and its lines."""

    line: int
    fields: list[str]
    problem: str
    lines: list[str]


def _records(text: str, delimiter: str) -> Iterator[_Record]:
    lines = list(io.StringIO(text, newline=""))
    limit = csv.field_size_limit(sys.maxsize)  # by default shorter than a chromosome
    try:
        start = now = 0
        while start < len(lines):
            rest = map(lines.__getitem__, range(start, len(lines)))
            reader = csv.reader(rest, delimiter=delimiter, strict=True)
            try:
                for fields in reader:
                    end = start + reader.line_num
                    yield _Record(now + 1, fields, "", lines[now:end])
                    now = end
                return
            except csv.Error as error:  # an open quote takes all that follows: go on with the next line
                line = lines[now]
                yield _Record(now + 1, [line.rstrip("\r\n")], f"its quotes do not match ({error})", [line])
                start = now = now + 1
    finally:
        csv.field_size_limit(limit)


def write_table(table: pd.DataFrame, path: Path, kind: str) -> None:
    """Write `table` to `path` as ``.csv``, ``.tsv`` or ``.parquet``. Raises `InputError` where it cannot be that."""
    if kind != ".parquet":
        table.to_csv(path, index=False, sep=_DELIMITERS[kind], errors="surrogateescape")
        return
    if twice := sorted({str(name) for name in table.columns[table.columns.duplicated()]}):
        raise InputError(f"Parquet has no two columns of one name ({', '.join(twice)}); write a .csv instead")
    import pyarrow
    from pyarrow import parquet

    try:
        typed = pyarrow.Table.from_pandas(table, preserve_index=False)
    except UnicodeEncodeError as error:
        raise InputError("Parquet has no bytes that are not UTF-8, which are in the input; write a .csv") from error
    # pandas cannot read back its own notes of a column of lists
    parquet.write_table(typed.replace_schema_metadata(None), path)


def column(table: pd.DataFrame, name: str, where: str) -> list[str]:
    """The values of a column as text, "" where there is none; bytes that are not UTF-8 as ``\\xff``.

    Raises `InputError` naming the columns there are, and where several have the name.
    """
    if name not in table.columns:
        raise InputError(unknown(where, "column", name, map(_text, table.columns)))
    if (count := list(table.columns).count(name)) > 1:
        raise InputError(f'{where}: {count} columns are named "{name}"; give each a name of its own')
    missing = table[name].isna()
    return ["" if lacks or value != value else _text(value) for value, lacks in zip(table[name], missing, strict=True)]


def _text(value: object) -> str:
    raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "backslashreplace")
