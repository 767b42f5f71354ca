"""Reading states from a Zarr store beside reading the store itself, and memory while the store grows tenfold.

``python -m tests.benchmarks.loading [--write docs/benchmarks.md]`` writes stores of random, compressible fields to a
temporary folder and reads every state of them: raw, with zarr alone, each stored chunk of each array once and in order;
ours, `Fields.read` of all fields in order; samples, input and target 6 h later; and both in random order. The file
cache is warm for all. Shares are taken within each round: of the rate, and of states a second of processor time, which
is what would be left on one core: raw reads chunk by chunk, ours several at once, which zarr decodes on all cores.
Exit code 1 where states in order come at less than 80 % of the raw rate, or where memory grows with the store.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from tests.benchmarks.cpu_memory import write_section
from zoo.meteorology.fields import Fields
from zoo.meteorology.samples import Window, make_samples, parts_by_fractions, read_sample
from zoo.meteorology.source import open_fields
from zoo.units import MIB

SECTION = "loading"
LEAST = 0.8
GROWTH_MIB = 32  # what the allocator keeps differs by some 10 MiB between runs
SIZES = (1000, 10_000)  # states of the stores for memory; reading ahead has grown to its full length within the first
LEVELS = (50, 250, 500, 600, 700, 850, 925)
VARIABLES = {"geopotential": "m2 s-2", "temperature": "K", "u_component_of_wind": "m s-1"}
FIELDS = [f"{name}_{level}" for name in VARIABLES for level in LEVELS]


@dataclass(frozen=True)
class Store:
    """A store to read: `chunk` times are stored together, with all levels and points."""

    grid: tuple[int, int]
    chunk: int
    states: int

    @property
    def label(self) -> str:
        return f"{self.grid[0]} x {self.grid[1]}, {self.chunk} {'time' if self.chunk == 1 else 'times'} a chunk"


STORES = (
    Store((32, 64), 1, 300),
    Store((32, 64), 8, 1200),
    Store((128, 256), 1, 80),
    Store((128, 256), 4, 160),
)


def write(path: Path, store: Store) -> None:
    """Random walks in time, rounded so that they compress about as reanalyses do."""
    draw = np.random.default_rng(0)
    height, width = store.grid
    dims = ("time", "level", "latitude", "longitude")
    shape = (len(LEVELS), height, width)
    state = {name: draw.normal(size=shape).cumsum(axis=2) * 10 for name in VARIABLES}
    batch = max(store.chunk, 64 // store.chunk * store.chunk)
    for start in range(0, store.states, batch):
        count = min(batch, store.states - start)
        arrays = {}
        for name, unit in VARIABLES.items():
            steps = draw.normal(size=(count, *shape)).cumsum(axis=0) + state[name]
            state[name] = steps[-1]
            arrays[name] = (dims, (np.round(steps * 16) / 16).astype(np.float32), {"units": unit})
        times = np.datetime64("2000-01-01", "ns") + (start + np.arange(count)) * np.timedelta64(6, "h")
        coordinates = {
            "time": times,
            "level": ("level", np.array(LEVELS), {"units": "hPa"}),
            "latitude": np.linspace(90, -90, height, endpoint=False) - 90 / height,
            "longitude": np.arange(width) * 360 / width,
        }
        data = xr.Dataset(arrays, coordinates)
        if start:
            data.to_zarr(path, append_dim="time", zarr_format=2, consolidated=False)
        else:
            encoding: dict[str, Any] = {name: {"chunks": (store.chunk, *shape)} for name in VARIABLES}
            encoding["time"] = {"units": "hours since 2000-01-01", "chunks": (2**16,)}
            data.to_zarr(path, encoding=encoding, zarr_format=2, consolidated=False)


@dataclass(frozen=True)
class Rate:
    """States a second of wall clock, and of processor time, all threads of this process together."""

    wall: float
    processor: float


def rate(count: int, read: Callable[[int], object], order: Iterable[int]) -> Rate:
    begin, used = time.perf_counter(), time.process_time()
    for index in order:
        read(index)
    return Rate(count / (time.perf_counter() - begin), count / (time.process_time() - used))


def fresh(path: Path) -> Fields:
    """Fields with nothing read, opened."""
    fields = open_fields(str(path), FIELDS)[0]
    fields.read(fields.shape[0] % len(fields))
    fields.close()
    fields._reader.handles.get(str(path))
    return fields


def pair_of(fields: Fields) -> Callable[[int], object]:
    """Reads input and target of a sample."""
    samples = make_samples([fields.axis], parts_by_fractions([fields.axis], (1, 0, 0)), Window())["train"]
    return lambda sample: read_sample([fields], samples, sample)


def measure(path: Path, store: Store, rounds: int) -> dict[str, tuple[float, float, float]]:
    """By way of reading: rate, its share of the raw one, and that of processor time, each the median over rounds."""
    arrays = [zarr.open_array(path / name, mode="r") for name in VARIABLES]
    shuffled = np.random.default_rng(1).permutation(store.states).tolist()

    def chunk(start: int) -> None:
        for array in arrays:
            array[start : start + store.chunk]

    def one(index: int) -> None:
        start = index - index % store.chunk
        for array in arrays:
            array[start : start + store.chunk]

    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        raw = rate(store.states, chunk, range(0, store.states, store.chunk))
        raw_random = rate(store.states, one, shuffled)
        rows = {
            "raw": (raw, raw),
            "ours": (rate(store.states, fresh(path).read, range(store.states)), raw),
            "samples": (rate(store.states - 1, pair_of(fresh(path)), range(store.states - 1)), raw),
            "raw, random": (raw_random, raw_random),
            "ours, random": (rate(store.states, fresh(path).read, shuffled), raw_random),
        }
        if importlib.util.find_spec("dask") is not None:
            with xr.open_zarr(path, chunks={}, consolidated=False) as graph:
                few = store.states // 8
                rows["a task graph a state"] = (rate(few, computed(graph), range(few)), raw)
        for name, (mine, other) in rows.items():
            shares = mine.wall / other.wall, mine.processor / other.processor
            found.setdefault(name, []).append((mine.wall, *shares))
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    return {name: (wall, share, processor) for name, (wall, share, processor) in medians.items()}


def computed(graph: xr.Dataset) -> Callable[[int], object]:
    return lambda index: graph.isel(time=index).compute(scheduler="synchronous")


_MEMORY = """
import json, sys, numpy as np
from zoo.meteorology.source import open_fields
def resident(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
fields, = open_fields(sys.argv[1], json.loads(sys.argv[3]), cache_bytes=32 * 2**20)
fields.read(0)
before = resident("VmRSS")
order = np.random.default_rng(0).permutation(len(fields))[:2000] if sys.argv[2] == "random" else range(len(fields))
for index in order:
    fields.read(int(index))
print(before * 1024, resident("VmHWM") * 1024)
"""


def peak(path: Path, order: str) -> tuple[float, float]:
    """Resident memory in MiB of a process of its own: before its loop, and at its peak in it."""
    command = [sys.executable, "-c", _MEMORY, str(path), order, json.dumps(FIELDS)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(printed[0]) / MIB, int(printed[1]) / MIB


def bytes_of(store: Store) -> float:
    return store.states * len(FIELDS) * store.grid[0] * store.grid[1] * 4 / MIB


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="document whose section is replaced")
    given = parser.parse_args(arguments)
    lines = [
        f"`python -m tests.benchmarks.loading --write docs/benchmarks.md`, {datetime.date.today().isoformat()}, "
        f"xarray {version('xarray')}, zarr {version('zarr')}, numpy {version('numpy')}; Python "
        f"{platform.python_version()}; {platform.system()}, {platform.machine()}, {os.cpu_count()} cores.",
        "",
        "States a second (and share of the raw rate; and share by processor time; each of the median round):",
        "",
    ]
    least: dict[str, float] = {}
    work = 9.0
    with tempfile.TemporaryDirectory() as folder:
        for number, store in enumerate(STORES):
            path = Path(folder) / f"{number}.zarr"
            write(path, store)
            found = measure(path, store, given.rounds)
            if not number:
                lines += [f"| store | {' | '.join(found)} |", f"|---|{'---:|' * len(found)}"]
            cells = " | ".join(f"{speed:,.0f} ({share:.2f}; {busy:.2f})" for speed, share, busy in found.values())
            lines.append(f"| {store.label} | {cells} |")
            print(lines[-1], flush=True)
            least = {name: min(least.get(name, 9.0), share) for name, (_, share, _) in found.items()}
            work = min(work, found["ours"][2])
        lines += ["", "Resident memory of a process that reads a store (blocks kept: at most 32 MiB):", ""]
        lines += ["| states | size | order | before, MiB | peak, MiB |", "|---:|---:|---|---:|---:|"]
        peaks: dict[str, list[float]] = {"sequential": [], "random": []}
        for states in SIZES:
            store = Store((32, 64), 4, states)
            path = Path(folder) / f"memory{states}.zarr"
            write(path, store)
            for order, known in peaks.items():
                before, high = peak(path, order)
                known.append(high)
                lines.append(f"| {states} | {bytes_of(store):.0f} MiB | {order} | {before:.0f} | {high:.0f} |")
                print(lines[-1], flush=True)
    grown = max(high[1] - high[0] for high in peaks.values())
    lines += [
        "",
        f"Least share of the raw rate: {least['ours']:.2f} for states in order (wanted: {LEAST}), "
        f"{least['samples']:.2f} for samples, each of two states; by processor time {work:.2f} for states in order.",
        f"Peak memory of ten times the data: {grown:+.0f} MiB (wanted: below {GROWTH_MIB}).",
    ]
    good = least["ours"] >= LEAST and grown < GROWTH_MIB
    print("\n".join(lines))
    if given.write:
        write_section(given.write, SECTION, lines)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
