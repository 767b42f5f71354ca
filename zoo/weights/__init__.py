"""Weights and data through one interface: fetched from five kinds of source, read safely, matched to a model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Not lazy, and light: a submodule of the same name would otherwise take the function's place when it is imported.
from zoo.weights.fetch import fetch, is_local, is_offline
from zoo.weights.source import FileSource, GeneratedSource, HubSource, PypiSource, parse

if TYPE_CHECKING:
    from zoo.weights.initial_values import initialise
    from zoo.weights.match import LoadReport, initialise_and_load, load_into
    from zoo.weights.read import read_pickle, read_state_dict

_LAZY = {  # what imports torch
    "LoadReport": "match", "initialise": "initial_values", "initialise_and_load": "match", "load_into": "match",
    "read_pickle": "read", "read_state_dict": "read",
}  # fmt: skip

__all__ = [
    "FileSource", "GeneratedSource", "HubSource", "LoadReport", "PypiSource", "fetch", "initialise",
    "initialise_and_load", "is_local", "is_offline", "load_into", "parse", "read_pickle", "read_state_dict",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
