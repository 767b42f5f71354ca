"""FASTA and modlAMP files: what is kept, and what is said about a file that is neither."""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest

from zoo.biology.fasta import read_fasta
from zoo.biology.modlamp import read_modlamp
from zoo.domain import datasets
from zoo.errors import InputError
from zoo.weights import fetch


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str | bytes, name: str = "some.fasta") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def _read(name: str) -> pandas.DataFrame:
    card = datasets()[name]
    reader = {"mouse_v_genes": read_fasta, "antimicrobial_peptides": read_modlamp}[name]
    return reader(fetch(card.source) / card.files["all"])


def test_records_stay_in_order_with_duplicate_names_and_joined_lines(file):
    table = read_fasta(file("; a comment\n\n>b first one\nMKT\nAYI\n>a\nGG\n>b first one\nmk*\n>c\n"))
    assert table.to_dict("list") == {
        "id": ["b", "a", "b", "c"],
        "description": ["b first one", "a", "b first one", "c"],
        "sequence": ["MKTAYI", "GG", "mk*", ""],
    }
    assert all(dtype == "str" for dtype in table.dtypes)


def test_parts_of_a_tabbed_header_become_columns(file):
    table = read_fasta(file(">x1\tIGH\tMUS\nMK\n>x2\tIGK\nGG\n"))
    assert table.field1.tolist() == ["IGH", "IGK"]
    assert table.field2.tolist() == ["MUS", ""]
    assert table.description[0] == "x1\tIGH\tMUS"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"some\.fasta: no records; a FASTA record starts with a line"),
        ("; only a comment\n\n", "no records"),
        ("\nid,sequence\n1,MKT\n", r'some\.fasta:2: "id,sequence" stands before the first header.*another format'),
        (b"\x1f\x8b\x08\xff\xfe", "not a text file .* decompress it first"),
    ],
)
def test_a_file_that_is_not_fasta_says_where(file, text, message):
    with pytest.raises(InputError, match=message):
        read_fasta(file(text))


def test_a_fasta_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.fasta: cannot be read \(No such file"):
        read_fasta(tmp_path / "gone.fasta")


def test_modlamp_classes_get_the_names_of_the_first_line(file):
    table = read_modlamp(file("2,1,UniProt,AMP\nGLW, 1\nMKR, 0\n"))
    assert table.to_dict("list") == {"sequence": ["GLW", "MKR"], "label": ["AMP", "UniProt"]}
    assert all(dtype == "str" for dtype in table.dtypes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"some\.fasta:1: got an empty file, expected \"rows,features,class 0,class 1\""),
        ("sequence,label\nGLW,1\n", r':1: got "sequence,label", expected'),
        ("2,1,U,A\nGLW, 1\nMKR, 2\n", r':3: got "MKR, 2", expected "SEQUENCE, CLASS" with class 0 \(U\), 1 \(A\)'),
        ("2,1,U,A\nGLW\nMKR, x\n", r':2: got "GLW".*\n.*:3: got "MKR, x"'),
        ("3,1,U,A\nGLW, 1\nMKR, 0\n", r":1: promises 3 rows, but the file has 2; is it cut off"),
    ],
)
def test_a_file_that_is_not_of_modlamp_says_where(file, text, message):
    with pytest.raises(InputError, match=message):
        read_modlamp(file(text))


def test_a_modlamp_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.csv: cannot be read"):
        read_modlamp(tmp_path / "gone.csv")


# ------------------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize("name", ["mouse_v_genes", "antimicrobial_peptides"])
def test_a_card_describes_its_file(name):
    card, table = datasets()[name], _read(name)
    assert len(table) == card.rows
    assert set(card.columns) <= {*table.columns}
    assert set(table.columns) <= {*card.columns, "description"}


def test_mouse_genes_are_986_different_ones_of_three_loci():
    genes = _read("mouse_v_genes")
    assert genes.field1.value_counts().to_dict() == {"IGH": 593, "IGK": 389, "IGL": 4}
    assert genes.sequence.nunique() == genes.id.nunique() == 986
    assert (genes.sequence.str.len().min(), genes.sequence.str.len().max()) == (93, 103)
    assert genes.id[0] == "IGHV-22XF"
    assert genes.sequence[0].startswith("QVQLQQSGAELARPGASVKMSCKASGYTFTSYTMHWVKQRPGQGLEWIGYINPSSGYTNYNQKFKDKATL")


def test_peptides_repeat_and_contradict_each_other_as_the_card_says():
    peptides = _read("antimicrobial_peptides")
    assert peptides.label.value_counts().to_dict() == {"AMP": 2600, "UniProt": 2600}
    repeated = peptides.sequence.duplicated()  # rows whose sequence an earlier row has, whatever its label
    assert repeated.sum() == 558
    assert peptides[repeated].label.value_counts().to_dict() == {"UniProt": 520, "AMP": 38}
    labels = peptides.groupby("sequence").label.nunique()
    contradictory = labels[labels > 1].index  # sequences, not rows, that have both labels
    assert len(contradictory) == 22
    assert peptides.sequence.isin(contradictory).sum() == 47
    left = peptides[~peptides.sequence.isin(contradictory)].drop_duplicates("sequence")
    assert left.label.value_counts().to_dict() == {"AMP": 2540, "UniProt": 2080}
