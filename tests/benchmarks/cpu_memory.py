"""Peak memory on the CPU, predicted before anything is allocated beside measured while training.

``python -m tests.benchmarks.cpu_memory [--write docs/benchmarks.md]`` plans and then runs two steps of every
combination of model, adapter, checkpointing and precision below, and compares the peak of every phase. Predicted: what
the planner says of the recipe. Measured: torch's profiler, which knows nothing of the planner. Weights are random, for
memory does not depend on them; configurations and steps are real. Exit code 1 if any phase of any row is further off
than `TOLERANCE`.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import itertools
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import yaml

from zoo.planner import decide, limits_of, survey
from zoo.recipe_file import read_recipe
from zoo.resolve import Job, resolve
from zoo.step import PHASES, train_step
from zoo.training.meter import CpuMeter
from zoo.training.run import build_for
from zoo.units import MIB
from zoo.weights import fetch

MODELS = ("esm2_t6_8m", "esm2_t12_35m", "antiberty")
ADAPTERS = ("full", "lora", "head")
CHECKPOINTING = ("none", "block")
PRECISIONS = ("fp32", "bf16")
ROWS = 8
TOKENS = 128
STEPS = 2
"""The first step makes the optimizer's states, the second has them from the start."""
TOLERANCE = 0.01
SECTION = "cpu_memory"


@dataclass(frozen=True)
class Row:
    """One combination with its peaks by phase in bytes."""

    model: str
    adapter: str
    checkpointing: str
    precision: str
    predicted: dict[str, int]
    measured: dict[str, int]

    def error(self, phase: str) -> float:
        """Predicted against measured, relative: positive where too much was predicted."""
        return self.predicted[phase] / self.measured[phase] - 1

    @property
    def worst(self) -> float:
        """The error of the phase that is furthest off."""
        return max((self.error(phase) for phase in PHASES), key=abs)


def sequences() -> list[str]:
    """Random proteins: the first is as long as a row can be, the others shorter, so that there is padding."""
    draw = random.Random(0)
    lengths = [TOKENS - 2, *(draw.randint(TOKENS // 2, TOKENS - 3) for _ in range(ROWS - 1))]
    return ["".join(draw.choice("ACDEFGHIKLMNPQRSTVWY") for _ in range(length)) for length in lengths]


def job_for(folder: Path, model: str, techniques: dict[str, str]) -> Job:
    """A recipe whose only global batch is `ROWS` sequences of at most `TOKENS` tokens."""
    data = folder / "proteins.csv"
    with data.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sequence", "value", "part"])
        for i, sequence in enumerate([*sequences(), *(s[:-1] for s in sequences()[:2])]):
            writer.writerow([sequence, f"{i / ROWS:.3f}", "train" if i < ROWS else ("valid", "test")[i - ROWS]])
    recipe = {
        "name": "benchmark",
        "domain": "biology",
        "model": model,
        "checkpoint": "random",
        "task": "sequence_regression",
        "data": {
            "path": str(data),
            "columns": {"input": "sequence", "target": "value"},
            "split": {"method": "column", "column": "part"},
        },
        "budget": {"device": "64GiB"},
        "techniques": techniques,
        "train": {"max_steps": STEPS, "global_batch_size": ROWS, "max_grad_norm": 1.0},
    }
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return resolve(read_recipe(path))


def compare(model: str, adapter: str, checkpointing: str, precision: str) -> Row:
    """Plan a combination, then run it under the profiler."""
    with tempfile.TemporaryDirectory() as folder:
        techniques = {"precision": precision, "adapter": adapter, "checkpointing": checkpointing, "optimizer": "adamw"}
        job = job_for(Path(folder), model, techniques)
        workload, data = survey(job, lambda source: fetch(source, progress=False), local=True)
    assert data is not None
    assert workload.tokens == TOKENS
    plan = decide(job, workload, limits_of(job.recipe.budget)).chosen
    assert (plan.micro_batch_size, plan.accumulation_steps) == (ROWS, 1)
    torch.manual_seed(0)
    meter = CpuMeter()
    setup = build_for(job, plan, torch.device("cpu"))
    setup.phase = meter.phase
    for _ in range(STEPS):
        batch = [job.task.collate(data.train, range(ROWS), 0)]
        train_step(setup, batch)
        del batch
    return Row(model, adapter, checkpointing, precision, plan.estimate.peak_by_phase, meter.stop())


def table(rows: Sequence[Row]) -> list[str]:
    """A Markdown table: MiB predicted / measured and the error for every phase, and the worst of each row."""
    head = ["model", "adapter", "checkpointing", "precision", *PHASES, "worst"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * 4}{'---:|' * (len(PHASES) + 1)}"]
    for row in rows:
        cells = [row.model, row.adapter, row.checkpointing, row.precision]
        for phase in PHASES:
            predicted, measured = row.predicted[phase] / MIB, row.measured[phase] / MIB
            cells.append(f"{predicted:.2f} / {measured:.2f} ({row.error(phase):+.2%})")
        cells.append(f"{row.worst:+.2%}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def summary(rows: Sequence[Row]) -> str:
    worst = max(rows, key=lambda row: abs(row.worst))
    within = sum(abs(row.worst) <= TOLERANCE for row in rows)
    return (
        f"{within} of {len(rows)} rows within {TOLERANCE:.0%} in every phase; the worst is {worst.worst:+.2%} "
        f"({worst.model}, {worst.adapter}, {worst.checkpointing}, {worst.precision})"
    )


def section(rows: Sequence[Row]) -> list[str]:
    """What goes between the markers of the document."""
    packages = ("science-zoo", "torch", "transformers", "peft")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return [
        f"`python -m tests.benchmarks.cpu_memory --write docs/benchmarks.md`, {datetime.date.today().isoformat()}.",
        "",
        f"{versions}; Python {platform.python_version()}; {platform.system()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads.",
        "",
        f"Sequence regression, one micro-batch of {ROWS} proteins of up to {TOKENS} tokens, {STEPS} steps of AdamW, "
        "gradients clipped. Each cell: MiB predicted / measured (error).",
        "",
        *table(rows),
        "",
        f"{summary(rows)}.",
    ]


def write_section(path: Path, name: str, lines: Sequence[str]) -> None:
    """Replace what stands between the markers of section `name`. Raises ValueError where there are none."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = path.read_text()
    if begin not in text or end not in text:
        raise ValueError(f"{path} has no markers {begin} and {end}")
    before, rest = text.split(begin, 1)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{rest.split(end, 1)[1]}")
    temporary.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.cpu_memory", description=__doc__)
    parser.add_argument("--write", type=Path, help="document whose section is replaced")
    parser.add_argument("--only", choices=MODELS, help="one model instead of all")
    given = parser.parse_args(arguments)
    models = [given.only] if given.only else list(MODELS)
    combinations = list(itertools.product(models, ADAPTERS, CHECKPOINTING, PRECISIONS))
    started = time.perf_counter()
    rows: list[Row] = []
    for combination in combinations:
        rows.append(compare(*combination))
        print(table(rows)[-1], flush=True)
    print(f"{summary(rows)}; {time.perf_counter() - started:.0f} s")
    if given.write:
        write_section(given.write, SECTION, section(rows))
    return int(any(abs(row.worst) > TOLERANCE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
