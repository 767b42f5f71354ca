"""Seconds per step, predicted for this machine's CPU beside measured: does the planner rank plans rightly?

``python -m tests.benchmarks.time_ranking [--repetitions 7] [--write docs/benchmarks.md]`` predicts and measures the
plans below, several of each of two models, on one core. What is measured is the processor time of whole steps, forward,
backward and optimizer: the plans take turns, and the median of the repetitions counts. Processor time, because other
work on the machine takes turns with this one and is no matter of the plan. Exit code 1 where Spearman's rank
correlation of all plans, or of those of one model, is below `BAR`.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from scipy.stats import spearmanr

from zoo.planner import limits_of, survey
from zoo.plans import Plan
from zoo.recipe_file import read_recipe
from zoo.resolve import Job, resolve
from zoo.step import Setup, describe, train_step
from zoo.techniques import registry
from zoo.tracer import Tracer
from zoo.training.run import build_for
from zoo.weights import fetch

from .cpu_memory import write_section
from .environment import versions

SECTION = "time_ranking"
BAR = 0.9
ROWS = 8

LORA_ALL = {"lora": {"targets": ["all-linear"], "rank": 16}}
RECIPES: dict[str, tuple[str, int, tuple[tuple[Mapping[str, Any], int], ...]]] = {
    "esm2_t6_8m": (
        "sequence_regression",
        96,
        (
            ({}, 8),
            ({}, 2),
            ({}, 1),
            ({"checkpointing": "block"}, 8),
            ({"checkpointing": "selective"}, 8),
            ({"checkpointing": {"block": {"every": 2}}}, 4),
            ({"precision": "bf16"}, 8),
            ({"precision": "bf16", "checkpointing": "block"}, 2),
            ({"attention": "eager"}, 8),
            ({"optimizer": "adafactor"}, 8),
            ({"optimizer": "adamw-8bit"}, 8),
            ({"adapter": "lora"}, 8),
            ({"adapter": "lora", "precision": "bf16"}, 8),
            ({"adapter": LORA_ALL}, 8),
            ({"adapter": "lora", "quantization": "nf4"}, 8),
            ({"adapter": "lora", "quantization": "int8", "checkpointing": "block"}, 4),
            ({"adapter": "head"}, 8),
            ({"adapter": "head"}, 1),
        ),
    ),
    "antiberty": (
        "masked_language_modelling",
        48,
        (
            ({}, 8),
            ({}, 1),
            ({"precision": "bf16"}, 8),
            ({"precision": "bf16-pure"}, 4),
            ({"loss": "chunked"}, 8),
            ({"checkpointing": "block"}, 4),
            ({"optimizer": "adamw-8bit", "checkpointing": "selective"}, 8),
            ({"adapter": {"lora": {"dora": True}}}, 8),
            ({"adapter": "lora", "quantization": "nf4"}, 8),
            ({"adapter": "lora", "quantization": "nf4-double"}, 2),
            ({"adapter": "lora", "quantization": "int8", "precision": "bf16"}, 8),
            ({"adapter": "head"}, 8),
        ),
    ),
}
"""Model -> task, tokens, and plans: what differs from the defaults, and the micro-batch of `ROWS` rows."""

DEFAULTS = {key: options[0].name for key, options in registry().items()}


@dataclass
class Row:
    """A plan with the seconds of one step, predicted and as they were measured."""

    model: str
    plan: Plan
    measured: list[float]

    @property
    def predicted(self) -> float:
        return self.plan.estimate.seconds

    @property
    def median(self) -> float:
        return statistics.median(self.measured)

    @property
    def title(self) -> str:
        named = describe(self.plan.techniques)
        changed = [text for key, text in named.items() if text != DEFAULTS[key]]
        return ", ".join(changed) or "defaults"


def job_for(folder: Path, model: str, task: str, tokens: int, techniques: Mapping[str, Any]) -> Job:
    """A recipe whose only global batch is `ROWS` proteins of `tokens` tokens, the special ones included."""
    draw = random.Random(0)
    lines = ["sequence,value,part"]
    for row in range(ROWS + 2):
        part = "train" if row < ROWS else ("valid", "test")[row - ROWS]
        sequence = "".join(draw.choice("ACDEFGHIKLMNPQRSTVWY") for _ in range(tokens - 2 - (row > 0)))
        lines.append(f"{sequence},{draw.random():.3f},{part}")
    (folder / "proteins.csv").write_text("\n".join(lines) + "\n")
    target = {} if task.startswith("masked") else {"target": "value"}
    recipe = {
        "name": "time",
        "domain": "biology",
        "model": model,
        "checkpoint": "random",
        "task": task,
        "data": {
            "path": str(folder / "proteins.csv"),
            "columns": {"input": "sequence"} | target,
            "split": {"method": "column", "column": "part"},
        },
        "budget": {"device": "64GiB"},
        "techniques": DEFAULTS | dict(techniques),
        "train": {"max_steps": 2, "global_batch_size": ROWS},
    }
    path = folder / "time.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return resolve(read_recipe(path))


class Stepper:
    """One plan, built for real, whose steps can be timed."""

    def __init__(self, model: str, task: str, tokens: int, techniques: Mapping[str, Any], micro_batch: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            job = job_for(Path(folder), model, task, tokens, techniques)
            workload, data = survey(job, lambda source: fetch(source, progress=False), local=True)
        assert data is not None
        assert workload.tokens == tokens
        tracer = Tracer(job, workload, limits_of(job.recipe.budget))
        (combination,) = [tuple(options[0] for options in job.choices.values())]
        (plan,) = [plan for plan in tracer.plans(combination) if plan.micro_batch_size == micro_batch]
        self.row = Row(model, plan, [])
        torch.manual_seed(0)
        self.setup: Setup = build_for(job, plan, torch.device("cpu"))
        self.batch = [
            job.task.collate(data.train[i : i + micro_batch], range(i, i + micro_batch), 0)
            for i in range(0, ROWS, micro_batch)
        ]

    def step(self) -> float:
        """Processor seconds of one step."""
        started = time.process_time()
        train_step(self.setup, self.batch)
        return time.process_time() - started


def measure(repetitions: int) -> list[Row]:
    """Every plan, predicted and measured in turns on one core; the first step of each is not counted."""
    steppers = [
        Stepper(model, task, tokens, techniques, micro_batch)
        for model, (task, tokens, plans) in RECIPES.items()
        for techniques, micro_batch in plans
    ]
    gc.collect()
    gc.freeze()
    for stepper in steppers:
        stepper.step()
    for _ in range(repetitions):
        for stepper in steppers:
            stepper.row.measured.append(stepper.step())
    return [stepper.row for stepper in steppers]


def correlations(rows: Sequence[Row]) -> dict[str, float]:
    """Spearman's rank correlation of all rows, and of those of each model."""
    groups = {"all": list(rows)} | {model: [row for row in rows if row.model == model] for model in RECIPES}
    return {
        name: float(spearmanr([r.predicted for r in group], [r.median for r in group]).statistic)
        for name, group in groups.items()
        if len(group) > 1
    }


