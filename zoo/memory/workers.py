"""Many small computations on all cores, by processes that share what is already imported.

Traces are Python code, which one process runs one at a time, and importing what they need takes longer than tracing. A
forked process has everything imported from its first moment.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

MOST = 8
"""Processes at most: beyond, starting them takes as long as they save."""

LEAST = 10.0
PATIENCE = 10
"""How long this process waits for another when its own work is done: so many seconds, and so many times as long as it
worked itself. A fork can inherit a lock that nobody will open."""


def spread(compute: Callable[[int], Result], count: int) -> list[Result]:
    """``[compute(0), ..., compute(count - 1)]``, by this process and as many forked ones as there are other cores.

    What a forked process could not compute (it was killed, its result cannot be pickled; autograd refuses to run after
    a fork where it has run before) is computed here, so that an exception is raised here too. Only on Linux are
    processes forked.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    begun = time.monotonic()
    results: dict[int, Result] = {}
    with contextlib.ExitStack() as stack:
        queue = _Queue(count)
        stack.callback(queue.close)
        helpers = [stack.enter_context(_forked(queue, compute)) for _ in range(min(cores, MOST, count) - 1)]
        while (index := queue.take()) is not None:
            results[index] = compute(index)
        deadline = time.monotonic() + LEAST + PATIENCE * (time.monotonic() - begun)
        for helper in helpers:
            results |= _received(helper, deadline)
    return [results[i] if i in results else compute(i) for i in range(count)]


class _Queue:
    """Numbers that processes take one by one: a pipe, from which the kernel hands each number to one reader."""

    WIDTH = 2

    def __init__(self, count: int) -> None:
        self._read, write = os.pipe()
        os.write(write, b"".join(i.to_bytes(self.WIDTH) for i in range(count)))
        os.close(write)

    def take(self) -> int | None:
        taken = os.read(self._read, self.WIDTH)
        return int.from_bytes(taken) if taken else None

    def close(self) -> None:
        os.close(self._read)


@contextlib.contextmanager
def _forked(queue: _Queue, compute: Callable[[int], Any]) -> Iterator[int]:
    """A process that computes what it takes from the queue. Yields where to read its results; ends it at the end."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            _work(queue, compute, write)
        finally:
            os._exit(0)
    os.close(write)
    try:
        yield read
    finally:
        os.close(read)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def _work(queue: _Queue, compute: Callable[[int], Any], write: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)  # the threads of the process it was forked from are not there
    results: dict[int, bytes] = {}
    while (index := queue.take()) is not None:
        with contextlib.suppress(Exception):  # computed once more, and raised, where it was asked for
            results[index] = pickle.dumps(compute(index))
    with open(write, "wb") as out:
        pickle.dump(results, out)


def _received(read: int, deadline: float) -> dict[int, Any]:
    content = b""
    while select.select([read], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(read, 1 << 16)
        if not part:
            return {index: pickle.loads(result) for index, result in pickle.loads(content).items()} if content else {}
        content += part
    return {}
