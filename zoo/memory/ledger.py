"""A ledger of storages: every tensor that comes alive or dies while code runs, with phase and category.

The ledger is a dispatch mode. It sees what every operation returns, counts each storage once, and notes its death
through a weak reference, so that what it reports is the bytes of tensors that are alive. It never looks at values
and works alike on real, fake and ``meta`` tensors.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.host import HOST, PINNED
from zoo.memory import memo
from zoo.memory.leaves import tensors_in
from zoo.memory.roofline import Cost, cost_of

OUTSIDE = "outside"
"""The phase of whatever runs outside a named one: building, loading."""

BESIDE = (HOST, PINNED)
"""Devices of storages that lie in the host's memory while an accelerator's is counted: they are another account."""


@dataclass
class Record:
    """What a ledger saw, as plain numbers that can be replayed.

    `sizes[i]` is the bytes of storage `i`. `events` lists ``+(i + 1)`` where it came alive and ``-(i + 1)`` where
    it died, in order; `marks` lists (position in `events`, phase) where a phase began, `cost_marks` the
    position in `costs` at the same moments. Bytes are those of the device; what lies `BESIDE` it is not among them
    (see `zoo.memory.allocator.on_host`). `inside` lists (position in `events`, bytes) where a kernel of the
    CPU may take so much in no tensor at all. `ended` is the phase after which nobody wanted to know more, or nothing.
    """

    sizes: list[int] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    marks: list[tuple[int, str]] = field(default_factory=lambda: [(0, OUTSIDE)])
    labels: dict[int, str] = field(default_factory=dict)
    costs: list[Cost] = field(default_factory=list)
    cost_marks: list[int] = field(default_factory=lambda: [0])
    inside: list[tuple[int, int]] = field(default_factory=list)
    ended: str = ""

    def deltas(self, sizes: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Signed bytes of every event, for other `sizes` where given."""
        events = np.asarray(self.events, dtype=np.int64)
        table = np.asarray(self.sizes, dtype=np.int64) if sizes is None else sizes
        if (beside := self.beside()).any():
            table = np.where(beside, 0, table)
        return np.sign(events) * table[np.abs(events) - 1] if len(events) else events

    def beside(self) -> NDArray[np.bool_]:
        """Which storages lie in the host's memory beside the device."""
        return np.fromiter((device in BESIDE for device in self.devices), dtype=bool, count=len(self.devices))

    def peaks(self, sizes: NDArray[np.int64] | None = None) -> dict[str, int]:
        """Most bytes alive at once in each phase, what was alive when it began included."""
        alive = np.concatenate([[0], np.cumsum(self.deltas(sizes))])
        peaks: dict[str, int] = defaultdict(int)
        for (start, phase), (end, _) in zip(self.marks, [*self.marks[1:], (len(self.events), "")], strict=True):
            peaks[phase] = max(peaks[phase], int(alive[start : end + 1].max()))
        return dict(peaks)

    def beyond(self) -> int:
        """Bytes by which what kernels may take `inside` exceeds the highest peak."""
        alive = np.concatenate([[0], np.cumsum(self.deltas())])
        return max(0, max((int(alive[at]) + amount for at, amount in self.inside), default=0) - int(alive.max()))

    def alive(self) -> int:
        """Bytes that are alive at the end."""
        return int(self.deltas().sum())

    def at_peak(self, sizes: NDArray[np.int64] | None = None) -> dict[str, int]:
        """Bytes by category at the first moment of the highest peak inside a named phase."""
        deltas = self.deltas(sizes)
        alive = np.cumsum(deltas)
        inside = np.zeros(len(alive), dtype=bool)
        for (start, phase), (end, _) in zip(self.marks, [*self.marks[1:], (len(self.events), "")], strict=True):
            inside[start:end] = phase != OUTSIDE
        if not inside.any():
            return {}
        top = int(np.argmax(np.where(inside, alive, -1)))
        held: dict[str, int] = defaultdict(int)
        for event, delta in zip(self.events[: top + 1], deltas[: top + 1], strict=True):
            held[self.labels.get(abs(event) - 1, "other")] += int(delta)
        return {category: amount for category, amount in sorted(held.items()) if amount}


