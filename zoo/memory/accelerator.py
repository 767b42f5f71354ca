"""What an accelerator allocates where it differs from storage-free tensors.

A trace on ``meta`` tensors runs the operations that a CPU would. An accelerator runs others in a few places, and inside
some of its kernels it allocates what no operation returns. Both are stated here, each with its source; paths
are those of PyTorch's repository, read at versions 2.9 to 2.13.

- `semantics` replaces operations that decompose differently (attention, softmax, dropout) by the ones that the
  accelerator runs. It does so in PyTorch's dispatcher, so that it does not matter by which name a model calls them.
- `temporaries` lists what a kernel allocates and frees again while it runs.
- `workspace_bytes` is what the matrix library keeps from its first product on, for each thread that multiplies.
"""

from __future__ import annotations

import contextlib
import importlib
import math
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
    """What decides which kernels an accelerator runs: compute capability (75 for 7.5), and whether it is AMD's."""

    capability: int = 80
    amd: bool = False

    @classmethod
    def of(cls, device: Device) -> Kind:
        """The kind of a device. One that is not in the table counts as the oldest with the arithmetic that it has."""
        if device.vendor == "amd":
            return cls(90, amd=True)
        keys = [key for key in _CAPABILITIES if device.name == key or device.name.startswith(key)]
        if keys:
            return cls(_CAPABILITIES[max(keys, key=len)])
        return cls(80 if device.bf16 is not None else 70)

    @property
    def workspace_bytes(self) -> int:
        """What cuBLAS gets per handle: 8.125 MiB, on Hopper and data-centre Blackwell 32 MiB.

        ``aten/src/ATen/cuda/CublasHandlePool.cpp``, ``parseChosenWorkspaceSize``: ``:4096:2:16:8``, on capability
        9.0 and 10.0 4096 * 8 KiB; on AMD's gfx94 128 MiB. cuBLASLt (products with a bias) shares it
        (``TORCH_CUBLASLT_UNIFIED_WORKSPACE``, the default of open-source builds).
        """
        if self.amd:
            return 128 * MIB
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
    if backend == "efficient":
        if mask is not None:
            mask = _aligned(mask).expand(*query.shape[:3], key.shape[2])
        learns = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
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
    """``flash``, ``efficient`` or ``math``: the first that may run, in CUDA's order of preference.

    ``aten/src/ATen/native/transformers/cuda/sdp_utils.cpp``, ``can_use_flash_attention`` and
    ``can_use_mem_efficient_attention``; ``torch.nn.attention.sdpa_kernel`` is obeyed. cuDNN's kernel, which Hopper may
    prefer, keeps the same tensors as flash.
    """
    allowed: Any = torch.backends.cuda
    plain = query.ndim == 4 and query.dtype == key.dtype == value.dtype and query.numel() > 0
    same_heads = plain and query.shape[1] == key.shape[1] == value.shape[1]
    halves = (torch.float16, torch.bfloat16)
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
    if allowed.mem_efficient_sdp_enabled() and same_heads and not grouped and query.dtype in types:
        return "efficient"
    return "math"


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    """A mask whose rows begin at multiples of 8 elements, padded where they do not (``preprocess_mask``)."""
    if all(stride % 8 == 0 for stride in mask.stride()[:-1]) and mask.stride(-1) == 1:
        return mask
    width = mask.shape[-1]
    return torch.nn.functional.pad(mask, (0, 8 - width % 8))[..., :width]


# --------------------------------------------------------------------------------------------- what kernels allocate

PRODUCTS = frozenset(
    {
        *(f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "addbmm", "_scaled_mm")),
        "bitsandbytes::gemm_4bit",
    }
)
"""Operations that call the matrix library."""


def temporaries(kind: Kind, func: Any, args: Any, out: Any) -> list[int]:
    """Bytes of each storage that the kernel of an operation allocates beside what it returns, and frees at its end."""
    rule = _TEMPORARIES.get(func._schema.name)
    return rule(kind, args, out) if rule is not None else []


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


def _softmax_backward(kind: Kind, args: Any, out: Any) -> list[int]:
    """``grad * output`` (``aten/src/ATen/native/cuda/SoftMax.cu``, ``softmax_backward_cuda_out``)."""
    grad, output = args[:2]
    return [grad.numel() * torch.promote_types(grad.dtype, output.dtype).itemsize]


def _embedding_backward(kind: Kind, args: Any, out: Any) -> list[int]:
    """Sorted indices and partial sums, for more than 3072 tokens (``aten/src/ATen/native/cuda/Embedding.cu``,
    ``embedding_dense_backward_cuda``; ``EmbeddingBackwardKernel.cu``: one partial sum for ten tokens and one for each
    distinct token, of which there are at most as many as tokens or rows)."""
    grad, indices, rows = args[:3]
    count = indices.numel()
    if count <= 3072:
        return []
    partial = count // 10 + min(count, rows)
    return [*[count * 8] * 4, partial * grad.shape[-1] * 4]


