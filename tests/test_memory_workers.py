"""Results of forked processes are those of one process, whatever happens to the others."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from zoo.memory import workers
from zoo.memory.workers import spread


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})


def test_results_come_in_order_and_each_is_computed_once(four_cores: None, tmp_path: Path) -> None:
    def compute(i: int) -> int:
        (tmp_path / f"{i}.{os.getpid()}").touch()
        time.sleep(0.01)
        return i * i

    assert spread(compute, 25) == [i * i for i in range(25)]
    done = [path.name.split(".") for path in tmp_path.iterdir()]
    assert sorted(int(i) for i, _ in done) == list(range(25))
    assert len({process for _, process in done}) > 1


@pytest.mark.parametrize("count", [0, 1])
def test_few_computations_need_no_other_process(four_cores: None, count: int) -> None:
    assert spread(lambda i: os.getpid(), count) == [os.getpid()] * count


def test_an_error_is_raised_here_and_no_process_is_left(four_cores: None) -> None:
    def compute(i: int) -> int:
        if i == 7:
            raise ValueError("number seven")
        time.sleep(0.005)
        return i

    with pytest.raises(ValueError, match="number seven"):
        spread(compute, 12)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_what_a_killed_process_took_is_computed_again(four_cores: None) -> None:
    here = os.getpid()

    def compute(i: int) -> int:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        return i

    assert spread(compute, 12) == list(range(12))


def test_a_process_that_hangs_is_not_waited_for(four_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 0)
    monkeypatch.setattr(workers, "LEAST", 0.1)
    here = os.getpid()
    never = threading.Event()

    def compute(i: int) -> int:
        if os.getpid() != here:
            never.wait()
        return i

    assert spread(compute, 6) == list(range(6))


def test_results_that_cannot_be_pickled_are_computed_here(four_cores: None) -> None:
    made = spread(lambda i: (time.sleep(0.01), lambda: i)[1], 8)
    assert [f() for f in made] == list(range(8))


def test_backward_passes_give_the_same_after_autograd_has_run_here(four_cores: None) -> None:
    """Autograd may refuse to run in a process that was forked after it ran: the results are there nevertheless."""

    def gradient(i: int) -> float:
        x = torch.tensor(float(i), requires_grad=True)
        (x * x).backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return x.grad.item()

    expected = [2.0 * i for i in range(10)]
    assert [gradient(i) for i in range(10)] == expected
    assert spread(gradient, 10) == expected
