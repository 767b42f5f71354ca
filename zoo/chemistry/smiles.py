"""Reading SMILES: one spelling per molecule, the reason for what cannot be read, and groups of similar molecules."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any

from zoo.domain import Cleaned

_STAMP = re.compile(r"^\[[\d:]+\] (SMILES Parse Error: )?")
_POSITION = re.compile(r"around position (\d+)")


def parse(text: str) -> Any:
    """The RDKit molecule that `text` spells. Raises ValueError with RDKit's reason."""
    from rdkit import Chem, rdBase

    if not text:
        raise ValueError("is empty")
    if ">" in text:
        raise ValueError("is a reaction; this input takes one molecule (its parts may be separated by a dot)")
    if len(text.split()) > 1:  # RDKit would take the second word as a name and drop it
        raise ValueError("has a blank inside; a SMILES has none (is a name or an extension behind it?)")
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(text)
    if molecule is None:
        raise ValueError(_reason(text))
    return molecule


def clean(text: str) -> Cleaned:
    """RDKit's canonical SMILES, the spelling that the models were pretrained on; noted where it differs.

    Nothing is taken out: salts, charges, isotopes and stereochemistry stay. Raises ValueError with the reason.
    """
    from rdkit import Chem

    given = text.strip()
    canonical = Chem.MolToSmiles(parse(given))
    return Cleaned(canonical, () if canonical == given else ("canonicalised",))


def scaffold(inputs: Sequence[str]) -> list[str]:
    """Bemis-Murcko scaffold of each molecule, for splits that test on unseen ring systems.

    Bemis and Murcko 1996, J. Med. Chem. 39, 2887. A molecule without rings has no scaffold, and in sets of small
    molecules these are a large share of the rows: as one group they would all fall into the same part of a split.
    Each is keyed by its anonymous graph (elements and bond orders erased) instead, so that chains of the same length
    and branching, such as propane, ethanol and ethylamine, stay together.
    Raises ValueError for what cannot be read.
    """
    from rdkit import Chem
    from rdkit.Chem import rdMolHash
    from rdkit.Chem.Scaffolds import MurckoScaffold

    keys = []
    for text in inputs:
        molecule = parse(text)
        ring_system = Chem.MolToSmiles(MurckoScaffold.GetScaffoldForMol(molecule), isomericSmiles=False)  # type: ignore[no-untyped-call]
        anonymous = rdMolHash.HashFunction.AnonymousGraph
        keys.append(ring_system or f"acyclic:{rdMolHash.MolHash(molecule, anonymous)}")
    return keys


def _reason(text: str) -> str:
    """What RDKit logs about a SMILES that it refuses, in one line."""
    from rdkit import Chem, rdBase

    log = io.StringIO()
    rdBase.LogToPythonStderr()
    try:
        with contextlib.redirect_stderr(log):
            Chem.MolFromSmiles(text)
    finally:
        rdBase.LogToCppStreams()
    lines = [
        re.sub(r"^\[[\d:]+\] ", "", line).removeprefix("SMILES Parse Error: ") for line in log.getvalue().split("\n")
    ]
    first = next((line for line in lines if line.strip()), "cannot be read as SMILES")
    where = _POSITION.search(log.getvalue())
    return f"{first} (position {where[1]})" if where else first