def _flash_backward(kind: Kind, args: Any, out: Any) -> list[int]:
    """Sums of dq in fp32 and of softmax gradients; dk and dv for each query head where heads share them
    (``transformers/cuda/flash_attn/flash_api.cpp``, ``mha_bwd``); a contiguous gradient (``attention_backward.cu``)."""
    grad, query, key = args[:3]
    batch, heads, length, width = query.shape
    rounded, columns = -(-length // 128) * 128, -(-width // 32) * 32
    made = [batch * heads * rounded * 4, batch * heads * rounded * columns * 4]
    if key.shape[1] != heads:
        made += [batch * heads * key.shape[2] * width * query.element_size()] * 2
    return [*_contiguous(grad), *made]


def _efficient_backward(kind: Kind, args: Any, out: Any) -> list[int]:
    """``delta`` and the workspace in which blocks of keys add up dq (``attention_backward.cu``,
    ``_efficient_attention_backward``; ``mem_eff_attention/kernel_backward.h``, ``workspace_size``)."""
    grad, query, key, value = args[:4]
    batch, heads, length, width = query.shape
    half = query.dtype != torch.float32
    wide = max(width, value.shape[-1])
    # cutlassB.h: blocks of 64 queries up to width 64; above, 128 where shared memory is large enough (8.0, 9.0)
    roomy = kind.capability in (80, 90, 100)
    rows = 128 if wide > 64 and half and roomy else 64
    columns = 128 if rows == 128 and wide <= 128 and roomy else 64
    limit = 32 if wide <= 32 else 64 if wide <= 64 else 128 if wide <= 128 else 65536
    in_registers = half and limit <= rows
    splits = -(-key.shape[2] // columns)
    if heads * batch >= 256 and key.shape[2] <= 2 * columns:
        splits = 1
    if half and not in_registers:
        splits = max(1, min(splits, 200 // (batch * heads)))
    dq = -(-length // rows) * -(-width // columns) * (4 + rows * columns)
    dk = splits * columns * -(-width // rows) * rows if half and not in_registers else 0
    dv = splits * columns * -(-value.shape[-1] // rows) * rows if half and not in_registers else 0
    workspace = batch * heads * (-(-(dq + dk + dv) // 4) * 4) * 4
    delta = batch * heads * length * 4
    # In fp32 delta is summed from a product of two tensors, which is gone before the workspace comes.
    product = 0 if half else batch * heads * length * value.shape[-1] * 4
    return [*_contiguous(grad), delta, max(workspace, product)]


def _efficient_forward(kind: Kind, args: Any, out: Any) -> list[int]:
    """An fp32 sum of the output where a head is wider than a block (``transformers/cuda/attention.cu``,
    ``_efficient_attention_forward``; ``mem_eff_attention/kernel_forward.h``, ``kNeedsOutputAccumulatorBuffer``)."""
    query, value = args[0], args[2]
    if value.shape[-1] <= 128 or query.dtype == torch.float32:
        return []
    return [query.shape[0] * query.shape[1] * query.shape[2] * value.shape[-1] * 4]


def _contiguous(grad: torch.Tensor) -> list[int]:
    """The copy of a gradient that is not laid out as (batch, length, heads, width), as the kernels want it."""
    laid_out = grad.transpose(1, 2)
    return [] if laid_out.is_contiguous() else [grad.numel() * grad.element_size()]


def _product_4bit(kind: Kind, args: Any, out: Any) -> list[int]:
    """The weight, dequantized, and its scales where they are quantized themselves (bitsandbytes 0.50,
    ``backends/cuda/ops.py``, ``_dequant_linear_fallback``; few tokens may go without, which is not counted on)."""
    x, shape, nested = args[0], args[2], args[7] if len(args) > 7 else None
    scales = [4 * nested.numel()] * 2 if nested is not None else []
    return [*scales, shape[0] * shape[1] * x.element_size()]


_TEMPORARIES = {
    "aten::_softmax_backward_data": _softmax_backward,
    "aten::embedding_dense_backward": _embedding_backward,
    "aten::_scaled_dot_product_flash_attention_backward": _flash_backward,
    "aten::_scaled_dot_product_efficient_attention_backward": _efficient_backward,
    "aten::_scaled_dot_product_efficient_attention": _efficient_forward,
    "bitsandbytes::gemm_4bit": _product_4bit,
}
