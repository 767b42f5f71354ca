"""What an operation costs: floating-point operations and bytes moved, and how long a device takes for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import flop_registry

from zoo.memory.leaves import tensors_in

_VIEWS = frozenset(
    name
    for line in (
        "view _unsafe_view _reshape_alias alias as_strided detach expand permute select slice split",
        "split_with_sizes squeeze t transpose unbind unsqueeze empty",
    )
    for name in line.split()
)


@dataclass(frozen=True)
class Cost:
    """One operation: `flops` (multiply and add count as two), `bytes` read and written, `half` when in 16 bits."""

    flops: int
    bytes: int
    half: bool


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
    """What a device does per second: `fp32` and `half` multiply-adds count two, `bandwidth` in bytes, `launch` in s."""

    fp32: float
    half: float
    bandwidth: float
    launch: float

    def seconds(self, costs: NDArray[np.float64], rows: int) -> float:
        """Time of a list of operations (columns flops a, b, bytes a, b, half; see `zoo.memory.scaling`).

        Each takes as long as the slower of computing and moving (Williams et al. 2009, the roofline), and
        no less than a launch.
        """
        if not len(costs):
            return 0.0
        flops = costs[:, 0] + costs[:, 1] * rows
        moved = costs[:, 2] + costs[:, 3] * rows
        rate = np.where(costs[:, 4] > 0, self.half, self.fp32)
        busy = (flops > 0) | (moved > 0)
        each = np.maximum(np.maximum(flops / rate, moved / self.bandwidth), self.launch)
        return float(np.sum(each[busy]))
