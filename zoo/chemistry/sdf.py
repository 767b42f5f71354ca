"""SDF files: one row per record, the broken ones included."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_END_OF_RECORD = re.compile(r"^\$\$\$\$.*\n?", re.MULTILINE)
_FIRST_PROPERTY = re.compile(r"^>.*<", re.MULTILINE)
_NO_ATOMS = "\n\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n"


def read_sdf(path: str | Path) -> pd.DataFrame:
    """A table of strings with one row per record, in the order of the file.

    Columns: ``smiles`` (RDKit's canonical SMILES of the record's structure), ``title`` (the record's first line,
    where any has one), then the properties in order of appearance; what a record lacks is empty. The structure
    is what an SDF is about, so ``smiles`` always comes from it; a property of that very name is kept as
    ``smiles_property``. A record whose structure RDKit cannot read is a row with its properties and empty ``smiles``.

    Raises `InputError` for a file that is missing, empty, not UTF-8 or not an SDF.
    """
    import pandas as pd
    from rdkit import rdBase

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error}); convert it, for example with iconv") from None
    if not text.strip():
        raise InputError(f"{path}: is empty; an SDF needs at least one molecule")
    if not re.search(r"^M  END", text, re.MULTILINE):
        raise InputError(f"{path}: is not an SDF file: it has no molecule block (one ends in a line 'M  END')")
    records = _END_OF_RECORD.split(text)
    if not records[-1].strip():  # what follows the last end mark is no record
        records.pop()
    with rdBase.BlockLogs():
        rows = [_row(record) for record in records]
    table = pd.DataFrame(rows, dtype=object).fillna("")
    return table if table["title"].any() else table.drop(columns="title")


def _row(record: str) -> dict[str, str]:
    from rdkit import Chem

    molecule = _first(record)
    smiles = "" if molecule is None else Chem.MolToSmiles(molecule)
    if molecule is None:  # the properties, label included, can still be read
        start = _FIRST_PROPERTY.search(record)
        molecule = _first(_NO_ATOMS + (record[start.start() :] if start else ""))
    row = {"smiles": smiles, "title": record.split("\n", 1)[0].strip()}
    for name in molecule.GetPropNames():
        column = f"{name}_property" if name in row else name
        row[column] = molecule.GetProp(name).strip()
    return row


def _first(record: str) -> Any:
    from rdkit import Chem

    supplier = Chem.SDMolSupplier()
    supplier.SetData(record)
    return next(iter(supplier), None)
