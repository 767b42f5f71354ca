"""Does every plan that says it fits, train? Random recipes under random budgets, which are enforced.

``python -m tests.benchmarks.false_fits [--pairs 200] [--seed 0] [--results FILE] [--write docs/benchmarks.md]`` draws
pairs of a recipe and a budget and plans each. Where the plan says that it fits, three steps and a validation of it run
under a `Guard`, which raises for the first allocation beyond the budget. A *false fit* is a plan that raised there or
had to be retried. Where nothing fits, the smallest plan is run without a budget: was it too large indeed? On a machine
with a GPU the plans are for it, and PyTorch's allocator is given no more than the budget.

Half of the budgets are exactly what some plan of the recipe says that it needs, so that there is no room for an error;
the others lie between half of that and one and a half. With ``--results`` every pair is written to a file (JSON lines)
when it is done, and a later call goes on from there. Exit code 1 if there is a false fit.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import json
import math
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml

from zoo.errors import InputError, TrainingError
from zoo.memory.allocator import grows
from zoo.memory.leaves import tensors_in
from zoo.memory.predict import context_of
from zoo.planner import decide, limits_of, survey
from zoo.plans import Limits, Plan, Workload
from zoo.recipe_file import read_recipe
from zoo.resolve import Job, resolve
from zoo.step import Setup, describe, reproducible
from zoo.techniques import registry
from zoo.tracer import Tracer
from zoo.training import inference
from zoo.training.files import RunFolder
from zoo.training.loop import Loop
from zoo.training.meter import meter_for
from zoo.training.recovery import Guard, within
from zoo.training.run import build_for, training_device
from zoo.units import GIB, MIB, format_bytes
from zoo.weights import fetch

from .cpu_memory import write_section
from .environment import keep, versions
from .models import registered, shallow

SECTION = "false_fits"
STEPS = 3
ENOUGH = 24 * GIB
TRIES = 50
"""How often to draw again what cannot be built."""

ENCODER_TASKS = ("sequence_regression", "sequence_classification", "token_classification", "masked_language_modelling")
MODELS: dict[str, tuple[str, int, tuple[str, ...], int]] = {
    "esm2_t6_8m": ("biology", 96, ENCODER_TASKS, 1),
    "esm2_t6_8m_of_2": ("bench", 128, ENCODER_TASKS, 2),
    "antiberty": ("biology", 64, ENCODER_TASKS, 1),
    "antiberty_of_2": ("bench", 96, ENCODER_TASKS, 2),
    "sapiens_vh": ("biology", 140, ENCODER_TASKS, 2),
    "rxnmapper_albert": ("chemistry", 64, ENCODER_TASKS, 1),
    "llama_small": ("bench", 96, ("sequence_regression", "sequence_classification"), 2),
    "t5_encoder_small": ("bench", 96, ("token_classification",), 2),
}
"""Name -> domain, tokens of the longest inputs that are drawn, tasks, how often it is drawn."""

_ALL_LINEAR = {"lora": {"targets": ["all-linear"], "dropout": 0.1}}
TECHNIQUES: dict[str, tuple[Any, ...]] = {
    "precision": ("fp32", "bf16", "bf16-pure"),
    "adapter": (
        "full",
        "lora",
        "head",
        {"lora": {"targets": ["all-linear"], "dropout": 0.1}},
        {"lora": {"dora": True}},
    ),
    "quantization": ("none", "nf4", "int8"),
    "checkpointing": ("none", "block", "selective", {"block": {"every": 2}}),
    "optimizer": ("adamw", "adamw-in-backward", "adamw-8bit", "adafactor"),
    "loss": ("full", "full", "full", {"chunked": {"chunk": 256}}),
    "attention": ("sdpa", "eager"),
}
GIVEN = 0.45
"""How probably a key is given by hand; the rest is open to the planner."""
EXACT, AROUND = 0.5, (0.5, 1.5)
"""How probably a budget is exactly what a random plan needs, and else between what parts of it."""


@dataclass(frozen=True)
class Pair:
    """What was drawn for one number of one seed, and what came of it. Bytes; see `outcome` for the words."""

    number: int
    seed: int
    model: str
    task: str
    given: dict[str, Any]
    rows: int
    tokens: int
    budget: int
    outcome: str
    """``trained``, ``false fit``, ``does not fit`` (rightly), ``too careful`` (it would have)"""
    techniques: dict[str, str]
    device: str = "cpu"
    micro_batch: int = 0
    needed: int = 0
    predicted: int = 0
    measured: int = 0
    said: str = ""
    planning: float = 0.0
    seconds: float = 0.0


def draw_recipe(draw: random.Random, folder: Path) -> dict[str, Any]:
    """A random recipe and its data in `folder`: 3 steps of training, a validation and a test part."""
    model = draw.choices(list(MODELS), weights=[often for *_, often in MODELS.values()])[0]
    domain, longest, tasks, _ = MODELS[model]
    task = draw.choice(tasks)
    rows = draw.choice([2, 3, 4, 6, 8, 12])
    longest = draw.randint(longest // 3, longest)
    shortest = draw.choice([longest // 6, longest // 2, longest - 3])
    count = rows * STEPS
    parts = ["train"] * count + ["valid"] * min(rows, 4) + ["test"] * 2
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["input", "target", "part"])
        for i, part in enumerate(parts):
            length = longest - 2 if i == 0 else draw.randint(max(4, shortest), max(5, longest - 2))
            text = _input(draw, domain, length)
            writer.writerow([text, _target(draw, task, i, text), part])
    given = {key: draw.choice(options) for key, options in TECHNIQUES.items() if draw.random() < GIVEN}
    return {
        "name": "pair",
        "domain": domain,
        "model": model,
        "checkpoint": "random",
        "task": task,
        "data": {
            "path": str(folder / "data.csv"),
            "columns": {"input": "input"} | ({} if task.startswith("masked") else {"target": "target"}),
            "split": {"method": "column", "column": "part"},
        },
        "budget": {"device": ENOUGH},
        "techniques": given or "auto",
        "train": {
            "max_steps": STEPS,
            "global_batch_size": rows,
            "learning_rate": 1e-5,
            "max_grad_norm": draw.choice([None, 1.0]),
            "seed": draw.randrange(1000),
        },
    }


def _input(draw: random.Random, domain: str, length: int) -> str:
    if domain == "chemistry":
        return "C" + "".join(draw.choice("CCCCNO") for _ in range(length - 1))
    return "".join(draw.choice("ACDEFGHIKLMNPQRSTVWY") for _ in range(length))


def _target(draw: random.Random, task: str, row: int, text: str) -> str:
    if task == "sequence_regression":
        return f"{draw.gauss(0, 1):.3f}"
    if task == "sequence_classification":
        return "abc"[row % 3]
    return "".join(draw.choice("ab") for _ in text)


def job_of(recipe: dict[str, Any], folder: Path, budget: int) -> Job:
    path = folder / "pair.yaml"
    path.write_text(yaml.safe_dump(recipe | {"budget": {"device": budget}}, sort_keys=False))
    return resolve(read_recipe(path))


def try_pair(number: int, seed: int) -> Pair:
    """Draw pair `number` of `seed`, plan it, and find out whether the plan was right."""
    started = time.perf_counter()
    draw = random.Random(f"{seed}-{number}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for left in reversed(range(TRIES)):
            recipe = draw_recipe(draw, folder)
            try:
                job = job_of(recipe, folder, ENOUGH)
                workload, data = survey(job, lambda source: fetch(source, progress=False), local=True)
                budget = draw_budget(draw, job, workload)
                break
            except InputError:  # techniques that exclude each other are no recipe
                if not left:
                    raise
        given = {} if recipe["techniques"] == "auto" else recipe["techniques"]
        planned = time.perf_counter()
        limits = replace(limits_of(job.recipe.budget), device_bytes=budget)
        decision = decide(job, workload, limits)
        planned = time.perf_counter() - planned
        chosen = decision.chosen
        assert data is not None
        outcome, measured, said = run(job, chosen, data, folder, limits if decision.fits else None)
        if not decision.fits:
            outcome = "too careful" if measured <= budget else "does not fit"
    return Pair(
        number, seed, job.card.name, job.recipe.task_name, given,
        job.recipe.train.global_batch_size, workload.tokens, budget, outcome, dict(describe(chosen.techniques)),
        device=limits.device.name, micro_batch=chosen.micro_batch_size, needed=chosen.needed_bytes,
        predicted=chosen.peak_bytes, measured=measured, said=said,
        planning=round(planned, 2), seconds=round(time.perf_counter() - started, 2),
    )  # fmt: skip


def draw_budget(draw: random.Random, job: Job, workload: Workload) -> int:
    """In half of the cases what a random plan says that it needs, to the byte; else somewhat more or less than that."""
    tracer = Tracer(job, workload, limits_of(job.recipe.budget))
    for left in reversed(range(TRIES)):
        try:
            divisions = tracer.plans(tuple(draw.choice(options) for options in job.choices.values()))
            break
        except InputError:  # these do not go together, others may
            if not left:
                raise
    needed = tracer.confirm(draw.choice(divisions)).needed_bytes
    return needed if draw.random() < EXACT else round(needed * math.exp(draw.uniform(*map(math.log, AROUND))))


def run(job: Job, chosen: Plan, data: Any, folder: Path, limits: Limits | None) -> tuple[str, int, str]:
    """Three steps with validation as `zoo train` runs them, then a validation alone, inside `limits` if there are any.

    The outcome, the highest peak of the steps as they were measured, and what was said.
    """
    gc.collect()
    torch.manual_seed(job.recipe.train.seed)
    device = training_device()
    meter = meter_for(device)
    run_folder = RunFolder(folder / "run")
    run_folder.prepare(resume=False, needed_bytes=0)
    limit = None if limits is None else limits.device_bytes
    inside = (
        contextlib.nullcontext()
        if limits is None
        else within(device, limits.device_bytes - context_of(limits.device), growing=grows(limits.device))
    )
    guarded = limit if device.type == "cpu" else None
    with reproducible(), inside:
        try:
            setup = build_for(job, chosen, device)
            setup.phase = meter.phase
            loop = Loop(setup, job.task, data, chosen, job.recipe.train, run_folder, meter, guarded)
            done = loop.run()
        except (TrainingError, torch.OutOfMemoryError) as error:
            return "false fit", max(meter.stop().values(), default=0), str(error)
        finally:
            meter.stop()
        measured = max(done.measured.values())
        if done.ran_out:
            return "false fit", measured, "; ".join(done.ran_out)
        if limit is not None:
            try:
                with Guard(limit, _held(setup)) if guarded else contextlib.nullcontext():
                    inference.predict(
                        job.task, setup.model, data.valid, setup.device,
                        rows=chosen.micro_batch_size, longest=loop.longest,
                    )  # fmt: skip
            except torch.OutOfMemoryError as error:
                return "false fit", measured, f"validation: {error}"
    return "trained", measured, ""


def _held(setup: Setup) -> list[torch.Tensor]:
    assert setup.optimizer is not None
    return [*setup.model.parameters(), *setup.model.buffers(), *tensors_in(setup.optimizer.state_dict())]


def pairs(count: int, seed: int, results: Path | None, jobs: int = 1) -> Iterator[Pair]:
    """Pairs 0 to `count` - 1, those in `results` as they were found before; `jobs` processes try the others."""
    known: dict[int, Pair] = {}
    if results is not None and results.exists():
        lines = [json.loads(line) for line in results.read_text().splitlines()]
        known = {line["number"]: Pair(**line) for line in lines if line["seed"] == seed}
    new = [number for number in range(count) if number not in known]
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_begin) if jobs > 1 else _Here() as pool:
        tried = pool.map(_try, ((number, seed) for number in new))
        for number in range(count):
            if number not in known:
                known[number] = next(tried)
                keep(known[number], results)
            yield known[number]


class _Here:
    """Stands for a pool of processes: this one."""

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *exception: object) -> None:
        return

    map = staticmethod(map)


def _begin(*, alone: bool = False) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # two that wait for each other are slower where the machine has other work
    if not alone:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})


def _try(which: tuple[int, int]) -> Pair:
    with registered(shallow("esm2_t6_8m", 2), shallow("antiberty", 2)):
        return try_pair(*which)


def line(pair: Pair) -> str:
    """One pair in one line."""
    named = ", ".join(f"{k} {v}" for k, v in pair.techniques.items() if v != registry()[k][0].name) or "defaults"
    error = f", predicted {pair.predicted / pair.measured - 1:+.2%}" if pair.measured else ""
    took = f"{pair.planning:.1f} of {pair.seconds:.1f} s {pair.said}"
    return (
        f"{pair.number:4d} {pair.outcome:13s} {pair.model} {pair.task} {pair.rows} x {pair.tokens}: "
        f"budget {format_bytes(pair.budget)}, {named}, micro-batch {pair.micro_batch}: "
        f"needs {format_bytes(pair.needed)}, measured {format_bytes(pair.measured)}{error}; {took}"
    )


def summary(found: Sequence[Pair]) -> list[str]:
    """What the document says of the pairs."""
    of = {outcome: [p for p in found if p.outcome == outcome] for outcome in dict.fromkeys(p.outcome for p in found)}
    fits, false, careful = of.get("trained", []), of.get("false fit", []), of.get("too careful", [])
    rightly = of.get("does not fit", [])
    tight = [p for p in fits if p.budget == p.needed]
    said = len(fits) + len(false)
    lines = [
        "| | pairs |",
        "|---|---:|",
        f"| the plan says that it fits | {said} |",
        f"| ... and three steps and a validation ran inside the budget | {len(fits)} |",
        f"| ... **false fits** | **{len(false)}** |",
        f"| the plan says that nothing fits | {len(careful) + len(rightly)} |",
        f"| ... and the smallest plan, run without a budget, was measured inside it all the same | {len(careful)} |",
    ]
    if fits:
        errors = sorted(p.predicted / p.measured - 1 for p in fits)
        full = sorted(p.measured / p.budget for p in fits)
        beyond = [p for p in fits if p.measured > p.budget]
        scratch = [p for p in fits if p.measured > p.needed]
        chosen = sorted({f"{k} {v}" for p in fits for k, v in p.techniques.items() if v != registry()[k][0].name})
        models = sorted({p.model for p in fits})
        lines += [
            "",
            f"Predicted against measured peaks of those that trained: {errors[0]:+.2%} to {errors[-1]:+.2%}, median "
            f"{errors[len(errors) // 2]:+.2%}. Measured peaks took {full[0]:.0%} to {full[-1]:.1%} of their budgets, "
            f"median {full[len(full) // 2]:.0%}; {len(tight)} budgets were exactly what the chosen plan needs. The "
            f"profiler, which also sees the working memory of kernels, found {len(beyond)} above the budget"
            + (f", by at most {max(p.measured / p.budget - 1 for p in beyond):.2%}" if beyond else "")
            + f", and {len(scratch)} above the upper end of what their plan says that it needs"
            + (
                f", by at most {max(p.measured - p.needed for p in scratch) / 1024:.0f} KiB, all of them plans of at "
                f"most {max(p.needed for p in scratch) / MIB:.1f} MiB"
                if scratch
                else ""
            )
            + ".",
            "",
            f"Models: {', '.join(models)}. Options that plans had beside the defaults: {', '.join(chosen)}.",
        ]
    if careful:
        most = max(careful, key=lambda p: p.needed / p.measured)
        lines += [
            "",
            f"Too careful by at most {most.needed / most.measured - 1:.2%} (the smallest plan needs "
            f"{most.needed / MIB:.1f} MiB by its upper end, {most.measured / MIB:.1f} were measured).",
        ]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.false_fits", description=__doc__)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one pair by its number")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--results", type=Path, help="JSON lines: pairs that are there are not tried again")
    parser.add_argument("--write", type=Path, help="document whose section is replaced")
    given = parser.parse_args(arguments)
    if given.only is not None:
        pair = _try((given.only, given.seed))
        print(json.dumps(asdict(pair), indent=1), line(pair), sep="\n")
        return int(pair.outcome == "false fit")
    _begin(alone=True)
    gc.collect()
    gc.freeze()  # what the imports made need not be walked before every measurement
    found = []
    started = time.perf_counter()
    for pair in pairs(given.pairs, given.seed, given.results, given.jobs):
        found.append(pair)
        print(line(pair), flush=True)
    print("\n".join(summary(found)), f"\n{time.perf_counter() - started:.0f} s")
    if given.write:
        command = (
            f"`python -m tests.benchmarks.false_fits --pairs {given.pairs} --seed {given.seed} --write {given.write}`"
        )
        write_section(given.write, SECTION, [f"{command}, {versions()}", "", *summary(found)])
    return int(any(pair.outcome == "false fit" for pair in found))


if __name__ == "__main__":
    sys.exit(main())
