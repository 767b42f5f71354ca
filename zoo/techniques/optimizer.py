"""The optimizer, with fp32 master weights where the precision asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoo.techniques import Technique

if TYPE_CHECKING:
    from zoo.step import Setup


class AdamW(Technique):
    """Adam with decoupled weight decay; biases and normalisation are not decayed. Fused, so without temporaries."""

    key = "optimizer"
    name = "adamw"
    source = "Loshchilov and Hutter 2019, arXiv 1711.05101"
    stage = 300
    exactness = "bitwise"

    def apply(self, setup: Setup) -> None:
        params = list(setup.trainable().values())
        if not params:
            raise ValueError("nothing to train: every parameter is frozen")
        masters = MasterWeights.of(params, setup.reference) if setup.master_weights else None
        owned = params if masters is None else masters.masters
        decayed = [p for p in owned if p.ndim >= 2]
        plain = [p for p in owned if p.ndim < 2]
        groups: list[dict[str, Any]] = [
            {"params": group, "weight_decay": decay}
            for group, decay in ((decayed, setup.weight_decay), (plain, 0.0))
            if group
        ]
        inner = torch.optim.AdamW(groups, lr=setup.learning_rate, fused=True)
        setup.optimizer = inner if masters is None else masters.drive(inner)


class MasterWeights:
    """An optimizer over fp32 copies of low-precision parameters.

    Gradients are widened, applied and dropped one by one, so that no second set of gradients ever exists.
    """

    def __init__(self, params: Sequence[nn.Parameter], masters: Sequence[nn.Parameter]) -> None:
        self.params = list(params)
        self.masters = list(masters)
        self._inner: torch.optim.Optimizer | None = None

    @classmethod
    def of(cls, params: Sequence[nn.Parameter], reference: dict[nn.Parameter, torch.Tensor]) -> MasterWeights:
        """Masters of `params`, from their `reference` values in the checkpoint where there are any."""
        masters = []
        for p in params:
            value = reference.get(p)
            master = torch.empty(p.shape, dtype=torch.float32, device=p.device)
            master.copy_(p.detach() if value is None else value)
            masters.append(nn.Parameter(master))
        return cls(params, masters)

    def drive(self, inner: torch.optim.Optimizer) -> MasterWeights:
        self._inner = inner
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
        for p, master in zip(self.params, self.masters, strict=True):
            if p.grad is None:
                continue
            master.grad = p.grad.float()
            p.grad = None
            self.inner.step()
            p.copy_(master)
            master.grad = None

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


OPTIONS = (AdamW,)
