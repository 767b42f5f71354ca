"""Values of the few small tensors whose contents decide what a program does next.

Without storage every question to a tensor (``if mask.all(): ...``) would be answered with no, and a model would take
another way than it takes on a device: Hugging Face's decoders, for one, ask whether position numbers ascend, and build
a mask where they do not. Positions, masks and token numbers are small, and follow from constants: their operations are
run a second time on real tensors of the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from zoo.memory.leaves import tensors_in
from zoo.memory.memo import Operation

_CPU = torch.device("cpu")
LARGEST = 2**15
"""Elements of the largest tensor that is followed: torch computes so few without waking other threads."""


class Values:
    """The known values of ``meta`` tensors."""

    def __init__(self) -> None:
        self._known: Any = WeakTensorKeyDictionary()
        self._ever: set[int] = set()

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The tensor's values, where they are known."""
        found: torch.Tensor | None = self._known.get(tensor)
        return found

    def follow(self, known: Operation, args: Any, kwargs: Any, out: Any) -> None:
        """Note what an operation that returned `out` does to values."""
        func = known.func
        if args and isinstance(first := args[0], torch.Tensor) and id(first) not in self._ever and not first.is_cpu:
            return  # its values are not known, nor ever were, and that is nearly every tensor
        inputs = tensors_in(args, kwargs)
        if not inputs and known.name not in _FACTORIES:
            return
        for tensor in inputs:
            if not tensor.is_cpu and (id(tensor) not in self._ever or tensor not in self._known):
                if known.mutable:
                    self._forget(args[0])
                return
        outputs = tensors_in(out)
        small = all(t.numel() <= LARGEST for t in outputs)
        if not small or not any(t.device.type == "meta" for t in outputs):
            return
        try:
            with _disable_current_modes():
                real = self._run(func, args, kwargs)
        except (RuntimeError, NotImplementedError):
            if known.mutable:
                self._forget(args[0])
            return
        for made, value in zip(outputs, tensors_in(real), strict=True):
            if made.device.type == "meta":
                self._known[made] = value
                self._ever.add(id(made))

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = self._real(args), self._real(kwargs)
        if not func._schema.name.startswith("aten::rand"):
            return func(*args, **kwargs)
        state = torch.get_rng_state()  # tracing leaves no trace in the caller's random numbers
        try:
            return func(*args, **kwargs)
        finally:
            torch.set_rng_state(state)

    def _real(self, value: Any) -> Any:
        """Arguments of an operation with known values for tensors, and the CPU for every device."""
        if isinstance(value, torch.Tensor):
            return self._known.get(value, value)
        if isinstance(value, torch.device):
            return _CPU
        if isinstance(value, (tuple, list)):
            return type(value)(self._real(member) for member in value)
        if isinstance(value, dict):
            return {key: self._real(member) for key, member in value.items()}
        return value

    def _forget(self, changed: Any) -> None:
        for tensor in tensors_in(changed):
            if id(tensor) in self._ever and tensor in self._known:
                storage = tensor.untyped_storage()._cdata
                for other in [t for t in self._known if t.untyped_storage()._cdata == storage]:
                    del self._known[other]


_FACTORIES = frozenset(
    f"aten::{name}" for name in ("arange", "zeros", "ones", "full", "scalar_tensor", "linspace", "randint", "eye")
)
"""Operations without tensors among their arguments that make numbers which mean something."""
