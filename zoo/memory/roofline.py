"""What an operation costs: floating-point operations and bytes moved, and how long a device takes for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import flop_registry

from zoo.host import DEVICE, HOST, LINK
from zoo.memory.leaves import tensors_in

_VIEWS = frozenset(
    name
    for line in (
        "view _unsafe_view _reshape_alias alias as_strided detach expand permute select slice split",
        "split_with_sizes squeeze t transpose unbind unsqueeze empty",
    )
    for name in line.split()
)


FULL, HALF, CROSSING, BESIDE, SCALAR = range(5)

HOST_BANDWIDTH = 51.2e9
"""Bytes a second of the memory of a host beside an accelerator, of which nothing is known: two channels of DDR4-3200
(JEDEC JESD79-4), about the least that a machine with such a device has. Steps of an optimizer are as fast as memory."""


VECTOR = 32
"""Floating-point operations that a core of a CPU does where scalar code does one: a multiply-add of 16 numbers of fp32
(AVX-512)."""

SHORT_PRODUCT = 2_500_000
"""Floating-point operations in fp32 that take as long as it takes oneDNN to begin a product of 16-bit matrices: 28 to
35 us were measured (``_scaled_dot_product_flash_attention_for_cpu_backward`` in bf16 against fp32, heads of 16 and 64,
96 and 512 tokens, torch 2.13 on one core of an AMD EPYC with AVX512-BF16)."""

SCALAR_STEPS: Mapping[str, int] = {"quantize_blockwise": 20, "bernoulli_": 10}
"""Kernels that CPUs run element by element, and about how many instructions one takes: bitsandbytes finds the nearest
of 256 codes by bisection (7.8 ns on that machine), torch draws random numbers in order (2.5 to 5.9 ns)."""


@dataclass(frozen=True)
class Cost:
    """One operation: `flops` (multiply and add count as two), `bytes` read and written, `half` when in 16 bits.

    `place` is where it runs (see `zoo.host`); of what goes over the link, `bytes` are those that do. Of a `scalar`
    kernel, `flops` are the instructions that a CPU executes one by one.
    """

    flops: int
    bytes: int
    half: bool
    place: str = DEVICE
    scalar: bool = False

    @property
    def kind(self) -> int:
        """`FULL` or `HALF` precision on the device, `CROSSING` the link, `BESIDE` on the host, or `SCALAR` code."""
        return {LINK: CROSSING, HOST: BESIDE}.get(self.place, SCALAR if self.scalar else HALF if self.half else FULL)


def _attention_forward(query: torch.Tensor, key: torch.Tensor, *rest: Any, **options: Any) -> int:
    """Two products of (L, D) by (D, S) in every head, at half the speed of large ones in fp32, whatever the type."""
    batch, heads, length, width = query.shape
    return 2 * 4 * batch * heads * length * key.shape[2] * width


def _attention_backward(grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *rest: Any, **options: Any) -> int:
    """Five products; those of 16-bit inputs are begun one by one."""
    products = 5 * query.shape[0] * query.shape[1]
    begun = 0 if query.dtype == torch.float32 else products * SHORT_PRODUCT
    return _attention_forward(query, key) // 2 * 5 + begun


_ATTENTION: Mapping[str, Callable[..., int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention_forward,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
}
"""Kernels of the CPU that torch's counter does not know. In 16 bits they are no faster than in 32: 26 to 61 GFLOP/s
against 35 to 64 on one core, where large products in fp32 reach 85 (the machine of `SHORT_PRODUCT`)."""


def cost_of(func: Any, args: Any, kwargs: Any, out: Any) -> Cost:
    """The cost of one dispatched operation; views are free. Counts are those of torch's own FLOP counter."""
    packet = func.overloadpacket
    if packet.__name__ in _VIEWS:
        return Cost(0, 0, False)
    moved = 0
    half = False
    for tensor in tensors_in(args, kwargs, out):
        moved += tensor.numel() * tensor.element_size()
        half = half or tensor.dtype in (torch.bfloat16, torch.float16)
    if packet.__name__ in SCALAR_STEPS:
        elements = tensors_in(args)[0].numel()
        return Cost(SCALAR_STEPS[packet.__name__] * elements, moved, half, scalar=True)
    if packet.__name__ in _ATTENTION:
        return Cost(_ATTENTION[packet.__name__](*args, **kwargs), moved, False)
    counter = flop_registry.get(packet)
    flops = int(counter(*args, **kwargs, out_val=out)) if counter is not None else 0
    return Cost(flops, moved, half)


@dataclass(frozen=True)
class Rates:
    """What a device does per second: `fp32` and `half` multiply-adds count two, `bandwidth` in bytes, `launch` in s.

    `link` is the bandwidth to and from the host in one direction, `host` that of the host's own memory. On a `cpu` the
    processor that computes also runs the program, so that a launch comes on top of what it launches; accelerators
    compute the last operation while the next one is launched.
    """

    fp32: float
    half: float
    bandwidth: float
    launch: float
    link: float = float("inf")
    host: float = HOST_BANDWIDTH
    cpu: bool = False

    def seconds(self, costs: NDArray[np.float64], rows: int) -> float:
        """Time of a list of operations (columns flops a, b, bytes a, b, kind; see `zoo.memory.scaling`).

        Each takes as long as the slower of computing and moving (Williams et al. 2009, the roofline), and
        no less than a launch; on a CPU, a launch longer. Nothing runs beside anything else: transfers are on the
        stream that computes.
        """
        if not len(costs):
            return 0.0
        flops = costs[:, 0] + costs[:, 1] * rows
        moved = costs[:, 2] + costs[:, 3] * rows
        kinds = costs[:, 4].astype(np.int64)
        scalar = self.fp32 / VECTOR if self.cpu else np.inf
        rate = np.array([self.fp32, self.half, self.fp32, np.inf, scalar])[kinds]
        bandwidth = np.array([self.bandwidth, self.bandwidth, self.link, self.host, self.bandwidth])[kinds]
        busy = (flops > 0) | (moved > 0)
        work = np.maximum(flops / rate, moved / bandwidth)
        each = work + self.launch if self.cpu else np.maximum(work, self.launch)
        return float(np.sum(each[busy]))
