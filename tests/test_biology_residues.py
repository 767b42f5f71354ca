"""Residues as people write them: what is changed is noted, what cannot be read is named."""

from __future__ import annotations

import pytest

from zoo.biology.residues import clean


def test_standard_residues_pass_without_a_note():
    assert clean("MKTAYIAK").text == "MKTAYIAK"
    assert clean("MKTAYIAK").notes == ()


@pytest.mark.parametrize(
    ("given", "text", "note"),
    [
        (" MKT\n", "MKT", ()),
        ("MKT AYI\nAK", "MKTAYIAK", ("white space inside the sequence removed",)),
        ("MKT*", "MKT", ("stop codon at the end removed",)),
        ("MKT*\n", "MKT", ("stop codon at the end removed",)),
        ("M-K..T", "MKT", ("alignment gaps removed",)),
        ("mkT", "MKT", ("lower-case residues upper-cased",)),
        ("MKBXXT", "MKBXXT", ("non-standard residues: B, X",)),
        ("mu-*", "MU", ("stop codon at the end removed", "alignment gaps removed", "lower-case residues upper-cased",
                        "non-standard residues: U")),
    ],
)  # fmt: skip
def test_every_change_has_its_note(given, text, note):
    cleaned = clean(given)
    assert (cleaned.text, cleaned.notes) == (text, note)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("MK1T", r"'1' at position 3 is not a residue \(residues: letters A to Z\)"),
        ("  MK1T", "'1' at position 5 is not"),  # positions are of the text as given
        ("MK*T", "'\\*' at position 3 is not a residue, a stop codon inside the sequence"),
        ("MKé", "'é' at position 3"),
        ("", "the sequence is empty: no residues"),
        (" *", "the sequence is empty"),
        ("--..", "the sequence is empty"),
    ],
)
def test_what_is_no_sequence_of_residues_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        clean(given)
