"""AdamW with 8-bit states, from bitsandbytes, also on tensors without storage.

On a CPU the library steps in Python, with fp32 temporaries of one parameter; on an accelerator one kernel does it in
place. What happens inside an operation is not seen from outside: without storage the library's own Python is run
in place of the CPU's operation; the kernel's place is taken by the operation itself, which there does nothing.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from zoo.techniques._imports import quietly


def missing() -> str | None:
    """Why there are no 8-bit optimizers here, or None."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return 'bitsandbytes is not installed; run pip install "science-zoo[quantization]"'
    return None


def adamw_8bit(groups: Sequence[dict[str, Any]], *, lr: float) -> torch.optim.Optimizer:
    """`bitsandbytes.optim.AdamW8bit` over `groups`, with the library's defaults.

    Parameters of fewer than 4096 elements have fp32 states.
    """
    optimizer = _optimizer_class()
    with _disable_current_modes():  # it makes the table of the 256 numbers, which needs values
        made: torch.optim.Optimizer = optimizer(list(groups), lr=lr)
    return made


@functools.cache
def _optimizer_class() -> Any:
    library = quietly("bitsandbytes")

    class AdamW8bit(library.optim.AdamW8bit):  # type: ignore[misc,name-defined]
        """The library's, which can also be stepped without storage."""

        def update_step(self, group: Any, p: torch.Tensor, gindex: int, pindex: int) -> None:
            with _without_storage(p):
                super().update_step(group, p, gindex, pindex)

    return AdamW8bit


@contextlib.contextmanager
def _without_storage(p: torch.Tensor) -> Iterator[None]:
    """While entered, steps of a parameter without storage allocate what those of a real one do."""
    if not isinstance(p, FakeTensor) and p.device.type != "meta":
        yield
        return
    functional: Any = importlib.import_module("bitsandbytes.functional")
    cpu: Any = importlib.import_module("bitsandbytes.backends.cpu.ops")
    kernels: Any = torch.ops.bitsandbytes
    on_accelerator = _has_accelerator_kernels(p.device)
    blockwise = kernels.optimizer_update_8bit_blockwise if on_accelerator else cpu._optimizer_update_8bit_blockwise_cpu
    in_32_bits = kernels.optimizer_update_32bit if on_accelerator else cpu._optimizer_update_32bit_cpu

    def update_32bit(
        name: str, g: Any, p: Any, state1: Any, beta1: float, eps: float, step: int, lr: float,
        state2: Any = None, beta2: float = 0.0, beta3: float = 0.0, alpha: float = 0.0, weight_decay: float = 0.0,
        gnorm_scale: float = 1.0, unorm_vec: Any = None, max_unorm: float = 0.0, skip_zeros: bool = False,
    ) -> None:  # fmt: skip
        """The library's function of this name, whose order of arguments is not the operation's."""
        in_32_bits(
            name, g, p, state1, state2, unorm_vec, max_unorm, 0.0, beta1, beta2, beta3, alpha, eps, weight_decay,
            step, lr, gnorm_scale, skip_zeros,
        )  # fmt: skip

    with (
        mock.patch.object(functional, "optimizer_update_32bit", update_32bit),
        mock.patch.object(functional, "optimizer_update_8bit_blockwise", blockwise),
    ):
        yield


def _has_accelerator_kernels(device: torch.device) -> bool:
    """Whether a tensor of `device` is stepped as on an accelerator; ``meta`` is where it stands in for one.

    PyTorch's own list of devices that have kernels over lists of tensors tells: the CPU is not on it, and a trace
    for an accelerator puts ``meta`` there.
    """
    lists: Any = importlib.import_module("torch.utils._foreach_utils")
    return device.type in lists._get_foreach_kernels_supported_devices()
