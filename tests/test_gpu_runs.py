"""What was measured on a GPU is predicted without one: some of ``python -m tests.benchmarks.gpu_memory``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import gpu_memory
from benchmarks.gpu_memory import Row, compare
from benchmarks.models import registered

from zoo.step import PHASES

RUNS = Path(__file__).parent / "benchmarks" / "gpu_runs"
MEASURED = {
    run["name"]: run for path in sorted(RUNS.glob("*.jsonl")) for run in map(json.loads, path.read_text().splitlines())
}
QUICK = (
    "antiberty fp32", "antiberty bf16", "antiberty bf16 lora", "albert bf16", "llama bf16", "t5 bf16", "sapiens fp32",
    "llama bf16 plain", "150m bf16 nf4-double lora block", "llama fp32 lora block", "antiberty fp32 block expandable",
)  # fmt: skip


def predicted(name: str, **changes: Any) -> Row:
    with registered():
        (row,) = compare([{**MEASURED[name], **changes}])
    return row


@pytest.mark.parametrize("name", QUICK)
def test_a_measured_run_is_predicted(name: str) -> None:
    """To a hundredth of a percent in every phase: a few bytes are on the host where we put them on the device."""
    row = predicted(name)
    assert row.measured["unified_workspace"]
    assert {phase: row.error(phase) for phase in PHASES} == pytest.approx(dict.fromkeys(PHASES, 0.0), abs=1e-4)
    assert abs(row.reserved_error) < 0.025
    assert row.fits
    assert row.passes


def test_a_run_that_took_more_does_not_pass() -> None:
    more = {phase: round(size * 1.02) for phase, size in MEASURED["sapiens fp32"]["allocated"].items()}
    row = predicted("sapiens fp32", allocated=more)
    assert row.worst == pytest.approx(1 / 1.02 - 1, abs=1e-4)
    assert not row.passes
    row = predicted("sapiens fp32", process=2 * MEASURED["sapiens fp32"]["process"])
    assert not row.passes
    assert "not sapiens fp32" in "\n".join(gpu_memory.summary([row]))


def test_what_was_measured_is_a_setting() -> None:
    names = [setting.name for setting in gpu_memory.settings()]
    assert len(set(names)) == len(names)
    assert set(MEASURED) <= set(names)
    assert len(MEASURED) > 40
