"""Going on when a device runs out of memory in spite of the plan: the same step again in smaller micro-batches.

What a GPU does by itself is done on the CPU by a `Guard`: an allocation beyond the budget raises the error that
CUDA would raise, so that a budget is kept, and what follows is the same.
"""

from __future__ import annotations

import contextlib
import gc
import os
import traceback
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.domain import Batch
from zoo.memory.allocator import SETTINGS
from zoo.memory.leaves import tensors_in
from zoo.memory.trace import as_autograd_does
from zoo.step import Setup, StepResult, train_step
from zoo.training.state import random_state, set_random_state
from zoo.units import format_bytes


class Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises `torch.OutOfMemoryError` for an operation whose results would not fit `limit` bytes beside what is alive.

    `held` are the tensors that are alive when it is entered; it counts every storage once.
    """

    def __init__(self, limit: int, held: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit = limit
        self.alive = 0
        self._known: dict[weakref.ref[torch.UntypedStorage], int] = {}
        for tensor in held:
            self._see(tensor)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = as_autograd_does(func, args, kwargs)(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            self._see(tensor)
        if self.alive > self.limit:
            raise torch.OutOfMemoryError(
                f"{func} would hold {format_bytes(self.alive)} of a budget of {format_bytes(self.limit)}"
            )
        return out

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = weakref.ref(storage, self._died)
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.alive += storage.nbytes()

    def _died(self, key: weakref.ref[torch.UntypedStorage]) -> None:
        self.alive -= self._known.pop(key, 0)


@contextlib.contextmanager
def within(device: torch.device, limit: int, *, growing: bool) -> Iterator[None]:
    """While entered, PyTorch asks for at most `limit` bytes of a GPU: beyond, it gives back what it has cached, and
    then runs out of memory as it would on a smaller one. On a CPU a `Guard` keeps the budget.

    `growing`: in segments that grow.
    """
    if device.type != "cuda":
        yield
        return
    gc.collect()  # what earlier work has left would count
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0, limit) / whole), device.index)
    _segments(growing)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device.index)
        _segments(False)


def _segments(growing: bool) -> None:
    if not any(name in os.environ for name in SETTINGS):
        torch._C._accelerator_setAllocatorSettings(f"expandable_segments:{growing}")


@dataclass(frozen=True)
class RanOut:
    """Where a step ran out of memory: its phase, what was said, and whether weights may have changed before."""

    phase: str
    error: str
    weights_changed: bool


def attempt(setup: Setup, batch: Sequence[Batch], limit: int | None) -> StepResult | RanOut:
    """One step; when memory runs out, nothing of it is left but what `RanOut` tells, and random numbers are as before.

    With `limit` (bytes) the device is a CPU that must not hold more.
    """
    numbers = random_state()
    versions = _versions(setup)
    outer, now = setup.phase, "forward"

    @contextlib.contextmanager
    def phase(name: str) -> Iterator[None]:
        nonlocal now
        now = name
        with outer(name):
            yield

    guard = contextlib.nullcontext() if limit is None else Guard(limit, _held(setup, batch))
    setup.phase = phase
    try:
        with guard:
            return train_step(setup, batch)
    except torch.OutOfMemoryError as error:
        said = str(error).split("\n")[0]
        for frame, _ in traceback.walk_tb(error.__traceback__):  # the frames of the step keep its activations alive
            with contextlib.suppress(RuntimeError):
                frame.clear()
    finally:
        setup.phase = outer
    for parameter in setup.model.parameters():
        parameter.grad = None
    gc.collect()
    if setup.device.type == "cuda":
        torch.cuda.empty_cache()
    changed = now == "optimizer" or _versions(setup) != versions
    set_random_state(numbers)
    return RanOut(now, said, changed)


def _held(setup: Setup, batch: Sequence[Batch]) -> list[torch.Tensor]:
    assert setup.optimizer is not None
    inputs = [(micro.inputs, micro.targets) for micro in batch]
    return [
        *setup.model.parameters(), *setup.model.buffers(), *tensors_in(setup.optimizer.state_dict()),
        *tensors_in(inputs),
    ]  # fmt: skip


def _versions(setup: Setup) -> list[int]:
    """Counts of the changes in place that each trained parameter has seen."""
    return [parameter._version for parameter in setup.trainable().values()]
