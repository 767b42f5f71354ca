"""FASTA files as tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import InputError

if TYPE_CHECKING:
    import pandas


def read_fasta(path: str | Path) -> pandas.DataFrame:
    """One row a record, in file order, all columns strings; records with the same name are all kept.

    Columns: ``id`` (the header up to the first white space), ``description`` (the whole header), ``sequence`` (its
    lines joined, otherwise untouched), and where headers are divided by tabs ``field1``, ``field2``, ... (the parts
    after the first; "" where a record has fewer), so that a recipe can select rows with ``where: {field1: IGH}``.
    Lines that start with ``;`` are comments. Raises `InputError` for a file that cannot be read, has no records, or
    has text before its first ``>``. Format: Pearson and Lipman 1988, PNAS 85, 2444.
    """
    import pandas
    from biotite.sequence.io.fasta import FastaFile

    path = Path(path)
    _check(path)
    records = list(FastaFile.read_iter(str(path)))
    parts = [[part.strip() for part in header.split("\t")] for header, _ in records]
    columns: dict[str, list[str]] = {
        "id": [(header.split() or [""])[0] for header, _ in records],
        "description": [header for header, _ in records],
        "sequence": [sequence for _, sequence in records],
    }
    for n in range(1, max(map(len, parts))):
        columns[f"field{n}"] = [part[n] if n < len(part) else "" for part in parts]
    return pandas.DataFrame(columns, dtype="str")


def _check(path: Path) -> None:
    """Biotite's iterator passes over text before the first header without a word; here that is an error."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                text = line.strip()
                if not text or text.startswith(";"):
                    continue
                if text.startswith(">"):
                    return
                raise InputError(
                    f'{path}:{number}: "{text[:40]}" stands before the first header; a FASTA record starts with a line '
                    '">name description"; is this another format?'
                )
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file ({error.reason}); decompress it first if it is packed") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    raise InputError(f'{path}: no records; a FASTA record starts with a line ">name description"')
