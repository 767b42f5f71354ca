"""The peptide sets of modlAMP, whose files are CSV in scikit-learn's old layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import InputError

if TYPE_CHECKING:
    import pandas


def read_modlamp(path: str | Path) -> pandas.DataFrame:
    """Peptides and the names of their classes: columns ``sequence`` and ``label``, strings, in file order.

    The first line is ``rows,features,NAME_OF_CLASS_0,NAME_OF_CLASS_1,...``, as in scikit-learn's own small data
    sets; every other line is ``SEQUENCE, CLASS``. Raises `InputError` naming every line that does not fit, and where
    the number of rows is not the one that the first line promises. Source: Mueller et al. 2017, modlAMP,
    Bioinformatics 33, 2753, doi:10.1093/bioinformatics/btx285.
    """
    import pandas

    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    head = [part.strip() for part in lines[0].split(",")] if lines else []
    if len(head) < 4 or not head[0].isdigit():
        got = f'"{lines[0][:40]}"' if lines else "an empty file"
        raise InputError(
            f'{path}:1: got {got}, expected "rows,features,class 0,class 1", for example 5200,1,UniProt,AMP'
        )
    classes = head[2:]
    problems: list[str] = []
    rows: list[tuple[str, str]] = []
    for number, line in enumerate(lines[1:], start=2):
        sequence, comma, label = (part.strip() for part in line.rpartition(","))
        if not comma or not label.isdigit() or int(label) >= len(classes):
            numbers = ", ".join(f"{i} ({name})" for i, name in enumerate(classes))
            problems.append(f'{path}:{number}: got "{line[:60]}", expected "SEQUENCE, CLASS" with class {numbers}')
        else:
            rows.append((sequence, classes[int(label)]))
    if not problems and len(rows) != int(head[0]):
        problems.append(f"{path}:1: promises {head[0]} rows, but the file has {len(rows)}; is it cut off?")
    if problems:
        raise InputError(problems)
    return pandas.DataFrame(rows, columns=["sequence", "label"], dtype="str")
