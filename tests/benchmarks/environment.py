"""What a table was made with, and its rows as they come."""

from __future__ import annotations

import datetime
import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def versions(*more: str) -> str:
    """``2026-11-23, science-zoo 0.1.0, torch 2.13.0, ...; Python 3.11; Linux, x86_64, 2 cores, 1 thread.``"""
    packages = ", ".join(f"{name} {version(name)}" for name in ("science-zoo", "torch", "transformers", "peft", *more))
    threads = torch.get_num_threads()
    return (
        f"{datetime.date.today().isoformat()}, {packages}; Python {platform.python_version()}; {platform.system()}, "
        f"{platform.machine()}, {os.cpu_count()} cores, {threads} thread{'s' if threads > 1 else ''}."
    )


def keep(row: Any, results: Path | None) -> None:
    """Append a row (a dataclass) to the file that a later run goes on from, where there is one."""
    if results is not None:
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
