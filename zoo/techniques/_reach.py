"""Which modules take part in what a task reads of a model: found out by a backward pass without storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.card import load_ref
from zoo.errors import InputError

if TYPE_CHECKING:
    from zoo.step import Setup

_TOKENS = 8


class _NoValues(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers every question about a value with no, as the planner's worlds do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            return torch.zeros((), dtype=args[0].dtype).item()
        return func(*args, **(kwargs or {}))


def taking_part(setup: Setup) -> set[str]:
    """Names of the card's modules with a parameter of their own that the task's loss depends on.

    Modules that the forward pass never runs (ESM's contact head) and those whose result nobody reads (an unused pooler)
    are not among them. The model is built anew without storage, so that it does not matter what has been done to that
    of `setup`. Raises `InputError` where the loss cannot be computed without values.
    """
    from zoo.step import storage_free

    with storage_free():
        model: nn.Module = load_ref(setup.card.build)(setup.card, setup.task.head)
        try:
            with _NoValues():  # type: ignore[no-untyped-call]
                batch = setup.task.blank_batch(setup.card, 1, min(_TOKENS, setup.card.max_length))
                setup.task.loss(model, batch).backward()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            if "fork-based multiprocessing" in str(error):  # autograd has run before this process was forked
                raise
            raise InputError(
                f"what takes part in the output of {setup.card.name} cannot be told without values ({error}); "
                f"name roles instead of all-linear (roles: {', '.join(sorted(setup.card.roles))})"
            ) from error
    return {
        name
        for name, module in model.named_modules()
        if any(p is not None and p.grad is not None for p in module._parameters.values())
    }
