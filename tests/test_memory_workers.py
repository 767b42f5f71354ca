"""Results of forked processes are those of one process, whatever happens to the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.memory import workers
from zoo.memory.workers import Workers


@pytest.fixture(autouse=True)
def _three_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_cores", lambda: 3)


def spread(compute: Callable[[int], Any], count: int) -> list[Any]:
    with Workers(compute) as pool:
        return pool.map(range(count))


def test_results_come_in_order_from_several_processes() -> None:
    def compute(i: int) -> tuple[int, int]:
        time.sleep(0.02)
        return i * i, os.getpid()

    results = spread(compute, 12)
    assert [square for square, _ in results] == [i * i for i in range(12)]
    processes = {process for _, process in results}
    assert len(processes) > 1
    assert os.getpid() not in processes


def test_processes_stay_for_the_next_questions() -> None:
    def compute(i: int) -> int:
        time.sleep(0.01)
        return os.getpid()

    with Workers(compute) as pool:
        assert set(pool.map(range(9))) & set(pool.map(range(9)))


def test_what_may_be_asked_next_is_begun_where_nothing_else_is_to_do(tmp_path: Path) -> None:
    def compute(i: int) -> int:
        (tmp_path / str(i)).touch()
        return os.getpid()

    with Workers(compute) as pool:
        pool.map([0], ahead=[1, 2, 3, 4])
        while not all((tmp_path / str(i)).exists() for i in (0, 1, 2)):
            time.sleep(0.01)
        assert os.getpid() not in pool.map([2, 1, 2, 5])
        for path in tmp_path.iterdir():
            path.unlink()
        assert pool.map([7, 7]), "the same twice"
        assert not {1, 2, 5} & {int(path.name) for path in tmp_path.iterdir()}


def test_what_was_begun_and_is_not_asked_for_is_not_waited_for() -> None:
    """One process works for long, another is writing more than a pipe holds."""

    def compute(i: int) -> bytes:
        if i == 1:
            time.sleep(600)
        return bytes(2**26 * i)

    started = time.monotonic()
    with Workers(compute) as pool:
        assert pool.map([0], ahead=[1, 2]) == [b""]
        time.sleep(0.5)
        processes = [process.process.pid for process in pool._processes or ()]
    assert len(processes) == 3
    assert time.monotonic() - started < 300
    assert not any(_runs(process) for process in processes if process is not None)


def test_questions_that_cannot_be_pickled_are_answered_here() -> None:
    pool: Workers[Callable[[], int], int]
    with Workers(lambda question: question()) as pool:
        assert pool.map([os.getpid, lambda: os.getpid()])[1] == os.getpid()


@pytest.mark.parametrize("room", [0, 1])
def test_where_there_is_no_room_for_processes_fewer_are_made(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fork, made = os.fork, list[int]()

    def scarce() -> int:
        if len(made) >= room:
            raise BlockingIOError("no more processes")
        made.append(fork())
        return made[-1]

    monkeypatch.setattr(os, "fork", scarce)
    others = set(spread(lambda i: os.getpid(), 4)) - {os.getpid()}
    assert len(others) == room
    assert not any(map(_runs, others))


def test_ctrl_c_while_processes_are_made_is_not_lost() -> None:
    script = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs this in the background has it ignored
from zoo.memory import workers
workers._cores = lambda: 3
fork = os.fork
def interrupted():
    child = fork()
    if child:
        os.kill(os.getpid(), signal.SIGINT)
    return child
os.fork = interrupted
try:
    with workers.Workers(lambda i: i) as pool:
        pool.map(range(3))
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


def test_with_one_core_no_process_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_cores", lambda: 1)
    assert spread(lambda i: os.getpid(), 3) == [os.getpid()] * 3


def test_an_error_is_raised_here_and_no_process_is_left() -> None:
    def compute(i: int) -> int:
        if i == 7:
            raise ValueError(f"number seven in {os.getpid()}")
        return os.getpid()

    with Workers(compute) as pool:
        others = set(pool.map(range(6)))
        with pytest.raises(ValueError, match=f"number seven in {os.getpid()}"):
            pool.map(range(12))
    for _ in range(100):
        if not any(_runs(process) for process in others):
            break
        time.sleep(0.05)
    assert not any(_runs(process) for process in others)


def _runs(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_a_killed_process_took_is_computed_again() -> None:
    here = os.getpid()

    def compute(i: int) -> int:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    with Workers(compute) as pool:
        assert pool.map(range(8)) == list(range(8))
        assert pool.map(range(8)) == list(range(8))


def test_processes_that_hang_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 0.2)
    here = os.getpid()
    never = threading.Event()

    def compute(i: int) -> int:
        if os.getpid() != here:
            never.wait()
        return i

    assert spread(compute, 6) == list(range(6))


def test_results_that_cannot_be_pickled_are_computed_here() -> None:
    made = spread(lambda i: lambda: i, 5)
    assert [f() for f in made] == list(range(5))


def test_backward_passes_give_the_same_after_autograd_has_run_here() -> None:
    """Autograd may refuse to run in a process that was forked after it ran: the results are there nevertheless."""

    def gradient(i: int) -> float:
        x = torch.tensor(float(i), requires_grad=True)
        (x * x).backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return x.grad.item()

    expected = [2.0 * i for i in range(6)]
    assert [gradient(i) for i in range(6)] == expected
    assert spread(gradient, 6) == expected


def test_no_process_outlives_the_one_that_asked(tmp_path: Path) -> None:
    """However that ends: here it is killed while its processes work."""
    script = f"""
import os, pathlib, time
from zoo.memory import workers
workers._cores = lambda: 3
def compute(i):
    (pathlib.Path({str(tmp_path)!r}) / str(os.getpid())).touch()
    time.sleep(60)
with workers.Workers(compute) as pool:
    pool.map(range(3))
"""
    asking = subprocess.Popen([sys.executable, "-c", script])
    for _ in range(600):
        if len(list(tmp_path.iterdir())) == 3:
            break
        time.sleep(0.05)
    processes = [int(path.name) for path in tmp_path.iterdir()]
    assert len(processes) == 3
    assert all(_runs(process) for process in processes)
    asking.kill()
    asking.wait()
    for _ in range(100):
        if not any(_runs(process) for process in processes):
            break
        time.sleep(0.05)
    assert not any(_runs(process) for process in processes)
