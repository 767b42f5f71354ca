"""What kernels allocate for themselves while they run, beside what they return, each with its source.

Paths are those of PyTorch's repository, read at versions 2.9 to 2.13. The table `_TEMPORARIES` says which operations
are meant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from zoo.memory.accelerator import Kind

PRODUCTS = frozenset(
    {
        *(f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "addbmm", "_scaled_mm")),
        "bitsandbytes::gemm_4bit",
    }
)
"""Operations that call the matrix library."""


def temporaries(kind: Kind, name: str, args: Any, out: Any) -> list[int]:
    """Bytes of each storage that the kernel of an operation allocates beside what it returns, and frees at its end."""
    rule = _TEMPORARIES.get(name)
    return rule(kind, args, out) if rule is not None else []


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
    # One sum that all add to, or, for the same numbers every time, one for each group of thread blocks.
    sums = -(-kind.multiprocessors // (batch * heads)) if torch.are_deterministic_algorithms_enabled() else 1
    made = [batch * heads * rounded * 4, sums * batch * heads * rounded * columns * 4]
    if key.shape[1] != heads:
        made += [batch * heads * key.shape[2] * width * query.element_size()] * 2
    return [*_contiguous(grad), *made]


def _cudnn_backward(kind: Kind, args: Any, out: Any) -> list[int]:
    """Sums of dq and of softmax gradients in fp32, one workspace for both: as measured, with heads of 32 and 64, on an
    H200 with cuDNN 9.19 (``tests/benchmarks/gpu_memory.py``, settings called plain)."""
    query = args[1]
    return [math.prod(query.shape[:3]) * (query.shape[3] + 1) * 4 + 256]


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
    if torch.are_deterministic_algorithms_enabled():
        splits = 1
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


def _sum(kind: Kind, args: Any, out: Any) -> list[int]:
    """Partial sums of thread blocks, and a counter for each group of them, where few results are made of much.

    ``aten/src/ATen/native/cuda/Reduce.cuh``, ``setReduceConfig`` and ``global_memory_size``: sums are in fp32, four of
    them in a thread's vector. The gradient of a bias is the case that matters: of 8192 rows of 512 numbers, 32 MiB.
    """
    values = args[0]
    given = args[1] if len(args) > 1 and args[1] is not None else []
    dims = {d % values.ndim for d in ([given] if isinstance(given, int) else given)} or set(range(values.ndim))
    if values.numel() == 0 or out.dtype in (torch.int64, torch.float64):
        return []
    summed, kept = (
        _coalesced([(values.shape[d], values.stride(d)) for d in range(values.ndim) if (d in dims) == among])
        for among in (True, False)
    )
    inputs, outputs = (math.prod(size for size, _ in group) for group in (summed, kept))
    along_inputs = not kept or (bool(summed) and summed[0][1] < kept[0][1])
    width, height, vector = (inputs, outputs, 1) if along_inputs else (outputs, inputs, 1)
    if along_inputs and summed and summed[0][1] == 1 and width >= 128 and len(summed) == 1:
        width //= 4
    elif not along_inputs and kept[0][1] == 1:
        steps = [kept[0][0], *(stride for _, stride in [*summed, *kept[1:]])]
        vector = next(v for v in (4, 2, 1) if all(step % v == 0 for step in steps))
        width //= vector
    most = 512 // vector
    wide, high = (min(most, 1 << (size.bit_length() - 1)) if size else 1 for size in (width, height))
    across = min(wide, 32)
    down = min(high, most // across)
    across = min(wide, most // down)
    step_input, step_output = (across, 1) if along_inputs else (1, across)
    if -(-inputs // step_input) < min(down * 16, 256):
        return []  # every warp has a result of its own
    step_input *= down
    each, grid = -(-inputs // step_input), -(-(outputs // vector) // step_output)
    room = kind.multiprocessors * (kind.threads_per_multiprocessor // (across * down))
    if each < 256 or grid > room:
        return []
    blocks = max(min(-(-room // grid), -(-each // 16)), -(-each // 256))
    if blocks <= 1:
        return []
    return [4 * outputs * blocks * (1 if along_inputs else across * vector), 4 * grid]


def _coalesced(dims: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sizes and strides by stride, neighbours that are contiguous as one (``TensorIterator``)."""
    merged: list[tuple[int, int]] = []
    for size, stride in sorted((d for d in dims if d[0] > 1), key=lambda d: d[1]):
        if merged and merged[-1][0] * merged[-1][1] == stride:
            merged[-1] = (merged[-1][0] * size, merged[-1][1])
        else:
            merged.append((size, stride))
    return merged


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
    "aten::sum": _sum,
    "aten::mean": _sum,
    "aten::_softmax_backward_data": _softmax_backward,
    "aten::embedding_dense_backward": _embedding_backward,
    "aten::_scaled_dot_product_flash_attention_backward": _flash_backward,
    "aten::_scaled_dot_product_cudnn_attention_backward": _cudnn_backward,
    "aten::_scaled_dot_product_efficient_attention_backward": _efficient_backward,
    "aten::_scaled_dot_product_efficient_attention": _efficient_forward,
    "bitsandbytes::gemm_4bit": _product_4bit,
}

WITH_TEMPORARIES = frozenset(_TEMPORARIES)
"""Operations whose kernels allocate something beside what they return."""

# --------------------------------------------------------------------------------------------- on the CPU

PACKED = 4 * 2**20
"""Bytes of parts of both factors that oneDNN has in another order at any time: 2.3 MB were seen, on two threads."""
LONG = 1024
"""Length of a sum from which on oneDNN keeps 16-bit results in fp32 until they are whole."""


TILE = 64
"""What oneDNN rounds the lengths of a product up to, at most."""


def inside_a_product(factors: Sequence[torch.Tensor], out: torch.Tensor) -> int:
    """Bytes that a 16-bit product may take in no tensor: least without AMX, most with it.

    Copies of both factors in whole tiles, two of each where the first one lies transposed, and sums in fp32: no
    product of 700 of all shapes took more with oneDNN 3.12 (``python -m tests.benchmarks.inside_products``).
    """
    first, second = factors
    (rows, inner), columns = first.shape[-2:], second.shape[-1] if second.ndim > 1 else 1
    batch = out.numel() // max(rows * columns, 1)
    rows_, inner_, columns_ = (-(-length // TILE) * TILE for length in (rows, inner, columns))
    copies = 2 * (1 if first.stride(-1) == 1 else 2) * inner_ * (rows_ + columns_) + 4 * rows_ * columns_
    return min(batch * copies, PACKED) + (4 * out.numel() if inner > LONG else 0)
