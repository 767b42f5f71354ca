"""Libraries that make tensors, and noise, when they are imported."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import _disable_current_modes


def _as_it_is(function: Any = None, **options: Any) -> Any:
    return _as_it_is if function is None else function


def quietly(name: str) -> Any:
    """Import a module: its own tensors are real ones of the CPU and of no step, whatever mode is on.

    bitsandbytes, which PEFT imports, warns that it looked for an optional kernel of another package, and hands two of
    its functions to `torch.compile`, which takes a second to import; they are as right without.
    """
    if name in sys.modules:
        return sys.modules[name]
    with _disable_current_modes(), torch.device("cpu"), mock.patch.object(torch, "compile", _as_it_is):
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            return importlib.import_module(name)
        finally:
            logging.disable(disabled)
