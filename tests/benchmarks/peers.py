"""Other estimators on the same published runs, in the same run as our own predictions.

``python -m tests.benchmarks.peers FILE ... [--write docs/benchmarks.md]`` takes the files of
`tests.benchmarks.measured_gpus`, installs every peer with pip into a throw-away folder (without its dependencies: it
finds this environment's torch), asks it in a process of its own, and prints its errors beside ours on the very rows
that it can answer. What a peer is compared with is what it says that it predicts, reserved memory or that of the
process; where that was not measured, its total without the terms for context, fragmentation and safety is compared with
allocated memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo.memory.devices import find
from zoo.units import MIB

from .cpu_memory import write_section
from .environment import versions
from .measured_gpus import Measured, compare, read

SECTION = "peers"
QUESTIONS = Path(__file__).with_name("peer_questions.py")
PEERS = {
    "fitcheck-llm==0.3.1": ("its authors fitted it to T4 rows, 49 of which are among these 57",),
    "canifinetune==0.4.1": (),
    "torch-kitsune==0.7.0": ("asks for neither checkpointing nor attention",),
    "torch-preflight==0.5.0": (),
    "vramcalc==0.1.2": ("its authors adjusted it to A6000 runs, of which these are some",),
}
"""Package -> what is to be known of it."""
ALONE = {"torch-preflight==0.5.0": ("libcst",)}
"""Dependencies that this environment does not have."""
NAMES = {"t4": "t4", "rtx-a6000-48gb": "a6000"}
"""Devices as the peers call them."""


@dataclass(frozen=True)
class Row:
    """A published run with what was measured and what we predict of it (MiB by kind)."""

    source: str
    question: dict[str, Any]
    measured: dict[str, float]
    ours: dict[str, float]


def question(row: Measured, parameters: int) -> dict[str, Any]:
    """All that is known of a run, as peers are told it."""
    run, shape = row.run, row.run.shape
    device = find(run.device)
    heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    widths = {
        "q_proj": (shape.hidden, heads), "k_proj": (shape.hidden, kv), "v_proj": (shape.hidden, kv),
        "o_proj": (heads, shape.hidden), "gate_proj": (shape.hidden, shape.ffn), "up_proj": (shape.hidden, shape.ffn),
        "down_proj": (shape.ffn, shape.hidden),
    }  # fmt: skip
    adapters = sum(sum(widths[target]) for target in run.targets) * (run.rank or 0) * shape.layers
    return {
        "model": row.model, "family": "qwen2" if shape.qkv_bias else "llama", "parameters": parameters,
        "trainable": adapters or parameters, "hidden": shape.hidden, "layers": shape.layers, "heads": shape.heads,
        "kv_heads": shape.kv_heads, "head_dim": shape.head_dim, "ffn": shape.ffn, "vocabulary": shape.vocabulary,
        "tied": shape.tied, "qkv_bias": shape.qkv_bias, "rows": run.rows, "length": run.length,
        "dtype": "bf16" if run.dtype == torch.bfloat16 else "fp16", "base": run.base, "rank": run.rank,
        "targets": list(run.targets), "checkpointing": run.checkpointing, "attention": run.attention,
        "gpu": NAMES[run.device], "gpu_mib": device.memory_bytes / MIB,
    }  # fmt: skip


def parameters_of(row: Measured) -> int:
    """Parameters of the model before anything is added, as its configuration tells."""
    s = row.run.shape
    heads, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    attention = s.hidden * (2 * heads + 2 * kv) + (heads + 2 * kv if s.qkv_bias else 0)
    block = attention + 3 * s.hidden * s.ffn + 2 * s.hidden
    return s.layers * block + s.hidden + s.vocabulary * s.hidden * (1 if s.tied else 2)


def rows_of(path: Path) -> list[Row]:
    """The rows of a file with our predictions; the process's memory is reserved memory and the device's context."""
    published, _ = read(path)
    found = []
    for row, told in zip(published, compare(published), strict=True):
        context = (find(row.run.device).context_bytes or 0) / MIB
        measured = {"allocated": row.allocated}
        ours = {"allocated": told["predicted_allocated_mib"]}
        if row.reserved is not None:
            measured |= {"reserved": row.reserved, "process": row.reserved + context}
            reserved = told["predicted_reserved_mib"]
            ours |= {"reserved": reserved, "process": reserved + context}
        source = {"t4": "Tesla T4", "rtx-a6000-48gb": "RTX A6000"}[row.run.device]
        found.append(Row(source, question(row, parameters_of(row)), measured, ours))
    return found


def ask(peer: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A peer's answers, from a process that has it and nothing of ours. Raises RuntimeError where it cannot be had."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        got = subprocess.run(
            [*pip, "--target", folder, peer, *ALONE.get(peer, ())], capture_output=True, text=True, check=False
        )
        if got.returncode:
            raise RuntimeError(f"pip install {peer}: {got.stderr.strip().splitlines()[-1]}")
        done = subprocess.run(
            [sys.executable, str(QUESTIONS), peer.split("==")[0]],
            input=json.dumps([row.question for row in rows]), capture_output=True, text=True, cwd=folder, check=False,
            env={**os.environ, "PYTHONPATH": folder, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{peer}: {done.stderr.strip().splitlines()[-1]}")
    answers: list[dict[str, Any]] = json.loads(done.stdout[done.stdout.index("[") :])
    return answers


def errors(pairs: Sequence[tuple[float, float]]) -> str:
    """``median / worst`` of predicted against measured, the worst with its sign."""
    relative = [predicted / measured - 1 for predicted, measured in pairs]
    return f"{statistics.median(map(abs, relative)):.1%} / {max(relative, key=abs):+.1%}"


def lines_of(peer: str, rows: Sequence[Row], answers: Sequence[dict[str, Any]]) -> list[str]:
    """One line of the table for each source of rows: of what a peer predicts, the first that was measured there."""
    lines = []
    for source in dict.fromkeys(row.source for row in rows):
        asked = [(row, a) for row, a in zip(rows, answers, strict=True) if row.source == source]
        kinds = [kind for _, answer in asked for kind in answer if all(kind in row.measured for row, _ in asked)]
        silent = Counter(answer["none"] for _, answer in asked if "none" in answer)
        why = "; ".join([f"{count} rows: {reason}" for reason, count in silent.items()] + list(PEERS[peer]))
        cells = ["-", f"0 of {len(asked)}", "-", "-"]
        if kinds:
            said = [(answer[kinds[0]], row) for row, answer in asked if kinds[0] in answer]
            theirs = errors([(mib, row.measured[kinds[0]]) for mib, row in said])
            ours = errors([(row.ours[kinds[0]], row.measured[kinds[0]]) for _, row in said])
            cells = [kinds[0], f"{len(said)} of {len(asked)}", theirs, ours]
        lines.append(f"| {peer.replace('==', ' ')} | {source} | {' | '.join(cells)} | {why} |")
    return lines


def table(rows: Sequence[Row]) -> list[str]:
    head = ["peer", "rows", "predicts", "answered", "its median / worst error", "ours, same rows", "note"]
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---:|---:|---:|---|"]
    for peer in PEERS:
        try:
            lines += lines_of(peer, rows, ask(peer, rows))
        except RuntimeError as error:
            lines.append(f"| {peer.replace('==', ' ')} | all | - | 0 | - | - | {error} |")
        print(lines[-1], flush=True)
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--write", type=Path, help="document whose section is replaced")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    rows = [row for path in given.files for row in rows_of(path)]
    lines = table(rows)
    print("\n".join(lines), f"\n{time.perf_counter() - started:.0f} s")
    if given.write:
        command = (
            "`python -m tests.benchmarks.peers t4_lora_runs.csv a6000_training_runs.json --write docs/benchmarks.md`"
        )
        write_section(given.write, SECTION, [f"{command}, {versions('bitsandbytes')}", "", *lines])
    return 0


if __name__ == "__main__":
    sys.exit(main())
