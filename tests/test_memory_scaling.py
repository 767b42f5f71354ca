"""Two shallow traces tell every depth, any number of rows and any accumulation; what they cannot tell is refused."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_models import defaults, predicted, small, task_of

from zoo.memory.ledger import OUTSIDE, Ledger, Record
from zoo.memory.roofline import Cost, Rates
from zoo.memory.scaling import FEWER, MANY, Estimate, Family, Irregular, Tape
from zoo.step import PHASES
from zoo.techniques import Technique
from zoo.techniques.adapter import HeadOnly, LoRA
from zoo.techniques.checkpointing import BlockCheckpointing
from zoo.techniques.precision import BF16

RATES = Rates(fp32=1e12, half=2e12, bandwidth=1e11, launch=1e-6)
LENGTH = 24
TOLERANCE = 1e-3
WIDE = {"hidden_size": 128, "intermediate_size": 512}

COMBINATIONS: dict[str, dict[str, Technique]] = {
    "plain": {},
    "bf16-block": {"precision": BF16(), "checkpointing": BlockCheckpointing()},
    "lora": {"adapter": LoRA(rank=4)},
    "lora-block": {"adapter": LoRA(rank=4), "checkpointing": BlockCheckpointing()},
    "head": {"adapter": HeadOnly()},
}
KINDS = {
    "esm2_t6_8m": "sequence_regression",
    "rxnmapper_albert": "sequence_classification",
    "antiberty": "masked_language_modelling",
}


def _trace(name: str, depth: int, rows: int, accumulation: int, techniques: str) -> Record:
    card = small(name, dropout=0.1, num_hidden_layers=depth, **(WIDE if name != "rxnmapper_albert" else {}))
    chosen = defaults(**COMBINATIONS[techniques])
    options: dict[str, Any] = {"accumulation": accumulation, "count_costs": True, "steps": 1, "world": "meta"}
    return predicted(card, task_of(KINDS[name], card), chosen, rows, LENGTH, **options)


@functools.cache
def _family(name: str, techniques: str) -> Family:
    """As the planner makes it: depth 2 and 3, very many rows, two micro-batches."""
    tapes = [Tape.of(_trace(name, depth, MANY, 2, techniques), many=MANY) for depth in (2, 3)]
    return Family(tapes[0], tapes[1], 2)


@pytest.mark.parametrize("techniques", COMBINATIONS)
@pytest.mark.parametrize("name", KINDS)
def test_estimates_equal_full_traces(name: str, techniques: str) -> None:
    for depth, rows, accumulation in ((2, 2, 1), (5, 4, 2), (6, 7, 3), (9, 16, 1)):
        estimate = _family(name, techniques).estimate(depth, rows, accumulation, RATES)
        whole = _trace(name, depth, rows, accumulation, techniques)
        # The traces hold two micro-batches' inputs, a step as many as it has: bytes beside the rest of a step.
        slack = abs(2 - accumulation) * rows * (2 * LENGTH * 8 + 8 * LENGTH)
        for phase in PHASES:
            peak = whole.peaks()[phase]
            assert abs(estimate.peak_by_phase[phase] - peak) <= TOLERANCE * peak + slack, (depth, rows, accumulation)
        inside = {phase: peak for phase, peak in whole.peaks().items() if phase != OUTSIDE}
        assert abs(estimate.peak - max(inside.values())) <= TOLERANCE * max(inside.values()) + slack
        assert sum(estimate.peak_by_category.values()) == pytest.approx(
            estimate.peak, abs=len(estimate.peak_by_category)
        )
        largest = max(estimate.peak_by_category, key=lambda c: estimate.peak_by_category[c])
        assert estimate.peak_by_category[largest] == pytest.approx(whole.at_peak()[largest], rel=0.01)


@pytest.mark.parametrize("name", KINDS)
def test_a_single_row_never_takes_more_than_estimated(name: str) -> None:
    """Copies that make a transposed tensor contiguous are spared where there is one row: the estimate has them."""
    for depth in (2, 5):
        estimate = _family(name, "plain").estimate(depth, 1, 1, RATES)
        whole = _trace(name, depth, 1, 1, "plain").peaks()
        for phase in PHASES:
            assert whole[phase] <= estimate.peak_by_phase[phase] <= 1.005 * whole[phase]


def _seconds(record: Record) -> float:
    """Roofline of every operation of a full trace, worked out one by one."""
    total = 0.0
    ends = [*record.cost_marks[1:], len(record.costs)]
    for (_, phase), start, end in zip(record.marks, record.cost_marks, ends, strict=True):
        for cost in record.costs[start:end]:
            if phase != OUTSIDE and (cost.flops or cost.bytes):
                rate = RATES.half if cost.half else RATES.fp32
                total += max(cost.flops / rate, cost.bytes / RATES.bandwidth, RATES.launch)
    return total


@pytest.mark.parametrize("techniques", ["plain", "lora-block"])
@pytest.mark.parametrize("name", KINDS)
def test_time_scales_as_a_full_trace_says(name: str, techniques: str) -> None:
    for depth, rows, accumulation in ((2, 3, 1), (6, 5, 2), (5, 2, 4)):
        estimate = _family(name, techniques).estimate(depth, rows, accumulation, RATES)
        whole = _seconds(_trace(name, depth, rows, accumulation, techniques))
        assert estimate.seconds == pytest.approx(whole, rel=0.01)


def test_an_estimate_of_one_trace_at_its_own_rows_is_that_trace() -> None:
    record = _trace("esm2_t6_8m", 3, 6, 2, "plain")
    estimate = Family(Tape.of(record), None, 0).estimate(0, 6, 2, RATES)
    assert estimate.peak_by_phase == {phase: record.peaks()[phase] for phase in PHASES}
    assert estimate.peak_by_category == record.at_peak()


def test_more_of_anything_never_takes_less() -> None:
    family = _family("esm2_t6_8m", "plain")
    grid: dict[tuple[int, int, int], Estimate] = {
        (d, r, a): family.estimate(d, r, a, RATES) for d in (2, 4) for r in (1, 2, 8) for a in (1, 2, 5)
    }
    for (d, r, a), estimate in grid.items():
        for other, theirs in grid.items():
            if all(x <= y for x, y in zip((d, r, a), other, strict=True)):
                assert estimate.peak <= theirs.peak
                assert estimate.seconds <= theirs.seconds
    assert grid[4, 2, 2].peak_by_phase == grid[4, 2, 5].peak_by_phase, "a third micro-batch finds what the second found"


def test_accumulation_holds_gradients_while_the_next_micro_batch_runs() -> None:
    family = _family("esm2_t6_8m", "plain")
    one, two = (family.estimate(4, 8, n, RATES) for n in (1, 2))
    trained = one.peak_by_category["parameters"]
    assert two.peak_by_phase["forward"] - one.peak_by_phase["forward"] == pytest.approx(trained, rel=0.05)


# ------------------------------------------------------------------------------------------------ what is refused


def _tape_of(work: Any, rows: int = MANY) -> Tape:
    with Ledger() as ledger, ledger.phase("forward"):
        held = work(torch.empty(rows, 8, device="meta"))
        ledger.close()
    del held
    return Tape.of(ledger.record, many=MANY)


def test_what_does_not_grow_with_the_rows_is_a_constant() -> None:
    tape = _tape_of(lambda x: [x + 1, torch.empty(1000, device="meta")])
    assert tape.segments[1].events.tolist()[1:3] == [[0.0, 32.0], [4000.0, 0.0]]


def test_an_amount_that_is_not_affine_in_the_rows_is_irregular() -> None:
    """A pair of rows shares a bucket: half as many buckets as rows, rounded down."""
    with pytest.raises(Irregular, match="not an affine function of the rows"):
        _tape_of(lambda x: torch.empty(x.shape[0] // 2, 3, device="meta"))


@pytest.mark.parametrize("bytes_of_a_row", [4, 8_000_000_000])
def test_fewer_rows_tell_a_row_from_a_constant(bytes_of_a_row: int) -> None:
    """A row may take gigabytes, and weights beside it hundreds of megabytes."""
    record = Record(
        sizes=[bytes_of_a_row * FEWER + (100_000_000 if bytes_of_a_row > 100 else 0), 100_000_000],
        labels={0: "activations", 1: "parameters"},
        events=[1, 2, -1],
        marks=[(0, "forward")],
        costs=[Cost(100_000_000, 5 * FEWER, half=False)],
        cost_marks=[0],
    )
    tape = Tape.of(record, many=FEWER)
    rest, of_rows = (100_000_000, bytes_of_a_row) if bytes_of_a_row > 100 else (0, 4)
    assert tape.segments[0].events.tolist() == [[rest, of_rows], [100_000_000, 0], [-rest, -of_rows]]
    assert tape.segments[0].costs.tolist()[0][:4] == [100_000_000, 0, 0, 5]
    with pytest.raises(Irregular, match="not an affine function of the rows"):  # the square of the rows
        Tape.of(replace(record, sizes=[FEWER * FEWER, 1]), many=FEWER)


def test_families_of_other_structure_are_irregular() -> None:
    shallow = Tape.of(_trace("esm2_t6_8m", 2, MANY, 2, "plain"), many=MANY)
    other = Tape.of(_trace("esm2_t6_8m", 3, MANY, 1, "plain"), many=MANY)
    with pytest.raises(Irregular, match="a deeper model has other phases"):
        Family(shallow, other, 2).estimate(6, 4, 1, RATES)


def test_costs_of_operations_scale_with_rows_as_their_bytes_do() -> None:
    record = Record(
        sizes=[], devices=[], events=[], marks=[(0, OUTSIDE), (0, "forward")], labels={},
        costs=[Cost(7 * MANY, 5 * MANY + 11, False)], cost_marks=[0, 0],
    )  # fmt: skip
    assert Tape.of(record, many=MANY).segments[1].costs.tolist() == [[0.0, 7.0, 11.0, 5.0, 0.0]]
