"""When memory runs out the same step comes again in smaller micro-batches; nothing is skipped, nothing counts twice."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Recipes
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.errors import TrainingError
from zoo.memory.devices import find
from zoo.memory.predict import Footprint
from zoo.planner import what_is_free
from zoo.plans import Limits
from zoo.training import recovery, run
from zoo.training.meter import CpuMeter
from zoo.training.recovery import Guard
from zoo.units import GIB

pytestmark = pytest.mark.usefixtures("traced_once")


class _Full(TorchDispatchMode):
    """A device that is full: the fifth operation finds no room."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 5

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore of it")
        return func(*args, **(kwargs or {}))


def _inject(monkeypatch: pytest.MonkeyPatch, step: int, phase: str, times: int = 1) -> None:
    """Memory runs out in `phase` of the step that is tried as number `step`, and of the `times` - 1 after it."""
    tried = 0
    plain = recovery.train_step

    def flaky(setup: Any, batch: Any) -> Any:
        nonlocal tried
        tried += 1
        if step <= tried < step + times:
            outer = setup.phase

            @contextlib.contextmanager
            def entered(name: str) -> Iterator[None]:
                with outer(name), _Full() if name == phase else contextlib.nullcontext():
                    yield

            setup.phase = entered
        return plain(setup, batch)

    monkeypatch.setattr(recovery, "train_step", flaky)


def _log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _train(recipes: Recipes, name: str, changes: dict[str, Any] | None = None) -> tuple[dict[str, Any], list[Any]]:
    output = recipes.folder / name
    job = recipes.job({**_without_dropout(), "train.evaluate_every": 2, "output": str(output), **(changes or {})})
    summary = run.train(job, output=output).summary
    return summary, _log(output)


def _without_dropout() -> dict[str, Any]:
    return {"train.max_grad_norm": 1.0}


@pytest.fixture(autouse=True)
def _no_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run.build_for

    def build_for(*args: Any, **kwargs: Any) -> Any:
        setup = plain(*args, **kwargs)
        for module in setup.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return setup

    monkeypatch.setattr(run, "build_for", build_for)


@pytest.mark.parametrize("phase", ["forward", "backward", "optimizer"])
def test_a_step_that_ran_out_comes_again_in_halves(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    usual, expected = _train(recipes, "usual")
    step = next(e["step"] for e in expected if e.get("rows") == 8 and e["step"] % 2 == 0 and e["step"] > 2)
    _inject(monkeypatch, step, phase)
    summary, log = _train(recipes, "injected")
    assert usual["ran_out_of_memory"] == []
    (told,) = summary["ran_out_of_memory"]
    assert f"memory ran out at step {step} ({phase}, micro-batch of 8): CUDA out of memory." in told
    assert (usual["micro_batch_size"], summary["micro_batch_size"]) == (8, 4)
    assert (usual["accumulation_steps"], summary["accumulation_steps"]) == (1, 2)
    assert summary["steps"] == usual["steps"] == 6
    assert [(e["step"], e.get("rows")) for e in log] == [(e["step"], e.get("rows")) for e in expected]
    for one, other in zip(log, expected, strict=True):
        if "loss" in one:
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    for name, value in usual["metrics"]["test"].items():
        assert summary["metrics"]["test"][name] == pytest.approx(value, rel=1e-3), name


def test_steps_before_the_one_that_ran_out_are_the_same_bits(recipes: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = _train(recipes, "usual")
    _inject(monkeypatch, 5, "backward")
    _, log = _train(recipes, "injected")
    before = [e for e in log if e["step"] < 5]
    assert before == [e for e in expected if e["step"] < 5]


def test_it_halves_until_it_fits(recipes: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    _inject(monkeypatch, 2, "forward", times=2)
    summary, _ = _train(recipes, "injected")
    assert summary["micro_batch_size"] == 2
    assert [("micro-batch of 8" in told, "micro-batch of 4" in told) for told in summary["ran_out_of_memory"]] == [
        (True, False),
        (False, True),
    ]


def test_one_row_that_does_not_fit_is_an_error_that_says_so(recipes: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    _inject(monkeypatch, 3, "backward", times=100)
    with pytest.raises(
        TrainingError, match=r"memory ran out at step 3 \(backward, micro-batch of 1\).*cannot be smaller"
    ):
        _train(recipes, "injected")


def test_a_resumed_run_goes_on_with_what_fitted(recipes: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _inject(patch, 2, "backward")
        _train(recipes, "injected", {"train.max_steps": 6})
    checkpoint = torch.load(recipes.folder / "injected" / "checkpoint" / "last.pt", weights_only=True)
    assert checkpoint["progress"]["micro_batch_size"] == 4
    assert len(checkpoint["progress"]["ran_out"]) == 1


def test_a_budget_is_kept_on_the_cpu_even_where_the_plan_was_wrong(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planner that promises half of what is needed: the budget holds all the same."""
    usual, expected = _train(recipes, "usual", {"train.global_batch_size": 16, "train.max_steps": 3})
    needed = usual["memory"]["measured_bytes"]["peak"]
    budget = int(needed * 0.75)
    of = Footprint.of
    monkeypatch.setattr(Footprint, "of", lambda device, allocated, **more: of(device, allocated // 2, **more))
    tight = {"train.global_batch_size": 16, "train.max_steps": 3, "budget": {"device": budget}}
    summary, log = _train(recipes, "tight", tight)
    assert usual["micro_batch_size"] == 16
    assert summary["micro_batch_size"] < 16
    assert "of a budget of" in summary["ran_out_of_memory"][0]
    assert [e.get("rows") for e in log] == [e.get("rows") for e in expected]
    assert summary["steps"] == 3


def test_a_guard_counts_what_the_profiler_counts() -> None:
    weight = torch.randn(256, 512, requires_grad=True)
    x = torch.randn(64, 512)
    meter = CpuMeter()
    with meter.phase("forward"):
        (torch.nn.functional.gelu(x @ weight.T).square().mean()).backward()  # type: ignore[no-untyped-call]
    peak = meter.stop()["forward"]
    weight.grad = None
    held = weight.nbytes + x.nbytes

    def runs(limit: int) -> bool:
        weight.grad = None
        try:
            with Guard(limit, [weight, x]):
                torch.nn.functional.gelu(x @ weight.T).square().mean().backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError:
            return False
        return True

    assert runs(held + peak + 1024)
    assert not runs(held + peak - 1024)


def test_what_a_guard_raises_is_what_cuda_raises() -> None:
    with (
        pytest.raises(torch.cuda.OutOfMemoryError, match=r"would hold 4.00 KiB of a budget of 1000 B"),
        Guard(1000, []),
    ):
        torch.zeros(1024)


def test_training_plans_for_what_is_free_now(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = find("cpu")
    small = cpu.model_copy(update={"memory_bytes": GIB})
    monkeypatch.setattr("zoo.planner.detect", lambda: small)
    limits = Limits(cpu, 8 * GIB, None, "8.00 GiB as the budget says")
    lowered = what_is_free(limits, torch.device("cpu"))
    assert lowered.device_bytes == GIB
    assert lowered.origin == "8.00 GiB as the budget says, of which 1.00 GiB are free now"
    enough = replace(limits, device_bytes=GIB // 2)
    assert what_is_free(enough, torch.device("cpu")) == enough
    elsewhere = replace(limits, device=find("t4"))
    assert what_is_free(elsewhere, torch.device("cpu")) == elsewhere
