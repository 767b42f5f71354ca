"""Peak memory and seconds of a step on a real GPU, beside what `zoo plan` says of it on a machine that has none.

On a machine with a GPU, ``python -m tests.benchmarks.gpu_memory --measure RUNS.jsonl`` builds every setting below,
takes three steps as training takes them, and writes what PyTorch's allocator and the driver say; each setting has a
process, and so an allocator, of its own. Anywhere, ``python -m tests.benchmarks.gpu_memory RUNS.jsonl [--write
docs/benchmarks.md]`` predicts the same settings and compares; exit code 1 where allocated memory of a phase is further
off than `TOLERANCE` or where more was held than the interval of the plan. Weights are random and inputs blank, for
memory does not depend on them; models, techniques and steps are those of the recipes.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import statistics
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # a process that has used CUDA cannot fork one that does
os.environ.setdefault("TORCH_CUBLASLT_UNIFIED_WORKSPACE", "1")  # the default from torch 2.13 on

import numpy as np
import torch
import yaml
from scipy.stats import spearmanr

from zoo.memory.devices import detect, find
from zoo.memory.predict import context_of
from zoo.planner import limits_of, survey
from zoo.plans import Plan, Workload
from zoo.recipe_file import read_recipe
from zoo.resolve import Job, resolve
from zoo.step import PHASES, build, no_phase, reproducible, train_step
from zoo.tracer import Tracer
from zoo.training.values import loader_of
from zoo.units import MIB
from zoo.weights import fetch

from .cpu_memory import write_section
from .environment import versions
from .models import registered

SECTION = "gpu_memory"
TOLERANCE = 0.01
STEPS = 3
TIMED = 5

PROTEINS = "biology/antimicrobial_peptides.yaml"
MASKED = "biology/mouse_v_genes.yaml"
MOLECULES = "chemistry/solubility.yaml"
WEATHER = "meteorology/global_forecast.yaml"
LORA = {"lora": {"rank": 8, "alpha": 16, "targets": ["attention"]}}


@dataclass(frozen=True)
class Setting:
    """A recipe with what differs from it, and the rows of a micro-batch; of `rows` in all."""

    name: str
    recipe: str
    changes: dict[str, Any]
    rows: int
    micro: int = 0
    techniques: dict[str, Any] = field(default_factory=dict)
    plain: bool = False
    """Whether torch may choose algorithms that give other numbers each time, as it does by default."""
    expandable: bool = False
    """Whether the allocator has segments that grow (``expandable_segments``)."""

    @property
    def overrides(self) -> list[str]:
        """As ``--set`` has them."""
        changes = {"checkpoint": "random", "train.global_batch_size": self.rows, **self.changes}
        changes |= {f"techniques.{key}": value for key, value in (DEFAULTS | self.techniques).items()}
        return [f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6).split(chr(10))[0]}"
                for key, value in changes.items()]  # fmt: skip


DEFAULTS = {
    "attention": "sdpa", "precision": "fp32", "offload": "none", "quantization": "none", "adapter": "full",
    "checkpointing": "none", "loss": "full", "optimizer": "adamw",
}  # fmt: skip
BF16 = {"precision": "bf16"}
BENCH = {
    "domain": "bench", "data.source": None, "data.path": "none.csv",
    "data.split": {"method": "random", "fractions": [0.8, 0.1, 0.1]},
}  # fmt: skip
"""For models that no domain has: no data is read here."""


def settings() -> list[Setting]:
    """Those that say most come first."""
    esm = {"model": "esm2_t33_650m", "data.max_length": 512}
    deep = {**esm, "train.max_grad_norm": None}
    less = {"model": "esm2_t30_150m", "data.max_length": 512}
    found = [
        Setting("650m bf16", MASKED, esm, 8, techniques=BF16),
        Setting("650m bf16 block", MASKED, esm, 8, techniques={**BF16, "checkpointing": "block"}),
        Setting("650m fp32", MASKED, esm, 8),
        Setting("650m bf16 lora", PROTEINS, esm, 8, techniques={**BF16, "adapter": LORA}),
        Setting("150m bf16 nf4 lora", PROTEINS, less, 8, techniques={**BF16, "adapter": LORA, "quantization": "nf4"}),
        Setting("650m bf16 2x4", MASKED, esm, 8, 2, techniques=BF16),
        Setting("antiberty fp32", MASKED, {"model": "antiberty"}, 16),
        Setting("antiberty bf16", MASKED, {"model": "antiberty"}, 64, techniques=BF16),
        Setting("albert bf16", MOLECULES, {}, 32, techniques=BF16),
        Setting("llama bf16", PROTEINS, {**BENCH, "model": "llama_small"}, 16, techniques=BF16),
        Setting("650m bf16 selective", MASKED, esm, 8, techniques={**BF16, "checkpointing": "selective"}),
        Setting("650m bf16 eager", MASKED, esm, 8, techniques={**BF16, "attention": "eager"}),
        Setting("650m bf16 8bit", MASKED, esm, 8, techniques={**BF16, "optimizer": "adamw-8bit"}),
        Setting("650m bf16 in-backward", MASKED, deep, 8, techniques={**BF16, "optimizer": "adamw-in-backward"}),
        Setting("650m bf16 adafactor", MASKED, esm, 8, techniques={**BF16, "optimizer": "adafactor"}),
        Setting("650m bf16-pure", MASKED, esm, 8, techniques={"precision": "bf16-pure"}),
        Setting("650m bf16 offload activations", MASKED, esm, 8, techniques={**BF16, "offload": "activations"}),
        Setting("650m bf16 offload optimizer", MASKED, esm, 8, techniques={**BF16, "offload": "optimizer"}),
        Setting("650m bf16 lora offload weights", PROTEINS, esm, 8,
                techniques={**BF16, "adapter": LORA, "offload": "weights"}),
        Setting("650m bf16 block offload", MASKED, esm, 8,
                techniques={**BF16, "checkpointing": {"block": {"offload": True}}}),
        Setting("climax 5.6 bf16", WEATHER, {"model": "climax_5_625deg"}, 8, techniques=BF16),
        Setting("stormer bf16 block", "meteorology/stormer_fine_tuning.yaml", {}, 2,
                techniques={**BF16, "checkpointing": "block"}),
        Setting("150m bf16 nf4-double lora block", PROTEINS, less, 8,
                techniques={**BF16, "adapter": LORA, "quantization": "nf4-double", "checkpointing": "block"}),
        Setting("150m bf16 int8 lora", PROTEINS, less, 8, techniques={**BF16, "adapter": LORA, "quantization": "int8"}),
        Setting("650m bf16 dora", PROTEINS, esm, 8,
                techniques={**BF16, "adapter": {"lora": {**LORA["lora"], "dora": True, "targets": ["all-linear"]}}}),
        Setting("650m bf16 head", PROTEINS, esm, 8, techniques={**BF16, "adapter": "head"}),
        Setting("650m bf16 block every 3", MASKED, esm, 8,
                techniques={**BF16, "checkpointing": {"block": {"every": 3}}}),
        Setting("650m fp32 lora block", PROTEINS, esm, 8, techniques={"adapter": LORA, "checkpointing": "block"}),
        Setting("650m fp32 eager", MASKED, esm, 4, techniques={"attention": "eager"}),
        Setting("650m bf16 1x8", MASKED, esm, 8, 1, techniques=BF16),
        Setting("650m bf16 in-backward 4x2", MASKED, deep, 8, 4,
                techniques={**BF16, "optimizer": "adamw-in-backward"}),
        Setting("antiberty bf16 lora", PROTEINS, {"model": "antiberty"}, 32, techniques={**BF16, "adapter": LORA}),
        Setting("antiberty fp32 block", MASKED, {"model": "antiberty"}, 16, techniques={"checkpointing": "block"}),
        Setting("antiberty bf16 eager", MASKED, {"model": "antiberty"}, 16, techniques={**BF16, "attention": "eager"}),
        Setting("sapiens fp32", MASKED, {}, 32),
        Setting("albert fp32", MOLECULES, {}, 32),
        Setting("llama fp32 lora block", PROTEINS, {**BENCH, "model": "llama_small"}, 16,
                techniques={"adapter": LORA, "checkpointing": "block"}),
        Setting("t5 bf16", PROTEINS, {**BENCH, "model": "t5_encoder_small",
                                      "task": "token_classification"}, 16, techniques=BF16),
        Setting("150m fp32 chunked", MASKED, less, 8,
                techniques={"loss": "chunked"}),
        Setting("climax 5.6 fp32 block", WEATHER, {"model": "climax_5_625deg"}, 8,
                techniques={"checkpointing": "block"}),
        Setting("climax small fp32", WEATHER, {}, 8),
        Setting("3b bf16 lora", PROTEINS, {"model": "esm2_t36_3b", "data.max_length": 512}, 8,
                techniques={**BF16, "adapter": LORA}),
        Setting("650m bf16 plain", MASKED, esm, 8, techniques=BF16, plain=True),
        Setting("650m fp32 plain", MASKED, esm, 8, plain=True),
        Setting("llama bf16 plain", PROTEINS, {**BENCH, "model": "llama_small"}, 16, techniques=BF16, plain=True),
        Setting("climax 5.6 bf16 plain", WEATHER, {"model": "climax_5_625deg"}, 8,
                techniques=BF16, plain=True),
        Setting("antiberty bf16 plain", MASKED, {"model": "antiberty"}, 64, techniques=BF16, plain=True),
        Setting("650m bf16 expandable", MASKED, esm, 8, techniques=BF16, expandable=True),
        Setting("antiberty fp32 block expandable", MASKED, {"model": "antiberty"}, 16,
                techniques={"checkpointing": "block"}, expandable=True),
        Setting("3b bf16 block 8bit", MASKED, {"model": "esm2_t36_3b", "data.max_length": 512}, 8,
                techniques={**BF16, "checkpointing": "block", "optimizer": "adamw-8bit"}),
    ]  # fmt: skip
    return [s if s.micro else replace(s, micro=s.rows) for s in found]


def job_of(setting: Setting) -> tuple[Job, Workload]:
    """The recipe, resolved, for inputs as long as it allows."""
    job = resolve(read_recipe(f"recipes/{setting.recipe}", setting.overrides), needs_data=False)
    return job, survey(job, lambda source: fetch(source, progress=False), local=False)[0]


def combination_of(job: Job) -> tuple[Any, ...]:
    return tuple(options[0] for options in job.choices.values())


# -------------------------------------------------------------------------------------------------------- predicting


def predict(setting: Setting, gpu: str) -> Plan:
    """The plan of a setting for a GPU, confirmed."""
    job, workload = job_of(setting)
    budget = job.recipe.budget.model_copy(update={"gpu": gpu, "device": None})
    tracer = Tracer(job, workload, limits_of(budget))
    with mock.patch("zoo.tracer.reproducible", contextlib.nullcontext) if setting.plain else contextlib.nullcontext():
        plans = tracer.plans(combination_of(job))
        (plan,) = [plan for plan in plans if plan.micro_batch_size == setting.micro]
        with mock.patch("zoo.tracer.grows", return_value=setting.expandable):
            return tracer.confirm(plan)


# --------------------------------------------------------------------------------------------------------- measuring


def measure(setting: Setting, used_before: int, traces: Path | None) -> dict[str, Any]:
    """One setting on this machine's GPU, in a process of its own. Bytes and seconds."""
    device = torch.device("cuda")
    job, workload = job_of(setting)
    torch.cuda.init()
    torch.zeros(1, device=device)
    if setting.expandable:
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    context = _used() - used_before - torch.cuda.memory_reserved()
    if traces is not None:
        torch.cuda.memory._record_memory_history("all", context=None, stacks="python", max_entries=2_000_000)
    train = job.recipe.train
    peaks: dict[str, int] = {}
    reserved: dict[str, int] = {}

    @contextlib.contextmanager
    def phase(name: str) -> Iterator[None]:
        torch.cuda.reset_peak_memory_stats()
        try:
            yield
        finally:
            peaks[name] = max(peaks.get(name, 0), torch.cuda.max_memory_allocated())
            reserved[name] = max(reserved.get(name, 0), torch.cuda.max_memory_reserved())

    count = -(-setting.rows // setting.micro)
    with contextlib.nullcontext() if setting.plain else reproducible():
        torch.manual_seed(0)
        started = time.perf_counter()
        setup = build(
            job.card, job.task, combination_of(job), device,
            micro_batch_size=setting.micro, learning_rate=train.learning_rate, weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm, load=loader_of(job.card, "random", 0),
        )  # fmt: skip
        torch.cuda.synchronize()
        building = time.perf_counter() - started
        built = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        batch = [job.task.blank_batch(job.card, setting.micro, workload.tokens) for _ in range(count)]
        setup.phase = phase
        for _ in range(STEPS):
            train_step(setup, batch)
        torch.cuda.synchronize()
        used = _used() - used_before
        found = {
            "name": setting.name,
            "gpu": detect().name,
            "unified_workspace": os.environ["TORCH_CUBLASLT_UNIFIED_WORKSPACE"] == "1",
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "date": datetime.date.today().isoformat(),
            "tokens": workload.tokens,
            "allocated": peaks,
            "reserved": reserved,
            "built": built,
            "context_at_first": context,
            "context": used - torch.cuda.memory_reserved(),
            "process": used,
            "building_seconds": building,
        }
        if traces is not None:
            _keep_trace(traces / f"{setting.name.replace(' ', '_')}.npz")
        setup.phase = no_phase
        seconds = []
        for _ in range(TIMED):
            torch.cuda.synchronize()
            started = time.perf_counter()
            train_step(setup, batch)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    return found | {"step_seconds": statistics.median(seconds)}


def _used() -> int:
    """Bytes of the GPU that are taken, by whomever, and by the driver itself."""
    import pynvml

    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)


