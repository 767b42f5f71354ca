"""What an operation costs: floating-point operations and bytes moved, and how long a device takes for them."""

from __future__ import annotations

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


FULL, HALF, CROSSING, BESIDE = range(4)

HOST_BANDWIDTH = 51.2e9
"""Bytes a second of the memory of a host beside an accelerator, of which nothing is known: two channels of DDR4-3200
(JEDEC JESD79-4), about the least that a machine with such a device has. Steps of an optimizer are as fast as memory."""


@dataclass(frozen=True)
class Cost:
    """One operation: `flops` (multiply and add count as two), `bytes` read and written, `half` when in 16 bits.

    `place` is where it runs (see `zoo.host`); of what goes over the link, `bytes` are those that do.
    """

    flops: int
    bytes: int
    half: bool
    place: str = DEVICE

    @property
    def kind(self) -> int:
        """`FULL` or `HALF` precision on the device, `CROSSING` the link, or `BESIDE` on the host."""
        return {LINK: CROSSING, HOST: BESIDE}.get(self.place, HALF if self.half else FULL)


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
    counter = flop_registry.get(packet)
    flops = int(counter(*args, **kwargs, out_val=out)) if counter is not None else 0
    return Cost(flops, moved, half)


@dataclass(frozen=True)
class Rates:
    """What a device does per second: `fp32` and `half` multiply-adds count two, `bandwidth` in bytes, `launch` in s.

    `link` is the bandwidth to and from the host in one direction, `host` that of the host's own memory.
    """

    fp32: float
    half: float
    bandwidth: float
    launch: float
    link: float = float("inf")
    host: float = HOST_BANDWIDTH

    def seconds(self, costs: NDArray[np.float64], rows: int) -> float:
        """Time of a list of operations (columns flops a, b, bytes a, b, kind; see `zoo.memory.scaling`).

        Each takes as long as the slower of computing and moving (Williams et al. 2009, the roofline), and
        no less than a launch. Nothing runs beside anything else: transfers are on the stream that computes.
        """
        if not len(costs):
            return 0.0
        flops = costs[:, 0] + costs[:, 1] * rows
        moved = costs[:, 2] + costs[:, 3] * rows
        kinds = costs[:, 4].astype(np.int64)
        rate = np.array([self.fp32, self.half, self.fp32, np.inf])[kinds]
        bandwidth = np.array([self.bandwidth, self.bandwidth, self.link, self.host])[kinds]
        busy = (flops > 0) | (moved > 0)
        each = np.maximum(np.maximum(flops / rate, moved / bandwidth), self.launch)
        return float(np.sum(each[busy]))
