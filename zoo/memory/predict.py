"""What training any module will take of a GPU, told from a machine that has none.

    import torch
    from torch import nn, optim
    from zoo.memory import predict_peak

    class Training:
        def __init__(self, device):
            self.device = device
            with device:                                  # storage-free: the size of the model does not matter
                self.model = nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024))
            self.optimizer = optim.AdamW(self.model.parameters())

    def step(training, phase):
        x = torch.randn(64, 1024, device=training.device)
        with phase("forward"):
            loss = training.model(x).square().mean()
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            training.optimizer.step()
            training.optimizer.zero_grad()

    print(predict_peak(Training, step, "t4"))

`build` and `step` are run as they are, on tensors that have shape and type but no storage, with the kernels that the
device would choose (`zoo.memory.accelerator`); what they allocate and free is then replayed through a model of
PyTorch's caching allocator (`zoo.memory.allocator`). Values do not exist: a question put to one (``loss.item()``) is
answered with 0. What is left out: memory that libraries take beside PyTorch's allocator (NCCL, CUDA graphs), workspaces
of cuDNN's convolutions, ``torch.compile``, and ``torch.autocast``, which is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from zoo.errors import InputError
from zoo.memory.accelerator import Kind
from zoo.memory.allocator import LARGE_BUFFER, Peak, replay
from zoo.memory.devices import Device, find
from zoo.memory.ledger import BESIDE, OUTSIDE, Record
from zoo.memory.trace import follow, without_storage
from zoo.step import Phase
from zoo.units import format_bytes

Built = TypeVar("Built")

RESERVED_MARGIN = 0.08
"""What `interval` allows for in programs of others: the published runs differ by at most 6.2 % in reserved memory, by
0.3 % in allocated (``python -m tests.benchmarks.measured_gpus``)."""

PLAN_MARGIN = 0.04
"""The same for plans, whose loading and steps are our own: 2.1 % above to 1.7 % below was measured on an H200
(``python -m tests.benchmarks.gpu_memory``)."""

ASSUMED_CONTEXT = 744_685_568
"""Bytes of a CUDA context where none is known for the device: the largest in the published runs that predictions are
compared with (RTX A6000, torch 2.14; a T4 has 141 MiB)."""


CPU_MARGIN = 0.01
"""The same for tensors on the CPU: the worst of the measured runs is 0.65 % above what was predicted
(``python -m tests.benchmarks.cpu_memory``)."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of a device: in tensors (`allocated`), asked of its driver by PyTorch (`reserved`), held by the `process`.

    `interval` is where `process` lies; a budget has to hold its upper end. On the CPU all three are bytes in tensors.
    """

    allocated: int
    reserved: int
    process: int
    interval: tuple[int, int]

    @classmethod
    def of(
        cls,
        device: Device,
        allocated: int,
        reserved: int | None = None,
        *,
        margin: float = PLAN_MARGIN,
        inside: int = 0,
    ) -> Footprint:
        """With what the device's process holds beside PyTorch's memory. Without `reserved`, the least it can be.

        On a GPU `reserved` may be off by `margin`, relative, and by a segment of the allocator, which is much of
        little. On the CPU kernels may take `inside` bytes more than tensors.
        """
        reserved = allocated if reserved is None else reserved
        if device.vendor == "host":
            off = math.ceil(reserved * CPU_MARGIN)
            return cls(allocated, reserved, reserved, (reserved - off, reserved + max(off, inside)))
        context, off = context_of(device), math.ceil(reserved * margin) + LARGE_BUFFER
        return cls(
            allocated, reserved, reserved + context, (max(0, reserved - off) + context, reserved + off + context)
        )


def context_of(device: Device) -> int:
    """Bytes that a process holds of a device beside what PyTorch reserves."""
    if device.vendor == "host":
        return 0
    return ASSUMED_CONTEXT if device.context_bytes is None else device.context_bytes


@dataclass(frozen=True)
class Prediction:
    """Bytes that training takes of a device.

    `allocated` and `reserved` are what ``torch.cuda.max_memory_allocated()`` and ``max_memory_reserved()`` will say,
    `process` what ``nvidia-smi`` shows: reserved memory and the context of the device. `phase` is where `allocated` is
    reached, `phases` has the peaks of each in the last step, `building` those of `build`, `resident`
    is what is allocated before the first step, `categories` who holds the
    blocks at that moment, `host` the most bytes in tensors of the CPU. `interval` is where `process` lies.
    """

    device: str
    allocated: int
    reserved: int
    process: int
    interval: tuple[int, int]
    phase: str
    phases: Mapping[str, Peak]
    building: Peak
    resident: int
    categories: Mapping[str, int]
    host: int
    fits: bool

    def __str__(self) -> str:
        lines = [
            f"{self.device}: allocated {format_bytes(self.allocated)}, reserved {format_bytes(self.reserved)}, "
            f"process {format_bytes(self.process)} ({format_bytes(self.interval[0])} to "
            f"{format_bytes(self.interval[1])}), {'fits' if self.fits else 'does not fit'}",
            *(
                f"  {name}: allocated {format_bytes(peak.allocated)}, reserved {format_bytes(peak.reserved)}"
                for name, peak in self.phases.items()
            ),
            f"  at the peak ({self.phase}): "
            + ", ".join(f"{name} {format_bytes(size)}" for name, size in self.categories.items()),
        ]
        return "\n".join(lines)


def predict_peak(
    build: Callable[[torch.device], Built],
    step: Callable[[Built, Phase], object],
    device: Device | str,
    *,
    steps: int = 2,
    limit: int | None = None,
    expandable_segments: bool = False,
) -> Prediction:
    """What ``built = build(device)`` and `steps` times ``step(built, phase)`` allocate on a GPU.

    `step` enters ``phase("forward")`` and the like around its parts; names are free. `device` is a `Device` or its
    name (``"t4"``, ``"a100-80gb"``). Peaks are those of the last step, so that states which the first one makes are
    there. With `limit` (bytes that PyTorch may reserve) the allocator gives cached memory back as it does when a device
    is full. Raises `InputError` for a device that is no GPU, a step that enters no phase, or autocast, and `DoesNotFit`
    beyond `limit`.
    """
    target = find(device) if isinstance(device, str) else device
    if target.vendor == "host":
        raise InputError(f'predict_peak: device "{target.name}" is no GPU; name one, for example "t4" or "a100-80gb"')
    if steps < 1:
        raise InputError(f"predict_peak: steps is {steps}; at least 1 is needed")
    kind = Kind.of(target)
    begun = 0
    with without_storage("accelerator", kind=kind) as (stand_in, ledger):

        def counted(built: Built, phase: Phase) -> None:
            nonlocal begun
            begun = len(ledger.record.events)
            step(built, phase)

        follow(ledger, stand_in, build, counted, modules_of, steps=steps)
    record = ledger.record
    played = replay(record, limit=limit, expandable=expandable_segments, since=begun)
    whole = replay(record, limit=limit, expandable=expandable_segments).phases
    phases = {name: peak for name, peak in played.phases.items() if name != OUTSIDE}
    if not phases:
        raise InputError('predict_peak: step entered no phase; write `with phase("forward"): ...` around its parts')
    phase = max(phases, key=lambda name: phases[name].allocated)
    reserved = max(peak.reserved for peak in phases.values())
    footprint = Footprint.of(target, phases[phase].allocated, reserved, margin=RESERVED_MARGIN)
    return Prediction(
        device=target.name,
        allocated=footprint.allocated,
        reserved=footprint.reserved,
        process=footprint.process,
        interval=footprint.interval,
        phase=phase,
        phases=phases,
        building=whole[OUTSIDE],
        resident=played.resident,
        categories=played.categories,
        host=_host_peak(record),
        fits=footprint.interval[1] <= target.memory_bytes,
    )


def modules_of(built: object) -> Iterator[nn.Module]:
    """Modules that an object is, or holds as attribute, member or value."""
    held: list[Any] = [built]
    if isinstance(built, Mapping):
        held += built.values()
    elif isinstance(built, (tuple, list)):
        held += built
    elif not isinstance(built, nn.Module):
        held += getattr(built, "__dict__", {}).values()
    yield from (thing for thing in held if isinstance(thing, nn.Module))


def _host_peak(record: Record) -> int:
    alive = top = 0
    for event in record.events:
        index = abs(event) - 1
        if event and record.devices[index] in ("cpu", *BESIDE):
            alive += record.sizes[index] if event > 0 else -record.sizes[index]
            top = max(top, alive)
    return top