ACTIONS = ("alloc", "free_completed", "segment_alloc", "segment_free", "free_requested")


def _keep_trace(path: Path) -> None:
    """What the allocator did, as columns action, address, bytes."""
    (trace,) = [t for t in torch.cuda.memory._snapshot()["device_traces"] if t]
    torch.cuda.memory._record_memory_history(None)
    rows = [(ACTIONS.index(e["action"]), e["addr"], e["size"]) for e in trace if e["action"] in ACTIONS]
    np.savez_compressed(path, rows=np.array(rows, dtype=np.int64))


def _child(setting: Setting, used_before: int, traces: Path | None, pipe: Any) -> None:
    try:
        with contextlib.redirect_stdout(sys.stderr), registered():
            found = measure(setting, used_before, traces)
    except BaseException:
        found = {"name": setting.name, "failed": traceback.format_exc()}
    pipe.send(found)
    pipe.close()
    os._exit(0)


def measure_all(only: str, traces: Path | None) -> Iterator[dict[str, Any]]:
    """Every setting, one after the other."""
    context = get_context("fork")
    for setting in settings():
        if not re.search(only, setting.name):
            continue
        mine, its = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(setting, _used(), traces, its))
        process.start()
        its.close()
        try:
            yield mine.recv()
        except EOFError:
            yield {"name": setting.name, "failed": "the process died"}
        process.join()


