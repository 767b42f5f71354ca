"""The planner's choice beside that of an exhaustive search: as fast, from as low a rung, in how many seconds?

``python -m tests.benchmarks.search_choice [--only NAME] [--write docs/benchmarks.md]`` plans recipes of this repository
with everything left open, for several devices, as ``zoo plan`` does (in one process, where libraries are imported
before the second), then traces every combination and chooses again. Exit code 1 where a choice lies on another rung, is
more than `SLOWER` as slow as the best by what is predicted, or where one search finds something that fits and the other
does not.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.combinations import departure
from zoo.planner import decide, limits_of, survey
from zoo.plans import Decision
from zoo.resolve import load_job
from zoo.resources import shared
from zoo.techniques import registry
from zoo.weights import fetch

from .cpu_memory import write_section
from .environment import versions

SECTION = "search_choice"
SLOWER = 1.05

PEPTIDES = "biology/antimicrobial_peptides"
ASKED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (PEPTIDES, "esm2_t12_35m", ("t4", "512MiB")),
    (PEPTIDES, "esm2_t33_650m", ("rtx-3060-12gb", "rtx-4090-24gb", "a100-80gb", "8GiB")),
    (PEPTIDES, "esm2_t36_3b", ("t4", "a100-40gb", "h200")),
    (PEPTIDES, "esm2_t48_15b", ("rtx-4090-24gb", "h100-sxm-80gb")),
    (PEPTIDES, "antiberty", ("rtx-3060-12gb", "256MiB")),
    ("biology/mouse_v_genes", "sapiens_vh", ("t4", "32MiB")),
    ("chemistry/solubility", "rxnmapper_albert", ("t4", "64MiB", "128MiB")),
    ("meteorology/era5_fine_tuning", "climax_1_40625deg", ("rtx-3070-8gb", "a100-80gb")),
    ("meteorology/stormer_fine_tuning", "stormer_1_40625deg", ("rtx-4060-ti-16gb", "h100-sxm-80gb")),
    ("meteorology/aurora_lora", "aurora_0_25deg", ("rtx-4090-24gb", "a100-40gb", "h100-sxm-80gb")),
)
"""Recipes, models, and devices or amounts of memory of the CPU."""


@dataclass(frozen=True)
class Row:
    """A recipe on a device: the choice, what is best, combinations that were traced of all, and seconds of both."""

    model: str
    device: str
    choice: str
    slower: float
    same_rung: bool
    traced: int
    combinations: int
    seconds: float
    exhaustive: float

    @property
    def right(self) -> bool:
        return self.same_rung and self.slower <= SLOWER


def compare(only: str | None) -> Iterator[Row]:
    """Every row as it is found."""
    for recipe, model, devices in ASKED:
        if only not in (None, model):
            continue
        for device in devices:
            yield _row(recipe, model, device)


def _row(recipe: str, model: str, device: str) -> Row:
    where = {"budget": device} if device.endswith("iB") else {"gpu": device}
    job = load_job(shared() / "recipes" / f"{recipe}.yaml", [f"model={model}", "techniques=auto"], **where)  # type: ignore[arg-type]
    workload, _ = survey(job, fetch, local=False)
    limits = limits_of(job.recipe.budget)
    found: list[tuple[Decision, float]] = []
    for exhaustive in (False, True):
        started = time.perf_counter()
        found.append((decide(job, workload, limits, exhaustive=exhaustive), time.perf_counter() - started))
    (quick, seconds), (thorough, longer) = found
    known = [r.techniques for r in quick.rejected if r.plan is not None]
    traced = len({quick.chosen.techniques, *known})
    rungs = [(d.fits, departure(d.chosen.techniques, job)) for d in (quick, thorough)]
    best, mine = thorough.chosen, quick.chosen
    slower = mine.estimate.seconds / best.estimate.seconds if quick.fits else mine.needed_bytes / best.needed_bytes
    options = [t.describe() for t in mine.techniques if not isinstance(t, registry()[t.key][0])]
    choice = f"{', '.join(options) or 'defaults'}, {mine.micro_batch_size} x {mine.accumulation_steps}"
    if not quick.fits:
        choice = f"nothing fits; smallest: {choice}"
    return Row(
        model, device, choice, slower, rungs[0] == rungs[1], traced, len(quick.rejected) + 1, seconds, longer
    )  # fmt: skip


def table(rows: Sequence[Row]) -> list[str]:
    return [
        "| model | device | choice | seconds beside the best's | traced | search | exhaustive |",
        "|---|---|---|---:|---:|---:|---:|",
        *(
            f"| {r.model} | {r.device} | {r.choice} | {r.slower:.3f}{'' if r.same_rung else ', another rung'} | "
            f"{r.traced} of {r.combinations} | {r.seconds:.1f} s | {r.exhaustive:.0f} s |"
            for r in rows
        ),
    ]


def summary(rows: Sequence[Row]) -> str:
    worst = max(rows, key=lambda row: row.slower)
    slowest = max(rows, key=lambda row: row.seconds)
    quick = sum(row.seconds < 10 for row in rows)
    return (
        f"{sum(row.right for row in rows)} of {len(rows)} choices are within {SLOWER - 1:.0%} of the best, on the same "
        f"rung; worst {worst.slower:.3f} ({worst.model}, {worst.device}). {quick} searches "
        f"took less than 10 s; the longest {slowest.seconds:.1f} s ({slowest.model}, {slowest.device})."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.search_choice", description=__doc__)
    parser.add_argument("--only", help="one model instead of all")
    parser.add_argument("--write", type=Path, help="document whose section is replaced")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    rows: list[Row] = []
    for row in compare(given.only):
        rows.append(row)
        print(table([row])[-1], flush=True)
    print(summary(rows))
    if given.write:
        command = f"`python -m tests.benchmarks.search_choice --write {given.write}`, {versions()}"
        write_section(given.write, SECTION, [command, "", *table(rows), "", summary(rows)])
    return int(not all(row.right for row in rows))


if __name__ == "__main__":
    sys.exit(main())
