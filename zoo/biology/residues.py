"""Residues as people write them, made into what a protein language model reads."""

from __future__ import annotations

from zoo.domain import Cleaned

STANDARD = "ACDEFGHIKLMNPQRSTVWY"
_GAPS = "-."


def clean(text: str) -> Cleaned:
    """Upper-case one-letter residues of `text` (IUPAC-IUB 1984), with a note for everything that was changed.

    White space goes (files wrap sequences), and so do a stop ``*`` at the end and alignment gaps ``-`` and ``.``.
    Letters beyond the 20 standard residues (B, J, O, U, X, Z) stay, with a note: a model reads those that its
    vocabulary has and takes the others as unknown. Raises ValueError naming the first other character with its
    position (from 1, in `text` as given), and for a sequence without residues.
    """
    end = len(text.rstrip().removesuffix("*"))
    kept: list[str] = []
    for position, character in enumerate(text[:end], start=1):
        if character.isspace() or character in _GAPS:
            continue
        if not (character.isascii() and character.isalpha()):
            hint = ", a stop codon inside the sequence" if character == "*" else ""
            raise ValueError(f"{character!r} at position {position} is not a residue{hint} (residues: letters A to Z)")
        kept.append(character)
    if not kept:
        raise ValueError("the sequence is empty: no residues")
    residues = "".join(kept).upper()
    odd = sorted(set(residues) - set(STANDARD))
    notes = (
        ("white space inside the sequence removed", len(text.strip().split()) > 1),
        ("stop codon at the end removed", end < len(text.rstrip())),
        ("alignment gaps removed", any(gap in text for gap in _GAPS)),
        ("lower-case residues upper-cased", residues != "".join(kept)),
        (f"non-standard residues: {', '.join(odd)}", bool(odd)),
    )
    return Cleaned(residues, tuple(note for note, holds in notes if holds))
