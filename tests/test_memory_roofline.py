"""What an operation costs, and how long that takes on a CPU and on an accelerator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.memory.devices import find
from zoo.memory.roofline import FULL, HALF, SCALAR, SCALAR_STEPS, SHORT_PRODUCT, VECTOR, Cost, Rates, cost_of

RATES = Rates(fp32=1e12, half=4e12, bandwidth=1e11, launch=1e-5)
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
BATCH, HEADS, LENGTH, WIDTH = 2, 4, 32, 16


class _Costs(TorchDispatchMode):
    """Costs of what runs, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Cost] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.found[func.overloadpacket.__name__] = cost_of(func, args, kwargs or {}, out)
        return out


def _attention(dtype: torch.dtype) -> tuple[Cost, Cost]:
    query, key, value = (
        torch.zeros(BATCH, HEADS, LENGTH, WIDTH, dtype=dtype, requires_grad=True, device="cpu") for _ in range(3)
    )
    with _Costs() as costs:
        ATTENTION(query, key, value)[0].sum().backward()
    return costs.found[ATTENTION.__name__], costs.found[f"{ATTENTION.__name__}_backward"]


def _seconds(rates: Rates, *costs: Cost) -> float:
    return rates.seconds(np.array([(c.flops, 0, c.bytes, 0, c.kind) for c in costs], dtype=float), 1)


def test_attention_of_the_cpu_has_its_products_counted() -> None:
    forward, backward = _attention(torch.float32)
    products = 2 * 2 * BATCH * HEADS * LENGTH * LENGTH * WIDTH  # two, of which each multiplies and adds
    assert forward.flops == 2 * products, "at half the speed of large ones"
    assert backward.flops == pytest.approx(2.5 * forward.flops), "five products"
    assert (forward.kind, backward.kind) == (FULL, FULL)


def test_attention_of_the_cpu_gains_nothing_from_16_bits_and_begins_its_products_one_by_one() -> None:
    (full, full_backward), (half, half_backward) = (_attention(t) for t in (torch.float32, torch.bfloat16))
    assert (half.flops, half.kind) == (full.flops, FULL)
    assert half_backward.flops - full_backward.flops == 5 * BATCH * HEADS * SHORT_PRODUCT
    assert half_backward.kind == FULL


def test_random_numbers_are_drawn_one_by_one_on_a_cpu() -> None:
    with _Costs() as costs:
        torch.empty(1000).bernoulli_(0.5)
    drawn = costs.found["bernoulli_"]
    assert (drawn.flops, drawn.kind) == (1000 * SCALAR_STEPS["bernoulli_"], SCALAR)
    on_cpu, elsewhere = _seconds(replace(RATES, cpu=True, launch=0.0), drawn), _seconds(replace(RATES, launch=0), drawn)
    assert on_cpu == pytest.approx(drawn.flops / (RATES.fp32 / VECTOR))
    assert elsewhere == pytest.approx(drawn.bytes / RATES.bandwidth), "memory is what it takes there"


def test_launches_come_on_top_of_work_on_a_cpu_and_beside_it_elsewhere() -> None:
    product = Cost(flops=10**9, bytes=10**6, half=False)
    assert _seconds(RATES, product, product) == pytest.approx(2e-3)
    assert _seconds(replace(RATES, cpu=True), product, product) == pytest.approx(2e-3 + 2 * RATES.launch)
    assert _seconds(RATES, Cost(0, 8, half=False)) == RATES.launch
    assert _seconds(replace(RATES, cpu=True), Cost(0, 0, half=False)) == 0.0, "a view is nothing to do"


def test_16_bits_are_as_fast_as_the_device_says() -> None:
    product = Cost(flops=4 * 10**9, bytes=0, half=True)
    assert product.kind == HALF
    assert _seconds(RATES, product) == pytest.approx(1e-3)


def test_the_cpu_of_this_machine_runs_programs_itself() -> None:
    assert find("cpu").rates_for().cpu
    assert not find("t4").rates_for().cpu