ALIKE = 4096
"""Bytes by which peaks of two worlds may differ that are alike: constants that one of them copies to the device."""
CONSTANT = 1024
"""Bytes of the largest of those: the 256 numbers that 8-bit codes stand for."""


def alike(one: Record, other: Record) -> bool:
    """Whether two records are of the same storages and say the same of every phase, and of what kernels take beside."""
    (sizes, mine), (others_sizes, others) = (
        (Counter(size for size in record.sizes if size > CONSTANT), {**record.peaks(), "": record.beyond()})
        for record in (one, other)
    )
    same = bool(sizes) and sizes == others_sizes and mine.keys() == others.keys()
    return same and all(abs(mine[phase] - others[phase]) <= ALIKE for phase in mine)


NUMBER_OF = torch.ops.aten._local_scalar_dense.default
"""What ``tensor.item()`` is, and every question that a program asks a tensor."""


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages of everything that is computed while it is entered. Read `record` afterwards.

    Categories: storages born in the phases ``forward`` and ``backward`` are activations and temporaries until
    `label` gives them a better name. With `memoise`, operations on meta tensors are looked up instead of run again.
    """

    def __init__(self, *, count_costs: bool = True, memoise: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = Record()
        self._known: dict[weakref.ref[torch.UntypedStorage], int] = {}
        self._phase = OUTSIDE
        self._count_costs = count_costs
        self._memoise = memoise
        self._closed = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch.compile never meets a ledger; guarding every operation against it costs a third of a trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is NUMBER_OF and args[0].is_meta:
            return torch.zeros((), dtype=args[0].dtype).item()  # no values here: every question is answered with no
        return self._follow(memo.operation(func), args, kwargs or {})

    def _follow(self, known: memo.Operation, args: Any, kwargs: Any) -> Any:
        """Run an operation, and note what it makes and costs."""
        out, cost = self._run(known, args, kwargs)
        if type(out) is torch.Tensor:
            self._see(out)
        else:
            for tensor in tensors_in(out):
                self._see(tensor)
        if self._count_costs and self._phase != OUTSIDE and not known.view:
            self.record.costs.append(cost or cost_of(known.func, args, kwargs, out))
        return out

    def _run(self, known: memo.Operation, args: Any, kwargs: Any) -> tuple[Any, Cost | None]:
        """What an operation returns, and its cost where that is known."""
        return memo.run(known, args, kwargs) if self._memoise else (known.func(*args, **kwargs), None)

    def _see(self, tensor: torch.Tensor) -> int:
        """Index of the tensor's storage, counted now if it is new."""
        storage = tensor.untyped_storage()
        key = weakref.ref(storage, self._died)
        index = self._known.get(key)
        if index is None:
            index = len(self.record.sizes)
            self._known[key] = index
            self.record.sizes.append(storage.nbytes())
            self.record.devices.append("meta" if tensor.is_meta else tensor.device.type)
            self.record.events.append(index + 1)
            self.record.labels[index] = _BORN_AS.get(self._phase, "other")
        return index

    def _died(self, key: weakref.ref[torch.UntypedStorage]) -> None:
        index = self._known.pop(key, None)
        if index is not None and not self._closed:
            self.record.events.append(-(index + 1))

    def close(self) -> None:
        """Record nothing from here on: what dies with the model is of no interest."""
        self._closed = True

    def label(self, category: str, tensors: Iterable[torch.Tensor]) -> None:
        """Give the storages of `tensors` a category, counting those not seen yet."""
        for tensor in tensors:
            self.record.labels[self._see(tensor)] = category

    def relabel_alive(self, old: str, new: str) -> None:
        """Give every storage that is alive and called `old` the name `new`."""
        for index in self._known.values():
            if self.record.labels[index] == old:
                self.record.labels[index] = new

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Everything inside belongs to phase `name`."""
        before = self._phase
        self._enter(name)
        try:
            yield
        finally:
            self._enter(before)

    def _enter(self, name: str) -> None:
        self._phase = name
        self.record.marks.append((len(self.record.events), name))
        self.record.cost_marks.append(len(self.record.costs))


_BORN_AS = {"forward": "activations", "backward": "temporaries", "optimizer": "temporaries"}
