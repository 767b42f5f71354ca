"""Remembering what storage-free operations return.

On ``meta`` tensors an operation is a function of shapes, strides and dtypes alone, and most of its cost is Python code
that works them out. A model repeats the same few operations block after block and step after step, so that
remembering the answer makes a trace several times faster. What only changes values does nothing at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zoo.memory.leaves import tensors_in
from zoo.memory.roofline import Cost, cost_of

Spec = tuple[torch.Size, tuple[int, ...], torch.dtype]


class Operation:
    """What is known of an operation: its name, whether it changes what it is given or returns a view of it, and what it
    made of which arguments (None for one that returns a view or makes one of what it is given)."""

    __slots__ = ("func", "made", "mutable", "name", "view")

    def __init__(self, func: Any) -> None:
        schema = func._schema
        aliases = any(a.alias_info is not None for a in (*schema.arguments, *schema.returns))
        self.func = func  # kept, so that its identity stays its own
        self.name: str = schema.name
        self.mutable: bool = schema.is_mutable
        self.view: bool = func.is_view or self.name == "aten::_unsafe_view"  # a view to all but autograd
        changes_values_alone = self.mutable and self.name not in _RESHAPING and torch.Tag.inplace_view not in func.tags
        self.made: dict[Any, tuple[Any, Cost]] | None = None if aliases and not changes_values_alone else {}


_RESHAPING = frozenset({"aten::set_", "aten::resize_", "aten::resize_as_"})

_operations: dict[int, Operation] = {}


def operation(func: Any) -> Operation:
    """What is known of a dispatched operation."""
    found = _operations.get(id(func))
    if found is None:
        found = _operations[id(func)] = Operation(func)
    return found


def run(known: Operation, args: Any, kwargs: Any) -> tuple[Any, Cost]:
    """The result of an operation on meta tensors, and its cost."""
    func = known.func
    if known.view:
        return func(*args, **kwargs), _FREE
    made = known.made
    key = _key(args, kwargs) if made is not None else None
    if made is not None and key is not None and (before := made.get(key)) is not None:
        return args[0] if before[0] is _GIVEN else _fresh(before[0]), before[1]
    storages = _storages((args, kwargs)) if known.mutable else ()
    out = func(*args, **kwargs)
    cost = cost_of(func, args, kwargs, out)
    if made is None or key is None:
        return out, cost
    if known.mutable:
        # shapes and storages are as before (`out` arguments may have grown): nothing has happened but to values
        if (out is None or out is args[0]) and _key(args, kwargs) == key and _storages((args, kwargs)) == storages:
            made[key] = (_GIVEN if out is not None else _NOTHING, cost)
        return out, cost
    if _shares_storage(out, (args, kwargs)):
        return out, cost
    if (spec := _spec(out)) is not None:
        made[key] = (spec, cost)
    return out, cost


_FREE = Cost(0, 0, False)
_GIVEN: Any = object()
_NOTHING = (None,)


def _storages(given: Any) -> list[tuple[int, int]]:
    return [(storage._cdata, storage.nbytes()) for storage in (t.untyped_storage() for t in tensors_in(given))]


def _shares_storage(out: Any, given: Any) -> bool:
    """Some operations return what they were given without their schema saying so."""
    inputs = {tensor.untyped_storage()._cdata for tensor in tensors_in(given)}
    return any(tensor.untyped_storage()._cdata in inputs for tensor in tensors_in(out))


def _key(args: Any, kwargs: Any) -> Any:
    """A hashable description of arguments, or None where there is one that cannot be described."""
    parts: list[Any] = []
    return tuple(parts) if _describe_all(args, parts) and (not kwargs or _describe(kwargs, parts)) else None


def _describe_all(values: Any, parts: list[Any]) -> bool:
    """As `_describe`, of several, and quicker about the few kinds that nearly all arguments are of."""
    for value in values:
        kind = type(value)
        if kind is torch.Tensor or kind is nn.Parameter:
            if not value.is_meta or value.layout is not torch.strided:
                return False
            parts += (torch.Tensor, value.shape, value.stride(), value.dtype)
        elif kind in _SCALARS:
            parts += (kind, value)
        elif not _describe(value, parts):
            return False
    return True


def _describe(value: Any, parts: list[Any]) -> bool:
    """Append what tells a value from another, beginning with its type; False where that is not known."""
    kind = type(value)
    parts.append(kind)
    if kind is tuple or kind is list:
        parts.append(len(value))
        return _describe_all(value, parts)
    if kind is dict:
        return _describe(tuple(value.items()), parts)
    if isinstance(value, torch.Tensor):
        if not value.is_meta or value.layout is not torch.strided:
            return False
        parts += (value.shape, value.stride(), value.dtype)
        return True
    try:
        hash(value)
    except TypeError:
        return False
    parts.append(value)
    return True


_SCALARS = frozenset({int, float, bool, str, type(None)})


def _spec(out: Any) -> Any:
    """How to make `out` anew, or None where it is not fresh strided meta tensors."""
    if isinstance(out, torch.Tensor):
        size = out.untyped_storage().nbytes()
        whole = out.storage_offset() == 0 and size == _extent(out)
        fresh = out.device.type == "meta" and out.layout == torch.strided and whole
        return (out.shape, out.stride(), out.dtype) if fresh else None
    if isinstance(out, (tuple, list)):
        specs = [(o,) if type(o) in _SCALARS else _spec(o) for o in out]
        return None if None in specs else (type(out), specs)
    return None


def _extent(tensor: torch.Tensor) -> int:
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _fresh(spec: Any) -> Any:
    if len(spec) == 1:
        return spec[0]
    if len(spec) == 2:
        kind, members = spec
        return kind(_fresh(member) for member in members)
    shape, stride, dtype = spec
    return torch.empty_strided(shape, stride, dtype=dtype, device=_META)


_META = torch.device("meta")
