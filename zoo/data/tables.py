"""Tables of text, from any file that the zoo or a domain can read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from zoo.card import Ref, load_ref
from zoo.errors import InputError

CORE_SUFFIXES = (".csv", ".tsv", ".parquet")


def read_table(path: Path, readers: Mapping[str, Ref], reader: str | None = None) -> pd.DataFrame:
    """All rows and columns of a file, every value as the text that the file holds ("" where empty).

    `reader` overrides the suffix. Raises `InputError` for a missing, empty or unreadable file and an unknown suffix.
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
        table = _read(path, suffix, readers)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as {suffix}: {error}") from error
    if table.empty:
        raise InputError(f"{path}: has no rows")
    return table.reset_index(drop=True)


def _read(path: Path, suffix: str, readers: Mapping[str, Ref]) -> pd.DataFrame:
    if suffix in readers:
        table: pd.DataFrame = load_ref(readers[suffix])(path)
        return table
    if suffix == ".parquet":
        raw = pd.read_parquet(path)
        return raw.astype(object).where(raw.notna(), "").astype(str)
    table = pd.read_csv(path, dtype=str, keep_default_na=False, sep="\t" if suffix == ".tsv" else ",")
    if not isinstance(table.index, pd.RangeIndex):  # pandas would take the surplus for row names and shift the rest
        raise ValueError(f"rows have more fields than the {len(table.columns)} names of the header")
    return table


def column(table: pd.DataFrame, name: str, where: str) -> list[str]:
    """The values of a column. Raises `InputError` naming the columns there are."""
    if name not in table.columns:
        from zoo.errors import unknown

        raise InputError(unknown(where, "column", name, map(str, table.columns)))
    return [str(value) for value in table[name]]
