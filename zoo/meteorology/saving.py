"""Arrays and facts in one file: written whole or not at all, read without executing anything."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.errors import InputError

_FACTS = "facts"


def save(path: Path, kind: str, facts: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write an ``.npz`` of plain arrays with `facts` as JSON in it. Raises `OSError` where it cannot be written."""
    text = json.dumps({"kind": kind, **facts})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **{_FACTS: np.array(text)}, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def restore(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Facts and arrays of a file that `save` wrote. Raises `InputError` for another file, or a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        facts = json.loads(str(arrays.pop(_FACTS)))
        found = facts.pop("kind")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise InputError(
            f"{path}: is not a file of {kind}, or damaged ({error}); delete it and make it again"
        ) from error
    if found != kind:
        raise InputError(f"{path}: holds {found}, not {kind}")
    return facts, arrays
