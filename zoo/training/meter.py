"""Measuring what training really allocates, independently of the ledger that predicted it.

On the CPU: the memory events of torch's profiler, summed; every tensor that torch allocates from the start of the
meter on is in them. On CUDA: the caching allocator's own peak. Both give the most bytes alive in each phase.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.autograd.profiler import profile, record_function

from zoo.step import PHASES

_MARK = "zoo."


class Meter(Protocol):
    """Started before the model is built, stopped after the steps that are measured.

    `reserved` is the most that an allocator has asked of its device, 0 where nothing is kept.
    """

    reserved: int

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]: ...
    def stop(self) -> dict[str, int]: ...


class CpuMeter:
    """Peaks by phase from the profiler's memory events."""

    reserved = 0

    def __init__(self) -> None:
        self._peaks: dict[str, int] | None = None
        gc.collect()  # what dies of earlier work while the meter runs would be counted as freed here
        self._profile = profile(profile_memory=True)
        with _quiet():
            self._profile.__enter__()  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with record_function(_MARK + name):
            yield

    def stop(self) -> dict[str, int]:
        """Most bytes alive in each phase since the start. Stopping again gives the same numbers."""
        if self._peaks is not None:
            return self._peaks
        with _quiet():
            self._profile.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        changes: list[tuple[int, int]] = []
        phases: list[tuple[int, int, str]] = []
        results: Any = self._profile.kineto_results
        for event in results.events():
            name = event.name()
            if name == "[memory]":
                changes.append((event.start_ns(), event.nbytes()))
            elif name.startswith(_MARK):
                phases.append((event.start_ns(), event.start_ns() + event.duration_ns(), name.removeprefix(_MARK)))
        changes.sort(key=lambda change: change[0])
        times = np.array([time for time, _ in changes])
        alive = np.concatenate([[0], np.cumsum([size for _, size in changes])])
        peaks: dict[str, int] = defaultdict(int)
        for start, end, name in phases:
            first, last = np.searchsorted(times, [start, end])
            peaks[name] = max(peaks[name], int(alive[first : last + 1].max()))
        self._peaks = dict(peaks)
        return self._peaks


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The profiler's library announces its start and stop on standard error, whatever its log level."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


class CudaMeter:
    """Peaks by phase from the caching allocator."""

    def __init__(self) -> None:
        self.reserved = 0
        self._peaks: dict[str, int] = defaultdict(int)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        torch.cuda.reset_peak_memory_stats()
        try:
            yield
        finally:
            self._peaks[name] = max(self._peaks[name], torch.cuda.max_memory_allocated())
            self.reserved = max(self.reserved, torch.cuda.max_memory_reserved())

    def stop(self) -> dict[str, int]:
        return dict(self._peaks)


def meter_for(device: torch.device) -> Meter:
    return CudaMeter() if device.type == "cuda" else CpuMeter()


def with_peak(by_phase: dict[str, int]) -> dict[str, int]:
    """``{"peak": ..., "forward": ..., "backward": ..., "optimizer": ...}`` in bytes."""
    return {"peak": max(by_phase.values(), default=0), **{phase: by_phase.get(phase, 0) for phase in PHASES}}