# --------------------------------------------------------------------------------------------------------- comparing


@dataclass(frozen=True)
class Row:
    """A setting with what was predicted and measured: bytes by phase, bytes reserved and of the context, seconds."""

    name: str
    plan: Plan
    measured: dict[str, Any]

    @property
    def reserved(self) -> int:
        return max(self.measured["reserved"].values())

    def error(self, phase: str) -> float:
        """Predicted against measured, relative: positive where too much was predicted."""
        return self.plan.estimate.peak_by_phase[phase] / self.measured["allocated"][phase] - 1

    @property
    def worst(self) -> float:
        return max((self.error(phase) for phase in PHASES), key=abs)

    @property
    def reserved_error(self) -> float:
        return self.plan.footprint.reserved / self.reserved - 1

    @property
    def fits(self) -> bool:
        """Whether the process held no more than the plan says that it needs; where the driver was not asked, whether
        PyTorch's part of it did."""
        process = self.measured.get("process", self.reserved + context_of(find(self.measured["gpu"])))
        return bool(process <= self.plan.needed_bytes)

    @property
    def passes(self) -> bool:
        return abs(self.worst) <= TOLERANCE and self.fits


def compare(runs: Iterable[dict[str, Any]]) -> Iterator[Row]:
    """Every run that was measured, predicted."""
    by_name = {setting.name: setting for setting in settings()}
    for run in runs:
        if "failed" not in run:
            yield Row(run["name"], predict(by_name[run["name"]], run["gpu"]), run)


