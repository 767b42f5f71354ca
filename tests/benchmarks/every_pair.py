"""Every technique alone, and every pair of techniques, on five models: peak memory predicted beside measured.

``python -m tests.benchmarks.every_pair [--only MODEL] [--results FILE] [--write docs/benchmarks.md]`` builds every
combination that the techniques themselves allow, predicts the peak of every phase on tensors without storage, takes two
real steps under torch's profiler, which knows nothing of the prediction, and compares. With ``--results`` every row is
written to a file (JSON lines) when it is known, and a later call goes on from there. Exit code 1 if a phase of any row
is further off than 1 %, and than what 16-bit products may take inside their kernels, in no tensor of the program: the
interval of a plan is wider by that (`zoo.memory.trace`).
"""

from __future__ import annotations

import argparse
import bisect
import functools
import gc
import itertools
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tests.small_models import defaults, measured, predicted, task_of
from zoo.domain import find_model
from zoo.errors import InputError
from zoo.memory.ledger import Record
from zoo.step import PHASES
from zoo.techniques import Technique, registry

from .cpu_memory import write_section
from .environment import keep, versions
from .models import registered

SECTION = "every_pair"
TOLERANCE = 0.01
MODELS = {
    "esm2_t6_8m": ("masked_language_modelling", 8, 96),
    "antiberty": ("masked_language_modelling", 6, 64),
    "llama_small": ("sequence_regression", 12, 96),
    "t5_encoder_small": ("token_classification", 8, 96),
    "esm2_t12_35m": ("masked_language_modelling", 4, 64),
}
"""Name -> task, rows and tokens of the one micro-batch."""
NEEDS = {"quantization": ("adapter", "lora")}
"""What options of a key cannot do without; another adapter in its place is a pair of its own."""

Chosen = dict[str, str]


@dataclass(frozen=True)
class Row:
    """A combination with its peaks by phase in bytes; `refused` where it says itself that it cannot be."""

    model: str
    chosen: Chosen
    predicted: dict[str, int]
    measured: dict[str, int]
    refused: str = ""

    def error(self, phase: str) -> float:
        """Predicted against measured, relative: positive where too much was predicted."""
        return self.predicted[phase] / self.measured[phase] - 1

    @property
    def worst(self) -> float:
        """The error of the phase that is furthest off."""
        return max((self.error(phase) for phase in PHASES), key=abs)

    @functools.cached_property
    def passes(self) -> bool:
        """Whether all phases are within 1 %, or the measured peak is no higher than it may be."""
        if abs(self.worst) <= TOLERANCE:
            return True
        most = highest(trace_of(self.model, self.chosen))
        return all(
            abs(self.error(p)) <= TOLERANCE or self.predicted[p] < self.measured[p] <= most.get(p, 0) for p in PHASES
        )


def combinations() -> list[Chosen]:
    """Nothing, every option that is not the default of its key, and every pair of such options of two keys."""
    options = {key: [o.name for o in found[1:]] for key, found in registry().items()}
    alone = [{key: name} for key, names in options.items() for name in names]
    pairs = [{a: x, b: y} for a, b in itertools.combinations(options, 2) for x in options[a] for y in options[b]]
    found = []
    for chosen in ({}, *alone, *pairs):
        needed = dict(NEEDS[key] for key in chosen if key in NEEDS)
        found.append({**needed, **chosen})
    return [c for i, c in enumerate(found) if c not in found[:i]]


def techniques_of(chosen: Chosen) -> tuple[Technique, ...]:
    return defaults(**{key: next(o for o in registry()[key] if o.name == name)() for key, name in chosen.items()})


def trace_of(model: str, chosen: Chosen) -> Record:
    """The trace that a combination is predicted from."""
    kind, rows, tokens = MODELS[model]
    card = find_model(model)
    return predicted(card, task_of(kind, card), techniques_of(chosen), rows, tokens)


