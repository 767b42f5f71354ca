"""What a backward pass needs, kept on the host: saved tensors go there when they are made and come back when read."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from zoo.host import Host

SMALLEST = 64 * 1024
"""Bytes of the smallest storage that is moved: below, a transfer takes as long as it takes to begin one."""


class SavedOnHost:
    """Moves the tensors that autograd saves while `keeping` is entered.

    A storage goes to the host once, whole, however many tensors of it are saved, and comes back once, when the first
    of them is read; it then stays until the last of them is no longer needed, as it would have without.
    """

    def __init__(self, host: Host, smallest: int = SMALLEST) -> None:
        self._host = host
        self._smallest = smallest
        self._moved: weakref.WeakKeyDictionary[torch.UntypedStorage, weakref.ref[_Moved]] = weakref.WeakKeyDictionary()

    @contextlib.contextmanager
    def keeping(self, *staying: Any) -> Iterator[None]:
        """What is saved inside goes to the host, but for tensors `staying` (in any nesting) and views of them."""
        stay = {leaf.untyped_storage()._cdata for leaf in tree_leaves(staying) if isinstance(leaf, torch.Tensor)}

        def pack(tensor: torch.Tensor) -> torch.Tensor | _Part:
            return self._pack(tensor, stay)

        with saved_tensors_hooks(pack, _unpack):
            yield

    def _pack(self, tensor: torch.Tensor, stay: set[int]) -> torch.Tensor | _Part:
        plain = type(tensor) in (torch.Tensor, FakeTensor) and tensor.layout == torch.strided
        if not plain or tensor.is_conj() or tensor.is_neg() or tensor.device.type != self._host.device.type:
            return tensor
        storage = tensor.untyped_storage()
        if storage.nbytes() < self._smallest or storage._cdata in stay:
            return tensor
        there = self._moved.get(storage)
        moved = None if there is None else there()
        if moved is None or (moved.version, moved.dtype) != (tensor._version, tensor.dtype):
            moved = _Moved(self._host, tensor)
            self._moved[storage] = weakref.ref(moved)
        return _Part(moved, tensor)


class _Moved:
    """A storage on the host, and, from the first time that it is needed, on the device again."""

    def __init__(self, host: Host, tensor: torch.Tensor) -> None:
        self.host = host
        self.version = tensor._version
        self.dtype = tensor.dtype
        elements = tensor.untyped_storage().nbytes() // tensor.element_size()
        self.kept: torch.Tensor | None = host.take(tensor.detach().as_strided((elements,), (1,), 0))
        self.back: torch.Tensor | None = None

    def fetch(self) -> torch.Tensor:
        if self.back is None:
            assert self.kept is not None
            self.back, self.kept = self.host.bring(self.kept), None
        return self.back


class _Part:
    """What autograd saved of a storage: a view."""

    def __init__(self, moved: _Moved, tensor: torch.Tensor) -> None:
        self.moved = moved
        self.view = (tensor.shape, tensor.stride(), tensor.storage_offset())


def _unpack(saved: torch.Tensor | _Part) -> torch.Tensor:
    return saved.moved.fetch().as_strided(*saved.view) if isinstance(saved, _Part) else saved


def shared_by_blocks(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What a block is given beside its first tensor: masks and positions, which other blocks hold as well."""
    return [*(args[1:] if args else list(kwargs.values())[1:]), *(kwargs.values() if args else ())]


def weights_of(module: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, which stay where they are."""
    return [*module.parameters(), *module.buffers()]
