"""Tensors among the arguments and results of an operation.

An operation's arguments are tensors, numbers, and lists, tuples or dicts of those: walking them needs none of pytree's
generality, and every operation of every trace does it several times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_TENSORS = frozenset({torch.Tensor, nn.Parameter})
_OTHERS = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format})
"""Types that need not be asked whether they are, or hold, a tensor: nearly all there are."""


def tensors_in(*values: Any) -> list[torch.Tensor]:
    """Every tensor in `values`, in order, those that occur twice twice."""
    found: list[torch.Tensor] = []
    _collect(values, found)
    return found


def _collect(values: Any, found: list[torch.Tensor]) -> None:
    for value in values:
        kind = type(value)
        if kind in _TENSORS:
            found.append(value)
        elif kind in _OTHERS:
            continue
        elif isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            if value:
                _collect(value, found)
        elif isinstance(value, dict) and value:
            _collect(value.values(), found)
