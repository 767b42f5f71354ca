"""Reading molecules: spellings, reasons for refusal, and scaffold groups."""

from __future__ import annotations

import pytest

from zoo.chemistry.smiles import clean, scaffold
from zoo.domain import Cleaned


def test_spellings_of_one_molecule_become_one_text_and_are_noted():
    assert clean("OCC") == Cleaned("CCO", ("canonicalised",))
    assert clean("C1=CC=CC=C1") == Cleaned("c1ccccc1", ("canonicalised",))


def test_canonical_text_is_left_alone_whatever_the_blanks_around_it():
    assert clean("CCO") == clean("  CCO\n") == Cleaned("CCO")


@pytest.mark.parametrize("text", ["CC(=O)[O-].[Na+]", "C[C@H](N)C(=O)O", "[2H]C([2H])([2H])O", "F/C=C/F"])
def test_nothing_is_taken_out_of_a_molecule(text):
    assert clean(text).text == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("CC(", r"syntax error while parsing: CC\( \(position 3\)"),
        ("xyz", r"syntax error while parsing: xyz \(position 1\)"),
        ("C1CC", "unclosed ring"),
        ("C(C)(C)(C)(C)C", "valence for atom # 0 C, 5, is greater than permitted"),
        ("n1cccc1", "kekulize"),
        ("CCO ethanol", "has a blank inside"),
        ("CC>>CCO", "is a reaction; this input takes one molecule"),
    ],
)
def test_what_cannot_be_read_says_why(text, reason):
    with pytest.raises(ValueError, match=reason):
        clean(text)


def test_refusing_a_molecule_prints_nothing(capfd):
    with pytest.raises(ValueError, match="syntax error"):
        clean("CC(")
    assert capfd.readouterr() == ("", "")


def test_scaffold_keeps_ring_systems_together_and_apart():
    toluene, phenol, pyridine, chiral, mirror = scaffold(
        ["Cc1ccccc1", "Oc1ccccc1", "c1ccncc1", "C[C@H]1CCCO1", "C[C@@H]1CCCO1"]
    )
    assert toluene == phenol == "c1ccccc1"
    assert pyridine != toluene
    assert chiral == mirror == "C1CCOC1"


def test_molecules_without_rings_are_grouped_by_their_shape_and_not_all_together():
    propane, ethanol, isopropanol, butane, cyclopropane = scaffold(["CCC", "CCO", "CC(C)O", "CCCC", "C1CC1"])
    assert propane == ethanol
    assert len({propane, isopropanol, butane, cyclopropane}) == 4


def test_scaffold_of_what_cannot_be_read_says_why():
    with pytest.raises(ValueError, match="unclosed ring"):
        scaffold(["CCO", "C1CC"])
