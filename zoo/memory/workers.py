"""Many small computations on all cores, by processes that share what is already imported.

Traces are Python code, which one process runs one at a time, and importing what they need takes longer than tracing. A
forked process has everything imported from its first moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

import torch

Argument = TypeVar("Argument")
Result = TypeVar("Result")

MOST = 8
"""Processes at most: beyond, starting them takes as long as they save."""

PATIENCE = 60.0
"""Seconds without any result after which the processes are given up: a fork can inherit a lock that nobody opens."""

_compute: Callable[[Any], Any]


class Workers(Generic[Argument, Result]):
    """A function of one argument, computed by as many forked processes as there are cores.

    What they cannot compute (one was killed, a result cannot be pickled, autograd refuses to run after a fork where it
    has run before) is computed here, so that an exception is raised here too. Elsewhere than on Linux, and with one
    core, everything is.
    """

    def __init__(self, compute: Callable[[Argument], Result]) -> None:
        self.compute = compute
        self._count = min(_cores(), MOST)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers[Argument, Result]:
        global _compute
        if self._count > 1:
            _compute = self.compute  # what a forked process finds
            context = get_context("fork")
            self._pool = ProcessPoolExecutor(self._count, context, initializer=_begin)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def map(self, arguments: Sequence[Argument]) -> list[Result]:
        """The results, in order."""
        futures: list[Future[tuple[Any]]] = []
        if self._pool is not None:
            try:
                futures = [self._pool.submit(_call, argument) for argument in arguments]
            except BrokenProcessPool:  # a process was killed while it had nothing to do
                self._stop()
        if self._pool is None:
            return [self.compute(argument) for argument in arguments]
        deadline = time.monotonic() + PATIENCE
        results: list[Result] = []
        for future, argument in zip(futures, arguments, strict=True):
            done = _result(future, deadline)
            if done is not None:
                deadline = time.monotonic() + PATIENCE
            elif time.monotonic() >= deadline:
                self._stop()
            results.append(self.compute(argument) if done is None else done[0])
        return results

    def _stop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)


def _cores() -> int:
    """Cores that forked processes may use: on Linux, where a fork is safe enough."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def _begin() -> None:
    """What a forked process does first."""
    gc.freeze()  # what is here already stays: to look through it for garbage takes longer than many a trace
    torch.set_num_threads(1)  # the threads of the process it was forked from are not there
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # it does not outlive that, however that ends


_PR_SET_PDEATHSIG = 1
"""``linux/prctl.h``"""


def _call(argument: Any) -> tuple[Any]:
    return (_compute(argument),)


def _result(future: Future[tuple[Any]], deadline: float) -> tuple[Any] | None:
    """The result in a tuple, or None where there is none."""
    try:
        return future.result(timeout=max(0.0, deadline - time.monotonic()))
    except Exception:  # whatever it was comes again where it is computed again
        return None
