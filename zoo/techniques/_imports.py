"""Libraries that make tensors, and noise, when they are imported."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes


def quietly(name: str) -> Any:
    """Import a module: its own tensors are real ones of the CPU and of no step, whatever mode is on.

    bitsandbytes, which PEFT imports, warns that it looked for an optional kernel of another package, and hands two of
    its functions to `torch.compile`, which takes a second to import; they are as right without.
    """
    from zoo.step import uncompiled

    if name in sys.modules:
        return sys.modules[name]
    with _disable_current_modes(), torch.device("cpu"), uncompiled():
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            return importlib.import_module(name)
        finally:
            logging.disable(disabled)
