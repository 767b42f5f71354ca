"""What 16-bit products take on a CPU in no tensor, beside what a plan counts for it: random shapes, plain and batched.

``python -m tests.benchmarks.inside_products [COUNT]``. Exit code 1 where a product took more.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from zoo.memory.kernels import inside_a_product

LONG = (1, 2, 4, 8, 11, 16, 20, 33, 64, 77, 100, 128, 150, 320, 512, 640, 1024, 1100, 1280, 2560)
SHORT = LONG[2:13]


@dataclass(frozen=True)
class Case:
    """A product of (batch, rows, inner) and (batch, inner, columns); which of both lie transposed; bytes."""

    shape: tuple[int, int, int, int]
    transposed: tuple[bool, bool]
    measured: int
    counted: int


def measure(count: int, *, seed: int = 0) -> Iterator[Case]:
    """Products of random shapes, each run twice before it is looked at."""
    draw = random.Random(seed)
    for number in range(count):
        batch = draw.choice((4, 20, 40)) if number % 5 == 4 else 1
        rows, inner, columns = (draw.choice(LONG if batch == 1 else SHORT) for _ in range(3))
        turned = draw.random() < 0.5, draw.random() < 0.5
        first = _factor(batch, rows, inner, transposed=turned[0])
        second = _factor(batch, inner, columns, transposed=turned[1])
        factors = (first, second) if batch > 1 else (first[0], second[0])
        for _ in range(2):
            factors[0] @ factors[1]
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watch:
            out = factors[0] @ factors[1]
        alive = peak = 0
        for event in watch.profiler.kineto_results.events():  # type: ignore[union-attr]
            if event.name() == "[memory]":
                alive += event.nbytes()
                peak = max(peak, alive)
        yield Case((batch, rows, inner, columns), turned, peak - out.nbytes, inside_a_product(factors, out))


def _factor(batch: int, rows: int, columns: int, *, transposed: bool) -> torch.Tensor:
    shape = (batch, columns, rows) if transposed else (batch, rows, columns)
    made = torch.randn(shape, dtype=torch.bfloat16)
    return made.transpose(1, 2) if transposed else made


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 700
    found = list(measure(count))
    over = [case for case in found if case.measured > case.counted]
    largest = max(case.measured for case in found)
    print(f"{len(over)} of {count} products took more than is counted; the most that one took was {largest} bytes")
    for case in over:
        print(case)
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