def highest(record: Record) -> dict[str, int]:
    """By phase, the highest peak with what 16-bit products may take inside themselves."""
    alive = np.concatenate([[0], np.cumsum(record.deltas())])
    starts = [start for start, _ in record.marks]
    most: dict[str, int] = {}
    for place, amount in record.inside:
        phase = record.marks[bisect.bisect_right(starts, place) - 1][1]
        most[phase] = max(most.get(phase, 0), int(alive[place]) + amount)
    return most


def compare(model: str, chosen: Chosen) -> Row:
    """Predict a combination, then run it under the profiler."""
    kind, rows, tokens = MODELS[model]
    card = find_model(model)
    task = task_of(kind, card)
    techniques = techniques_of(chosen)
    try:
        plan = trace_of(model, chosen).peaks()
    except InputError as error:
        return Row(model, chosen, {}, {}, str(error))
    return Row(model, chosen, {p: plan[p] for p in PHASES}, measured(card, task, techniques, rows, tokens))


def rows_of(models: Sequence[str], results: Path | None) -> Iterator[Row]:
    """Every combination on every model, those in `results` as they were found before."""
    known: dict[str, Row] = {}
    if results is not None and results.exists():
        for line in results.read_text().splitlines():
            row = Row(**json.loads(line))
            known[json.dumps([row.model, row.chosen])] = row
    with registered():
        for chosen, model in itertools.product(combinations(), models):
            key = json.dumps([model, chosen])
            if key not in known:
                known[key] = compare(model, chosen)
                keep(known[key], results)
            yield known[key]


def named(row: Row) -> str:
    return ", ".join(f"{key} {name}" for key, name in row.chosen.items()) or "defaults"


def table(rows: Sequence[Row]) -> list[str]:
    """A Markdown table with one line for each model, and the rows that are furthest off."""
    lines = [
        "| model | task, rows x tokens | combinations | within 1 % | within the interval | worst | refused |",
        "|---|---|---:|---:|---:|---|---:|",
    ]
    for model, (kind, count, tokens) in MODELS.items():
        ran = [row for row in rows if row.model == model and not row.refused]
        if not ran:
            continue
        worst = max(ran, key=lambda row: abs(row.worst))
        within = sum(abs(row.worst) <= TOLERANCE for row in ran)
        refused = sum(bool(row.refused) for row in rows if row.model == model)
        lines.append(
            f"| {model} | {kind}, {count} x {tokens} | {len(ran)} | {within} | {sum(row.passes for row in ran)} "
            f"| {worst.worst:+.2%} ({named(worst)}) | {refused} |"
        )
    beyond = sorted((r for r in rows if not r.refused and abs(r.worst) > TOLERANCE), key=lambda r: -abs(r.worst))
    if beyond:
        lines += ["", "Beyond 1 %:", ""]
        for row in beyond[:20]:
            phase = max(PHASES, key=lambda p: abs(row.error(p)))
            kib = (row.predicted[phase] - row.measured[phase]) / 1024
            lines.append(f"- {row.model}, {named(row)}: {phase} {row.error(phase):+.2%} ({kib:+.0f} KiB)")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.every_pair", description=__doc__)
    parser.add_argument("--only", choices=MODELS, help="one model instead of all")
    parser.add_argument("--results", type=Path, help="JSON lines: rows that are there are not tried again")
    parser.add_argument("--write", type=Path, help="document whose section is replaced")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    started = time.perf_counter()
    rows = []
    for row in rows_of([given.only] if given.only else list(MODELS), given.results):
        rows.append(row)
        said = f"refused: {row.refused}" if row.refused else f"{row.worst:+.3%}" + ("" if row.passes else " FAILED")
        print(f"{row.model}, {named(row)}: {said}", flush=True)
    print("\n".join(table(rows)), f"\n{time.perf_counter() - started:.0f} s")
    if given.write:
        command = f"`python -m tests.benchmarks.every_pair --write docs/benchmarks.md`, {versions('bitsandbytes')}"
        write_section(given.write, SECTION, [command, "", *table(rows)])
    return int(not all(row.refused or row.passes for row in rows))


if __name__ == "__main__":
    sys.exit(main())
