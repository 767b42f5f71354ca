"""Seconds that `zoo plan` takes for ESM-2 15B as a command, beside those of ``import torch``, with nothing downloaded.

``python -m tests.benchmarks.plan_seconds [--write docs/benchmarks.md]`` plans each budget several times, offline and
with an empty cache, and imports torch alone between them. The file cache is warm. Exit code 1 where a median is 5
seconds or more, or a plan's processes hold 2 GB together.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from .cpu_memory import write_section
from .environment import versions

SECTION = "plan_seconds"
RECIPES = {"regression or classes": "biology/antimicrobial_peptides", "masked tokens": "biology/mouse_v_genes"}
BUDGETS = ("--gpu a100-80gb", "--gpu rtx-4090", "--gpu rtx-3060", "--budget 80GiB", "--budget 4GiB")
COMMAND = "from zoo.program import command; command()"
ROUNDS = 3
MOST_SECONDS, MOST_BYTES = 5.0, 2e9


@dataclass(frozen=True)
class Row:
    """Plans of one task within one budget."""

    task: str
    budget: str
    fits: bool
    seconds: list[float]
    beside: list[float]  # of importing torch, before each plan
    held: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure() -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "ZOO_CACHE": cache, "ZOO_OFFLINE": "1"}
        for (task, recipe), budget in ((r, b) for r in RECIPES.items() for b in BUDGETS):
            command = ["plan", f"recipes/{recipe}.yaml", "--set", "model=esm2_t48_15b", *budget.split(), "--json"]
            seconds, beside, held, fits = [], [], 0, False
            for _ in range(ROUNDS):
                beside.append(_run([sys.executable, "-c", "import torch"], environment)[0])
                took, most, code = _run([sys.executable, "-c", COMMAND, *command], environment)
                seconds.append(took)
                held, fits = max(held, most), code == 0
            rows.append(Row(task, budget, fits, seconds, beside, held))
            print(table(rows)[-1], flush=True)
    return rows


def _run(command: Sequence[str], environment: dict[str, str]) -> tuple[float, int, int]:
    """Seconds, bytes that no other process shares, at most, of all its processes together, and the exit code."""
    started = time.perf_counter()
    process = psutil.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    most = 0
    while process.poll() is None:
        most = max(most, _held(process))
        time.sleep(0.1)
    took = time.perf_counter() - started
    if process.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)}: {process.stderr.read().decode()}")
    return took, most, process.returncode


def _held(process: psutil.Process) -> int:
    """Resident bytes of a process, and what its children have for themselves."""
    try:
        return int(process.memory_info().rss) + sum(c.memory_full_info().uss for c in process.children())
    except psutil.NoSuchProcess:
        return 0


def table(rows: Sequence[Row]) -> list[str]:
    return [
        "| task | budget | fits | `zoo plan`, median of 3 | longest | `import torch` alone | memory |",
        "|---|---|---|---:|---:|---:|---:|",
        *(
            f"| {r.task} | `{r.budget}` | {'yes' if r.fits else 'no'} | {r.median:.1f} s | {max(r.seconds):.1f} s | "
            f"{statistics.median(r.beside):.1f} s | {r.held / 1e9:.2f} GB |"
            for r in rows
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.plan_seconds", description=__doc__)
    parser.add_argument("--write", type=Path, help="document whose section is replaced")
    given = parser.parse_args(arguments)
    print("\n".join(table([])))
    rows = measure()
    if given.write:
        command = f"`python -m tests.benchmarks.plan_seconds --write {given.write}`, {versions()}"
        write_section(given.write, SECTION, [command, "", *table(rows)])
    return int(any(r.median >= MOST_SECONDS or r.held >= MOST_BYTES for r in rows))


if __name__ == "__main__":
    sys.exit(main())
