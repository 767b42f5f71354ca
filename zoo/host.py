"""The memory of the host beside a device: how tensors go there and come back, in every world.

On a GPU, copies lie in page-locked memory and transfers are queued on the stream that computes, so that whatever comes
later waits for them: nothing is read before it is there, and memory is used again only when it has been read. On a CPU,
host and device are the same memory: copies are real and gain nothing. Without storage nothing is copied; what is made
here is *placed* on the host for the length of a statement, and a ledger that watches an accelerator counts it there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

DEVICE, HOST, PINNED, LINK = "device", "host", "pinned", "link"
"""Where an operation runs and what it makes lies: on the device, in the host's memory, in page-locked memory of the
host. On the link between them nothing is made, only moved."""

_now = DEVICE


def place() -> str:
    """Where operations run at present, for a ledger: one of `DEVICE`, `HOST`, `PINNED`, `LINK`."""
    return _now


@contextlib.contextmanager
def placed(where: str) -> Iterator[None]:
    """While entered, operations run at `where`."""
    global _now
    before, _now = _now, where
    try:
        yield
    finally:
        _now = before


@dataclass(frozen=True)
class Host:
    """The host's memory beside `device`, on which the model computes."""

    device: torch.device

    @property
    def home(self) -> torch.device:
        """Where tensors on the host lie: a device without storage stands for both."""
        return self.device if self.device.type in ("cpu", "meta") else torch.device("cpu")

    def empty(self, shape: torch.Size | tuple[int, ...], dtype: torch.dtype, *, pinned: bool = True) -> torch.Tensor:
        """A new tensor on the host; `pinned` (page-locked, on CUDA only) where transfers are to be fast."""
        locked = pinned and self.device.type == "cuda"
        with placed(PINNED if pinned else HOST):
            return torch.empty(shape, dtype=dtype, device=self.home, pin_memory=locked)

    def take(self, tensor: torch.Tensor, *, wait: bool = False) -> torch.Tensor:
        """A copy of a device's tensor on the host. `wait`: until it can be read there."""
        copy = self.empty(tensor.shape, tensor.dtype)
        with placed(LINK):
            return copy.copy_(tensor, non_blocking=not wait)

    def bring(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the device of a tensor that lies on the host and does not change."""
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
        with placed(LINK):
            return copy.copy_(tensor, non_blocking=True)

    def send(self, value: torch.Tensor, into: torch.Tensor) -> None:
        """Write `value`, which lies on the host and may change afterwards, into a tensor of the device."""
        parcel = self.empty(into.shape, into.dtype)
        with self.working():
            parcel.copy_(value)
        with placed(LINK):
            into.copy_(parcel, non_blocking=True)

    def working(self) -> contextlib.AbstractContextManager[None]:
        """While entered, operations on tensors of the host run there, and what they make lies there."""
        return placed(HOST)

    def settle(self) -> None:
        """Wait for transfers, so that page-locked memory which they no longer need can be used again."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
