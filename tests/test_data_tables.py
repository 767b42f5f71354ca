"""Files as tables of text: nothing is guessed, shifted or dropped."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from zoo.data.tables import column, columns_of, read_table, write_table
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


def rows(path: Path) -> pd.DataFrame:
    table, malformed = read_table(path, {})
    assert not malformed
    return table


def test_every_cell_is_the_text_of_the_file(tmp_path: Path) -> None:
    table = rows(write(tmp_path, 'a,b,c\n01,NA,\n1e5,"x, y",nan\n'))
    assert table.to_dict("list") == {"a": ["01", "1e5"], "b": ["NA", "x, y"], "c": ["", "nan"]}


def test_tabs_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    table = rows(write(tmp_path, "\ufeffa\tb\n1\t2\n", "t.TSV"))
    assert table.to_dict("list") == {"a": ["1"], "b": ["2"]}


def test_values_of_parquet_are_what_they_are_and_text_in_a_column(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    typed = pa.table(
        {
            "s": ["CCO", None],
            "x": [0.1, float("inf")],
            "n": pa.array([1, None], pa.int32()),
            "l": [[1, 2], None],
            "b": [b"CC\xff", b""],
            "t": pa.array([0, 1], pa.timestamp("us", "UTC")),
        }
    )
    parquet.write_table(typed, path)
    table = rows(path)
    texts = {name: column(table, name, "here") for name in ("s", "x", "n", "b")}
    assert texts == {"s": ["CCO", ""], "x": ["0.1", "inf"], "n": ["1", ""], "b": ["CC\\xff", ""]}
    write_table(table, path, ".parquet")
    assert parquet.read_table(path).equals(typed)
    assert pd.read_parquet(path)["n"].tolist()[0] == 1


def test_an_index_that_pandas_has_stored_is_a_column(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"s": ["CCO", "C"]}, index=pd.Index(["a", "b"], name="key")).to_parquet(path)
    assert rows(path).to_dict("list") == {"s": ["CCO", "C"], "key": ["a", "b"]}


def test_surplus_fields_and_quotes_that_do_not_match_are_told_of_their_line_alone(tmp_path: Path) -> None:
    """The line is kept as it stands, and what follows it is read."""
    path = write(tmp_path, 'a,b\n1,2\n\n4,"5\n6",7\n1,"2\n"x\ny","z"\n"3"4,5\n6,"7\n')
    table, malformed = read_table(path, {})
    assert table.to_dict("list") == {
        "a": ["1", '4,"5\n6",7', '1,"2', "x\ny", '"3"4,5', '6,"7'],
        "b": ["2", "", "", "z", "", ""],
    }
    assert malformed == {
        1: "line 4: 3 fields, the header has 2",
        2: "line 6: its quotes do not match (',' expected after '\"')",
        4: "line 9: its quotes do not match (',' expected after '\"')",
        5: "line 10: its quotes do not match (unexpected end of data)",
    }
    path = write(tmp_path, '"a,b\n1,2\n')
    wrong = "line 1, the header: its quotes do not match (unexpected end of data)"
    assert refused(path) == f"{path}: cannot be read as .csv: {wrong}"


def test_bytes_that_are_not_utf8_come_back_as_they_were(tmp_path: Path) -> None:
    """They concern whoever asks for the column they are in."""
    path = tmp_path / "latin.csv"
    path.write_bytes(b"smiles,na\xefve\nCCO,caf\xe9\nC\xff,x\n")
    table = rows(path)
    assert column(table, "smiles", "here") == ["CCO", "C\\xff"]
    with pytest.raises(InputError, match=r"\(known: na\\xefve, smiles\)"):
        column(table, "name", "here")
    write_table(table, tmp_path / "out", ".csv")
    assert (tmp_path / "out").read_bytes() == path.read_bytes()
    with pytest.raises(InputError, match=r"^Parquet has no bytes that are not UTF-8, .*; write a \.csv$"):
        write_table(table, tmp_path / "out.parquet", ".parquet")
    path.write_text("smiles\nCCO\n", encoding="utf-16")
    assert refused(path) == f"{path}: cannot be read as .csv: it is UTF-16; save it as UTF-8"
    assert columns_of(path) is None, "so that this is what is said of it"


def test_blank_lines_are_rows_of_a_file_with_one_column(tmp_path: Path) -> None:
    table = rows(write(tmp_path, '\nsmiles\nCCO\n\nCCN\n""\nCCC\n\n\n'))
    assert table["smiles"].tolist() == ["CCO", "", "CCN", "", "CCC"]
    table = rows(write(tmp_path, "smiles,y\nCCO,1\n\nCCN,2\n\n"))
    assert table["smiles"].tolist() == ["CCO", "CCN"]


def test_lines_end_as_they_like_and_fields_are_as_long_as_they_like(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'a,b\r\n1,"x\r\ny"\r\n' + b"A" * 200_000 + b",\x0c\xe2\x80\xa8\r\n")
    assert rows(path).to_dict("list") == {"a": ["1", "A" * 200_000], "b": ["x\r\ny", "\x0c\u2028"]}


def test_columns_keep_their_names_and_one_that_is_there_twice_cannot_be_chosen(tmp_path: Path) -> None:
    table = rows(write(tmp_path, ",a,a\n1,2,3\n"))
    assert list(table.columns) == ["", "a", "a"]
    with pytest.raises(InputError, match=r'^here: 2 columns are named "a"; give each a name of its own\Z'):
        column(table, "a", "here")
    write_table(table, tmp_path / "out", ".csv")
    assert (tmp_path / "out").read_text() == ",a,a\n1,2,3\n"
    with pytest.raises(InputError, match=r"^Parquet has no two columns of one name \(a\); write a \.csv instead$"):
        write_table(table, tmp_path / "out", ".parquet")


def test_missing_fields_are_empty(tmp_path: Path) -> None:
    assert rows(write(tmp_path, "a,b\n1\n3,4\n"))["b"].tolist() == ["", "4"]


def test_files_that_hold_nothing_are_errors(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    assert refused(path) == f"{path}: the file is empty"
    path = write(tmp_path, "a,b\n")
    assert refused(path) == f"{path}: has no rows"
    path = write(tmp_path, "\n\n")
    assert refused(path) == f"{path}: cannot be read as .csv: there is no header"


def test_files_that_cannot_be_read_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "none.csv"
    assert refused(path) == f"{path}: no such file"
    path = write(tmp_path, "a\n1\n", "t.xlsx")
    assert refused(path) == f'{path}: files of kind ".xlsx" cannot be read (kinds: .csv, .tsv, .parquet)'
    path = write(tmp_path, "no parquet at all", "t.parquet")
    assert refused(path).startswith(f"{path}: cannot be read as .parquet: ")


def test_a_domain_reads_its_own_kinds_and_a_reader_overrides_the_suffix(tmp_path: Path) -> None:
    readers = domains()["biology"].readers
    path = write(tmp_path, ">a b\nACD\nEF\n>c\nGH\n", "t.txt")
    table, _ = read_table(path, readers, ".fasta")
    assert table["sequence"].tolist() == ["ACDEF", "GH"]


def test_a_column_that_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    table = rows(write(tmp_path, "smiles,SOL\nCCO,1\n"))
    with pytest.raises(InputError) as error:
        column(table, "SMILES", "t.csv: data.columns.input")
    assert str(error.value) == (
        't.csv: data.columns.input: "SMILES" is not a known column; did you mean "smiles"? (known: SOL, smiles)'
    )
