"""What an accelerator allocates where it differs from storage-free tensors.

A trace on ``meta`` tensors runs the operations that a CPU would. An accelerator runs others in a few places, and inside
some of its kernels it allocates what no operation returns. Both are stated here, each with its source; paths
are those of PyTorch's repository, read at versions 2.9 to 2.13.

- `semantics` replaces operations that decompose differently (attention, softmax, dropout) by the ones that the
  accelerator runs. It does so in PyTorch's dispatcher, so that it does not matter by which name a model calls them.
- `zoo.memory.kernels` lists what a kernel allocates and frees again while it runs.
- `workspace_bytes` is what the matrix library keeps from its first product on, for each thread that multiplies.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from zoo.errors import InputError
from zoo.memory.devices import Device
from zoo.units import KIB, MIB

aten: Any = torch.ops.aten

# https://developer.nvidia.com/cuda-gpus: compute capability, major * 10 + minor.
_CAPABILITIES = {
    "p100": 60, "v100": 70, "t4": 75, "rtx-20": 75, "rtx-30": 86, "rtx-a6000": 86, "a10": 86, "a10g": 86, "a30": 80,
    "a40": 86, "a100": 80, "rtx-40": 89, "rtx-6000-ada": 89, "l4": 89, "l40s": 89, "h100": 90, "h200": 90, "gh200": 90,
    "rtx-50": 120, "b200": 100,
}  # fmt: skip

_FOREACH = "_get_foreach_kernels_supported_devices"
_FUSED = "_get_fused_kernels_supported_devices"


@dataclass(frozen=True)
class Kind:
    """What decides which kernels an accelerator runs: its compute capability (75 for 7.5), whether it is AMD's, and the
    number of its multiprocessors."""

    capability: int = 80
    amd: bool = False
    multiprocessors: int = 108

    @property
    def threads_per_multiprocessor(self) -> int:
        """CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""
        return 1024 if self.capability == 75 else 1536 if self.capability in (86, 89, 120) else 2048

    @classmethod
    def of(cls, device: Device) -> Kind:
        """The kind of a device. One that is not in the table counts as the oldest with the arithmetic that it has."""
        if device.vendor == "amd":
            return cls(90, True, device.multiprocessors)
        keys = [key for key in _CAPABILITIES if device.name == key or device.name.startswith(key)]
        oldest = 80 if device.bf16 is not None else 70
        capability = _CAPABILITIES[max(keys, key=len)] if keys else oldest
        return cls(capability, False, device.multiprocessors)

    @property
    def workspace_bytes(self) -> int:
        """What cuBLAS gets per handle: 8.125 MiB, on Hopper and data-centre Blackwell 32 MiB.

        ``aten/src/ATen/cuda/CublasHandlePool.cpp``, ``parseChosenWorkspaceSize``: ``:4096:2:16:8``, on capability
        9.0 and 10.0 4096 * 8 KiB; on AMD's gfx94 128 MiB; or what ``CUBLAS_WORKSPACE_CONFIG`` says. cuBLASLt (products
        with a bias) shares it (``TORCH_CUBLASLT_UNIFIED_WORKSPACE``, the default of open-source builds).
        """
        if self.amd:
            return 128 * MIB
        if chosen := os.environ.get("CUBLAS_WORKSPACE_CONFIG"):
            return sum(int(size) * int(count) * KIB for size, count in re.findall(r":(\d+):(\d+)", chosen))
        return 4096 * 8 * KIB if self.capability in (90, 100) else (2 * 4096 + 8 * 16) * KIB


# --------------------------------------------------------------------------------------------------- which operations


