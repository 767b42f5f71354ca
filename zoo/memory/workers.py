"""Many small computations on all cores, by processes that share what is already imported.

Traces are Python code, which one process runs one at a time, and importing what they need takes longer than tracing. A
forked process has everything imported from its first moment. Each has a pipe of its own, so that any of them can be
killed at any moment, in the middle of its work too, without a lock that another waits for.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import torch

Argument = TypeVar("Argument")
Result = TypeVar("Result")

MOST = 8
"""Processes at most: beyond, starting them takes as long as they save."""

PATIENCE = 60.0
"""Seconds without any result after which the processes are given up: a fork can inherit a lock that nobody opens."""


@dataclass
class _Process:
    """A forked process, and what it is computing, if anything."""

    process: BaseProcess
    pipe: Connection
    asked: Any = None
    busy: bool = False

    def ask(self, argument: Any) -> None:
        """Raises `OSError` where the process is no more."""
        self.pipe.send(argument)
        self.asked, self.busy = argument, True

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Workers(Generic[Argument, Result]):
    """A function of one argument that can be hashed, computed by as many forked processes as there are cores.

    What they cannot compute (one was killed, a result cannot be pickled, autograd refuses to run after a fork where it
    has run before) is computed here, so that an exception is raised here too. Elsewhere than on Linux, and with one
    core, everything is. They are killed where this is left, whatever they are doing.
    """

    def __init__(self, compute: Callable[[Argument], Result]) -> None:
        self.compute = compute
        self._count = min(_cores(), MOST)
        self._processes: list[_Process] | None = None
        self._done: dict[Argument, tuple[Result] | None] = {}

    def __enter__(self) -> Workers[Argument, Result]:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes or ():
            process.end()
        self._processes = []

    def map(self, arguments: Sequence[Argument], ahead: Iterable[Argument] = ()) -> list[Result]:
        """The results, in order. Processes that have nothing else to do begin with what may be asked next, `ahead`."""
        if not arguments or self._count < 2:
            return [self.compute(argument) for argument in arguments]
        if self._processes is None:  # they are forked late, with all that has been imported by then
            self._processes = []
            self._fork()
        known = {*self._done, *(process.asked for process in self._processes if process.busy)}
        waiting = deque(a for a in dict.fromkeys((*arguments, *ahead)) if a not in known)
        needed = set(arguments)
        while self._processes and not needed <= self._done.keys():
            self._hand_out(waiting)
            self._collect()
        done = {argument: self._done.pop(argument, None) for argument in needed}
        return [self.compute(a) if (found := done[a]) is None else found[0] for a in arguments]

    def _fork(self) -> None:
        """Make as many processes as there are cores, or as the system has room for."""
        assert self._processes is not None
        # An exception that Ctrl-C raised inside a fork would be lost.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(self._count):
                self._processes.append(_fork(self.compute))
        except (OSError, AssertionError):  # no room; or this is a process that may have none
            pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _hand_out(self, waiting: deque[Argument]) -> None:
        for process in [process for process in self._processes or () if not process.busy]:
            if not waiting:
                return
            try:
                process.ask(waiting[0])
            except OSError:  # it was killed while it had nothing to do
                self._give_up(process)
            except Exception:  # what cannot be pickled is for this process to compute
                self._done[waiting.popleft()] = None
            else:
                waiting.popleft()

    def _collect(self) -> None:
        """Wait for results, and take them."""
        busy = {process.pipe: process for process in self._processes or () if process.busy}
        ready = wait(list(busy), PATIENCE) if busy else []
        for process in [] if ready else list(busy.values()):
            self._give_up(process)
        for pipe in ready:
            process = busy[pipe]  # type: ignore[index]
            try:
                self._done[process.asked] = process.pipe.recv()
                process.busy = False
            except Exception:  # it was killed, or what it sent cannot be read
                self._give_up(process)

    def _give_up(self, process: _Process) -> None:
        """Without a process; what it was asked is not known."""
        if process.busy:
            self._done[process.asked] = None
        process.end()
        assert self._processes is not None
        self._processes.remove(process)


def _cores() -> int:
    """Cores that forked processes may use: on Linux, where a fork is safe enough."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def _fork(compute: Callable[[Any], Any]) -> _Process:
    context = get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(compute, here, there), daemon=True)
    try:
        process.start()
    except BaseException:
        here.close()
        raise
    finally:
        there.close()
    return _Process(process, here)


def _serve(compute: Callable[[Any], Any], asking: Connection, pipe: Connection) -> None:
    """What a forked process does: answer in a tuple, or with None where there is no answer."""
    asking.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    gc.freeze()  # what is here already stays: to look through it for garbage takes longer than many a trace
    torch.set_num_threads(1)  # the threads of the process it was forked from are not there
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # it does not outlive that, however that ends
    while True:
        try:
            argument = pipe.recv()
        except EOFError:  # nobody will ask again
            return
        try:
            answer = pickle.dumps((compute(argument),))
        except Exception:  # whatever it was comes again where it is computed again
            answer = pickle.dumps(None)
        pipe.send_bytes(answer)


_PR_SET_PDEATHSIG = 1
"""``linux/prctl.h``"""
