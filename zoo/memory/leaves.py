"""Tensors among the arguments and results of an operation.

An operation's arguments are tensors, numbers, and lists, tuples or dicts of those: walking them needs none of pytree's
generality, and every operation of every trace does it several times.
"""

from __future__ import annotations

from typing import Any

import torch


def tensors_in(*values: Any) -> list[torch.Tensor]:
    """Every tensor in `values`, in order, those that occur twice twice."""
    found: list[torch.Tensor] = []
    _collect(values, found)
    return found


def _collect(values: Any, found: list[torch.Tensor]) -> None:
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            _collect(value, found)
        elif isinstance(value, dict):
            _collect(value.values(), found)
