"""What a table was made with."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version

import torch


def versions(*more: str) -> str:
    """``2026-11-23, science-zoo 0.1.0, torch 2.13.0, ...; Python 3.11; Linux, x86_64, 2 cores, 1 thread.``"""
    packages = ", ".join(f"{name} {version(name)}" for name in ("science-zoo", "torch", "transformers", "peft", *more))
    threads = torch.get_num_threads()
    return (
        f"{datetime.date.today().isoformat()}, {packages}; Python {platform.python_version()}; {platform.system()}, "
        f"{platform.machine()}, {os.cpu_count()} cores, {threads} thread{'s' if threads > 1 else ''}."
    )