def table(rows: Sequence[Row]) -> list[str]:
    head = ["setting", *PHASES, "reserved", "seconds a step"]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for row in rows:
        cells = []
        for phase in PHASES:
            told, found = row.plan.estimate.peak_by_phase[phase] / MIB, row.measured["allocated"][phase] / MIB
            cells.append(f"{told:.1f} / {found:.1f} ({row.error(phase):+.2%})")
        told, found = row.plan.footprint.reserved / MIB, row.reserved / MIB
        cells.append(f"{told:.0f} / {found:.0f} ({row.reserved_error:+.2%})")
        cells.append(f"{row.plan.estimate.seconds:.3f} / {row.measured['step_seconds']:.3f}")
        lines.append(f"| {' | '.join([row.name, *cells])} |")
    return lines


def summary(rows: Sequence[Row]) -> list[str]:
    machines = sorted({(row.measured["device"], row.measured["torch"], row.measured["date"]) for row in rows})
    allocated = sorted(abs(row.worst) for row in rows)
    reserved = sorted(abs(row.reserved_error) for row in rows)
    worst, least = max(rows, key=lambda r: abs(r.worst)), max(rows, key=lambda r: abs(r.reserved_error))
    contexts = sorted(row.measured["context"] / MIB for row in rows if "context" in row.measured)
    apart = sum(not row.measured.get("unified_workspace", True) for row in rows)
    beyond = [row.name for row in rows if not row.fits]
    ranks = spearmanr([r.plan.estimate.seconds for r in rows], [r.measured["step_seconds"] for r in rows]).statistic
    return [
        "Measured: " + "; ".join(f"{device}, torch {torch_}, {date}" for device, torch_, date in machines) + ". "
        f"{len(rows)} settings. Cells: MiB predicted / measured."
        + (
            f" In {apart} settings torch kept 1 MiB a thread for cuBLASLt apart, as it no longer does from 2.13 on."
            if apart
            else ""
        ),
        "",
        f"Allocated, worst phase of each setting: median {statistics.median(allocated):.3%}, worst {worst.worst:+.2%} "
        f"({worst.name}). Reserved: median {statistics.median(reserved):.2%}, worst {least.reserved_error:+.2%} "
        f"({least.name}). {len(rows) - len(beyond)} of {len(rows)} processes held no more than the upper end of their "
        f"plan's interval{': not ' + ', '.join(beyond) if beyond else ''}. "
        + (f"The context of a process was {contexts[0]:.0f} to {contexts[-1]:.0f} MiB. " if contexts else "")
        + f"Spearman's rank correlation of seconds: {ranks:.3f}.",
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu_memory", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="?", help="what was measured")
    parser.add_argument("--measure", type=Path, help="measure here, into this file")
    parser.add_argument("--traces", type=Path, help="folder for what the allocator did, step by step")
    parser.add_argument("--only", default="", help="settings whose name this regular expression finds")
    parser.add_argument("--write", type=Path, help="document whose section is replaced")
    given = parser.parse_args(arguments)
    if given.measure:
        import transformers.models.esm.modeling_esm  # noqa: F401  # what all processes need, imported once

        if given.traces:
            given.traces.mkdir(parents=True, exist_ok=True)
        with given.measure.open("a") as file:
            for found in measure_all(given.only, given.traces):
                file.write(json.dumps(found) + "\n")
                file.flush()
                print(json.dumps(found) if "failed" not in found else f"{found['name']}\n{found['failed']}", flush=True)
        return 0
    if given.runs is None:
        parser.error("give a file of measured runs, or --measure one")
    rows = []
    with registered():
        for row in compare(json.loads(line) for line in given.runs.read_text().splitlines()):
            if re.search(given.only, row.name):
                rows.append(row)
                print(table([row])[-1], flush=True)
    print("\n".join(summary(rows)))
    if given.write:
        command = f"`python -m tests.benchmarks.gpu_memory {given.runs} --write {given.write}`"
        write_section(
            given.write, SECTION, [f"{command}, {versions('bitsandbytes')}", "", *summary(rows), "", *table(rows)]
        )
    return int(not all(row.passes for row in rows))


if __name__ == "__main__":
    sys.exit(main())
