"""Files as tables of text: nothing is guessed, shifted or dropped."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from zoo.data.tables import column, read_table
from zoo.domain import domains
from zoo.errors import InputError


def write(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_table(path, {})
    return str(error.value)


def test_every_cell_is_the_text_of_the_file(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, 'a,b,c\n01,NA,\n1e5,"x, y",nan\n'), {})
    assert table.to_dict("list") == {"a": ["01", "1e5"], "b": ["NA", "x, y"], "c": ["", "nan"]}


def test_tabs_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "\ufeffa\tb\n1\t2\n", "t.TSV"), {})
    assert table.to_dict("list") == {"a": ["1"], "b": ["2"]}


def test_parquet_is_read_as_text_with_nothing_for_null(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"s": ["CCO", None], "x": [0.1, None], "n": [1, 2]}).to_parquet(path)
    assert read_table(path, {}).to_dict("list") == {"s": ["CCO", ""], "x": ["0.1", ""], "n": ["1", "2"]}


def test_surplus_fields_do_not_shift_the_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b\n1,2,3\n4,5,6\n")
    assert refused(path) == f"{path}: cannot be read as .csv: rows have more fields than the 2 names of the header"
    path = write(tmp_path, "a,b\n1,2\n4,5,6\n")
    assert "Expected 2 fields in line 3, saw 3" in refused(path)


def test_missing_fields_are_empty(tmp_path: Path) -> None:
    assert read_table(write(tmp_path, "a,b\n1\n3,4\n"), {})["b"].tolist() == ["", "4"]


def test_files_that_hold_nothing_are_errors(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    assert refused(path) == f"{path}: the file is empty"
    path = write(tmp_path, "a,b\n")
    assert refused(path) == f"{path}: has no rows"
    path = write(tmp_path, "\n\n")
    assert refused(path) == f"{path}: cannot be read as .csv: No columns to parse from file"


def test_files_that_cannot_be_read_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "none.csv"
    assert refused(path) == f"{path}: no such file"
    path = write(tmp_path, "a\n1\n", "t.xlsx")
    assert refused(path) == f'{path}: files of kind ".xlsx" cannot be read (kinds: .csv, .tsv, .parquet)'
    path = write(tmp_path, "no parquet at all", "t.parquet")
    assert refused(path).startswith(f"{path}: cannot be read as .parquet: ")
    path = tmp_path / "latin.csv"
    path.write_bytes(b"name\ncaf\xe9\n")
    assert refused(path).startswith(f"{path}: cannot be read as .csv: 'utf-8' codec can't decode byte 0xe9")


def test_a_domain_reads_its_own_kinds_and_a_reader_overrides_the_suffix(tmp_path: Path) -> None:
    readers = domains()["biology"].readers
    path = write(tmp_path, ">a b\nACD\nEF\n>c\nGH\n", "t.txt")
    table = read_table(path, readers, ".fasta")
    assert table["sequence"].tolist() == ["ACDEF", "GH"]


def test_a_column_that_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "smiles,SOL\nCCO,1\n"), {})
    with pytest.raises(InputError) as error:
        column(table, "SMILES", "t.csv: data.columns.input")
    assert str(error.value) == (
        't.csv: data.columns.input: "SMILES" is not a known column; did you mean "smiles"? (known: SOL, smiles)'
    )
