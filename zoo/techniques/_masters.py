"""Optimizers around an optimizer: fp32 master weights, also on the host, and a step inside the backward pass."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from zoo.host import Host
    from zoo.step import StepOptimizer


class MasterWeights:
    """An optimizer over fp32 copies of parameters, of low precision or on another device.

    Gradients are widened, applied and dropped one matrix at a time, with the vectors that come after it, so that no
    second set of gradients ever exists. With a `host` the copies and what the optimizer keeps of them lie in its
    memory, and it steps there.
    """

    def __init__(
        self, params: Sequence[nn.Parameter], masters: Sequence[nn.Parameter], host: Host | None = None
    ) -> None:
        self.params = list(params)
        self.masters = list(masters)
        self.host = host
        self._inner: torch.optim.Optimizer | None = None
        self._runs = _matrices_with_vectors(self.masters)
        self._parts: list[list[list[nn.Parameter]]] = []
        self._begun = False

    @classmethod
    def of(
        cls,
        params: Sequence[nn.Parameter],
        reference: dict[nn.Parameter, torch.Tensor],
        host: Host | None = None,
    ) -> MasterWeights:
        """Masters of `params`, from their `reference` values in the checkpoint where there are any."""
        masters = []
        for p in params:
            value = reference.get(p)
            master = (
                torch.empty(p.shape, dtype=torch.float32, device=p.device)
                if host is None
                else host.empty(p.shape, torch.float32, pinned=False)
            )
            master.copy_(p.detach() if value is None else value)
            masters.append(nn.Parameter(master))
        return cls(params, masters, host)

    def drive(self, inner: torch.optim.Optimizer) -> MasterWeights:
        self._inner = inner
        owned = [set(map(id, group["params"])) for group in inner.param_groups]
        self._parts = [[[m for m in self.masters[run] if id(m) in ids] for ids in owned] for run in self._runs]
        return self

    @property
    def inner(self) -> torch.optim.Optimizer:
        if self._inner is None:
            raise ValueError("no optimizer drives these master weights")
        return self._inner

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    @torch.no_grad()
    def step(self) -> None:
        for run, part in zip(self._runs, self._parts, strict=True):
            stepped = []
            for p, master in zip(self.params[run], self.masters[run], strict=True):
                if p.grad is not None:
                    grad, p.grad = p.grad, None
                    master.grad = self._widened(grad)
                    del grad
                    stepped.append((p, master))
            if stepped:
                with self._where(), self._having(part):
                    self.inner.step()
            for p, master in stepped:
                if self.host is None:
                    p.copy_(master)
                else:
                    self.host.send(master, p)
                master.grad = None

    @contextlib.contextmanager
    def _having(self, part: list[list[nn.Parameter]]) -> Iterator[None]:
        """The inner optimizer has these parameters alone: it looks at all that it has, and is stepped for each matrix.

        The first time it has all of them: it may see to their states then.
        """
        whole = [group["params"] for group in self.param_groups]
        try:
            for group, params in zip(self.param_groups, part if self._begun else whole, strict=True):
                group["params"] = params
            yield
        finally:
            self._begun = True
            for group, params in zip(self.param_groups, whole, strict=True):
                group["params"] = params

    def _widened(self, grad: torch.Tensor) -> torch.Tensor:
        """A gradient in fp32, where the masters lie."""
        if self.host is None:
            return grad.float()
        taken = self.host.take(grad, wait=True)
        with self._where():
            return taken.float()

    def _where(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.host is None else self.host.working()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.params:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "masters": [m.detach() for m in self.masters]}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        for master, value in zip(self.masters, state["masters"], strict=True):
            master.copy_(value)


def _matrices_with_vectors(tensors: Sequence[torch.Tensor]) -> list[slice]:
    """Runs of a matrix and the vectors after it, which are hardly more: they repeat themselves with every block."""
    starts = [index for index, tensor in enumerate(tensors) if tensor.ndim > 1 or index == 0]
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(tensors)], strict=True)]


class InBackward:
    """One optimizer for each parameter, stepped in the backward pass as soon as its gradient is complete.

    A gradient is complete when all modules that share the parameter have added theirs, which autograd sees to, and when
    the micro-batch is the last of its step, which `due` tells. It is then applied and dropped. Autograd raises an error
    if something that is still to be differentiated needs the value that a step has changed.
    """

    def __init__(
        self, params: Sequence[nn.Parameter], optimizers: Sequence[StepOptimizer], due: Callable[[], bool]
    ) -> None:
        self.params = list(params)
        self.optimizers = list(optimizers)
        self.due = due
        # A parameter holds its hook, so the hook must not hold what holds the parameter.
        here = weakref.ref(self)
        for index, p in enumerate(self.params):
            hook = functools.partial(_accumulated, here, index)
            p.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """Apply the gradients that the last micro-batch had no part in."""
        for index, p in enumerate(self.params):
            if p.grad is not None:
                self.step_one(index)

    def step_one(self, index: int) -> None:
        self.optimizers[index].step()
        self.params[index].grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.params:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"parameters": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimizer, own in zip(self.optimizers, state["parameters"], strict=True):
            optimizer.load_state_dict(own)


def _accumulated(here: weakref.ref[InBackward], index: int, parameter: torch.Tensor) -> None:
    optimizer = here()
    if optimizer is not None and optimizer.due():
        optimizer.step_one(index)