@contextlib.contextmanager
def semantics(kind: Kind) -> Iterator[None]:
    """While entered, ``meta`` tensors run the operations that an accelerator of this kind runs.

    Raises `InputError` under autocast, whose casts happen on real devices only.
    """

    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        return _attention(kind, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)

    if torch.is_autocast_enabled("cuda"):
        raise InputError(_AUTOCAST)
    with contextlib.ExitStack() as stack:
        for module in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
            owner: Any = importlib.import_module(module)
            for name in (_FOREACH, _FUSED):
                if hasattr(owner, name):  # meta stands in for a device that has these kernels
                    kinds = [*getattr(owner, name)(), "meta"]
                    stack.enter_context(mock.patch.object(owner, name, return_value=kinds))
        autocast = torch.amp.autocast_mode.autocast
        stack.enter_context(mock.patch.object(autocast, "__init__", _no_autocast(autocast.__init__)))
        library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
        stack.callback(library._destroy)
        library.impl("scaled_dot_product_attention", attention, "AutogradMeta")
        library.impl("softmax.int", _softmax, "AutogradMeta")
        library.impl("log_softmax.int", _log_softmax, "AutogradMeta")
        library.impl("dropout", _dropout, "AutogradMeta")
        yield


def _softmax(x: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Half to float in one kernel (``aten/src/ATen/native/SoftMax.cpp``, ``softmax``); bfloat16 is converted before."""
    fused = x.dtype == torch.float16 and dtype == torch.float32
    out: torch.Tensor = aten._softmax(x if fused or dtype is None else x.to(dtype), dim, fused)
    return out


def _log_softmax(x: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """As `_softmax`; same file, ``log_softmax``."""
    fused = x.dtype == torch.float16 and dtype == torch.float32
    out: torch.Tensor = aten._log_softmax(x if fused or dtype is None else x.to(dtype), dim, fused)
    return out


def _dropout(x: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    """One kernel that returns a mask of booleans, and nothing at all for p = 0.

    ``aten/src/ATen/native/Dropout.cpp``, ``is_fused_kernel_acceptable``.
    """
    if p == 0 or not train or x.numel() == 0:
        return x
    if p == 1:
        return x * torch.zeros((), dtype=x.dtype, device=x.device)
    out: torch.Tensor = aten.native_dropout(x, p, train)[0]
    return out


def _attention(
    kind: Kind,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
    grouped: bool,
) -> torch.Tensor:
    """The kernel that CUDA chooses (``transformers/attention.cpp``, ``scaled_dot_product_attention``)."""
    backend = attention_backend(kind, query, key, value, mask, dropout, causal, grouped)
    if mask is not None and mask.dtype == torch.bool:
        # convert_boolean_attn_mask: an additive mask of the query's type, as large as the boolean one
        mask = torch.where(mask, 0.0, torch.full((), -math.inf, dtype=query.dtype, device=query.device))
    out: torch.Tensor
    if backend == "flash":
        # pad_last_dim<8>: the head dimension is a multiple of 8
        width = query.shape[-1]
        if extra := -width % 8:
            query, key, value = (torch.nn.functional.pad(t, (0, extra)) for t in (query, key, value))
            scale = scale or 1 / math.sqrt(width)
        out = aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, False, scale=scale)[0]
        return out[..., :width] if extra else out
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if backend == "cudnn":
        out = aten._scaled_dot_product_cudnn_attention(
            query, key, value, mask, learns, dropout, causal, False, scale=scale
        )[0]
        return out
    if backend == "efficient":
        if mask is not None:
            mask = _aligned(mask).expand(*query.shape[:3], key.shape[2])
        out = aten._scaled_dot_product_efficient_attention(
            query, key, value, mask, learns, dropout, causal, scale=scale
        )[0]
        return out
    out = aten._scaled_dot_product_attention_math(
        query, key, value, mask, dropout, causal, None, scale=scale, enable_gqa=grouped
    )[0]
    return out


def attention_backend(
    kind: Kind,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    causal: bool,
    grouped: bool,
) -> str:
    """``cudnn``, ``flash``, ``efficient`` or ``math``: the first that may run, in CUDA's order of preference.

    ``aten/src/ATen/native/transformers/cuda/sdp_utils.cpp``, ``can_use_cudnn_attention``, ``can_use_flash_attention``
    and ``can_use_mem_efficient_attention``; ``torch.nn.attention.sdpa_kernel`` is obeyed. Hopper and data-centre
    Blackwell prefer cuDNN's kernel (``check_prefer_cudnn_attention``, with cuDNN 9.15.1), which does not give the same
    numbers every time.
    """
    allowed: Any = torch.backends.cuda
    plain = query.ndim == 4 and query.dtype == key.dtype == value.dtype and query.numel() > 0
    same_heads = plain and query.shape[1] == key.shape[1] == value.shape[1]
    halves = (torch.float16, torch.bfloat16)
    widths = {query.shape[-1], value.shape[-1]}
    if (
        kind.capability in (90, 100)
        and not kind.amd
        and not torch.are_deterministic_algorithms_enabled()
        and allowed.cudnn_sdp_enabled()
        and plain
        and (same_heads or grouped)
        and query.dtype in halves
        and all(width <= 128 and width % 8 == 0 for width in widths)
        and (dropout * 16).is_integer()
        and key.shape[2] > 1
        and (dropout == 0 or query.shape[2] > 1)
    ):
        return "cudnn"
    if (
        allowed.flash_sdp_enabled()
        and plain
        and (same_heads or grouped)
        and query.dtype in halves
        and mask is None
        and kind.capability >= 80
        and query.shape[-1] <= 256
        and query.shape[-1] == value.shape[-1]
        and not (causal and query.shape[2] != key.shape[2])
    ):
        return "flash"
    types = (torch.float32, *halves) if kind.capability >= 80 else (torch.float32, torch.float16)
    step = 16 // query.element_size() if kind.capability >= 80 or query.dtype in halves else 1
    aligned = all(width % step == 0 for width in widths)
    if allowed.mem_efficient_sdp_enabled() and same_heads and not grouped and query.dtype in types and aligned:
        return "efficient"
    return "math"


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    """A mask whose rows begin at multiples of 8 elements, padded where they do not (``preprocess_mask``)."""
    if all(stride % 8 == 0 for stride in mask.stride()[:-1]) and mask.stride(-1) == 1:
        return mask
    width = mask.shape[-1]
    return torch.nn.functional.pad(mask, (0, 8 - width % 8))[..., :width]


# ------------------------------------------------------------------------------------------------- what is refused

NOT_REPRODUCIBLE = frozenset(
    f"aten::{name}"
    for line in (
        "nll_loss2d_forward nll_loss2d_backward avg_pool3d_backward _adaptive_avg_pool2d_backward",
        "_adaptive_avg_pool3d_backward adaptive_max_pool2d_backward upsample_linear1d_backward",
        "upsample_bicubic2d_backward reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward",
        "grid_sampler_2d_backward grid_sampler_3d_backward _ctc_loss_backward histc kthvalue",
    )
    for name in line.split()
)
"""Operations without an algorithm on CUDA that gives the same numbers every time: they raise an error when it is asked
for (``torch.use_deterministic_algorithms``; ``alertNotDeterministic`` in ``aten/src/ATen/native/cuda``). So does
``cumsum`` of floating-point numbers. Those that `torch.nn.functional` then does in another way are not listed."""


MAY_BE_REFUSED = NOT_REPRODUCIBLE | {"aten::cumsum"}


def check_reproducible(name: str, args: Any) -> None:
    """Raise `InputError` for an operation that an accelerator would refuse while the same numbers are asked for."""
    refused = name in NOT_REPRODUCIBLE or (name == "aten::cumsum" and args[0].dtype.is_floating_point)
    if refused and torch.are_deterministic_algorithms_enabled():
        raise InputError(
            f"the model uses {name.removeprefix('aten::')}, which no GPU computes the same way twice, and a run can be "
            "repeated and resumed to the bit; let the model do without it, or train on the CPU"
        )


_AUTOCAST = (
    "predicting an accelerator: torch.autocast is on, and its casts cannot be seen without the device; "
    "give the model the type that it shall compute in, such as model.to(torch.bfloat16)"
)


def _no_autocast(plain: Any) -> Any:
    """`torch.autocast.__init__` that refuses: without CUDA it would switch itself off and go on."""

    def init(self: Any, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None) -> None:
        if enabled and device_type != "cpu":
            raise InputError(_AUTOCAST)
        plain(self, device_type, dtype, enabled, cache_enabled)

    return init