def table(rows: Sequence[Row]) -> list[str]:
    """A Markdown table, the fastest of each model first."""
    lines = ["| model | plan | micro-batch | predicted, ms | measured, ms | ratio |", "|---|---|---|---:|---:|---:|"]
    for row in sorted(rows, key=lambda r: (list(RECIPES).index(r.model), r.median)):
        shape = f"{row.plan.micro_batch_size} x {row.plan.accumulation_steps}"
        lines.append(
            f"| {row.model} | {row.title} | {shape} | {row.predicted * 1e3:.0f} | {row.median * 1e3:.0f} "
            f"| {row.predicted / row.median:.2f} |"
        )
    return lines


def summary(rows: Sequence[Row]) -> str:
    found = ", ".join(f"{value:.3f} ({name})" for name, value in correlations(rows).items())
    return f"{len(rows)} plans of {len({row.model for row in rows})} models; Spearman's rank correlation: {found}."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.time_ranking", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--write", type=Path, help="document whose section is replaced")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    if hasattr(os, "sched_setaffinity"):  # what the planner says of this process is then of one core, too
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    started = time.perf_counter()
    rows = measure(given.repetitions)
    print("\n".join(table(rows)), f"\n{summary(rows)} {time.perf_counter() - started:.0f} s")
    if given.write:
        lines = [
            f"`python -m tests.benchmarks.time_ranking --write docs/benchmarks.md`, {versions('bitsandbytes')}",
            "",
            f"A step on {ROWS} rows, on one core; processor time, median of {given.repetitions} steps in turns.",
            "",
            *table(rows),
            "",
            summary(rows),
        ]
        write_section(given.write, SECTION, lines)
    return int(min(correlations(rows).values()) < BAR)


if __name__ == "__main__":
    sys.exit(main())
