"""Training checkpoints of weather models: tensors are read, and no class that the file names is looked up."""

from __future__ import annotations

import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zoo.errors import WeightsError
from zoo.weights.read import read_pickle


class _Ignored:
    """Takes the place of an object whose class is not ours to import: it keeps nothing and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _IgnoredMapping(_Ignored):
    """The same for a class that is filled like a dict: PyTorch fills nothing but its own few types."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


class _IgnoredList(_Ignored):
    """The same for a class that is filled like a list."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return []


def only_checkpoint(folder: Path) -> Path:
    """The one checkpoint in a folder, or the file itself. Raises `WeightsError` where there is none or a choice."""
    if folder.is_file():
        return folder
    found = sorted(path for path in folder.iterdir() if path.suffix in (".ckpt", ".pt", ".pth"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise WeightsError(f"{folder}: needs exactly one checkpoint (.ckpt, .pt, .pth), has {names}; name the file")
    return found[0]


def read_training_checkpoint(
    path: str | Path, part: str = "state_dict", *, bare: bool = False
) -> dict[str, torch.Tensor]:
    """Tensors of one `part` of a training checkpoint, PyTorch Lightning's by default, whatever else the file holds.

    With `bare` a file of tensors alone, without such a part, will do. The released files hold optimizer state, which is
    mapped and never read from the disk, and objects of classes that need not be installed (configurations, schedules).
    The file is read with ``weights_only``, and a class that it names is neither imported nor called: an object of such
    a class becomes an empty one and is dropped. Raises `WeightsError` for a file that is missing, damaged, without such
    a part of tensors, or that asks for something that no stand-in can be given.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such checkpoint")
    content = _read(path, _foreign(path))
    state = content.get(part, content if bare else None) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(f"{path}: holds no {part}; is it a checkpoint of a training run?")
    if other := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise WeightsError(f"{path}: values in {part} that are not tensors: {', '.join(map(str, other[:5]))}")
    return {str(name): value.detach() for name, value in state.items()}


def _read(path: Path, foreign: list[str]) -> Any:
    """All of the file, with a stand-in for each of the `foreign` names.

    How a class is filled shows when PyTorch declines to fill its stand-in, which it names: another one is tried then.
    """
    kinds: dict[int, type[_Ignored]] = dict.fromkeys(range(len(foreign)), _Ignored)
    while True:
        # PyTorch's list of allowed names may map a name to any object: each is mapped to a class that does nothing
        stand_ins: list[Any] = [(type(f"Foreign{i}", (kind,), {}), foreign[i]) for i, kind in kinds.items()]
        try:
            with torch.serialization.safe_globals(stand_ins):
                return read_pickle(path)
        except WeightsError as error:
            declined = re.search(
                r"Can only (SETITEM|append|extend).*got <class '[\w.]*Foreign(\d+)'>", str(error.__cause__)
            )
            if not declined or kinds[int(declined[2])] is not _Ignored:
                raise
            kinds[int(declined[2])] = _IgnoredMapping if declined[1] == "SETITEM" else _IgnoredList


def _foreign(path: Path) -> list[str]:
    """Names that the file asks for and PyTorch does not allow by itself, read off its opcodes."""
    if not zipfile.is_zipfile(path):
        return []  # the format before 2020: read_pickle allows tensors alone
    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # damaged: read_pickle says how
        return []
