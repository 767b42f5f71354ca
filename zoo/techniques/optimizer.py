"""The optimizer, with fp32 master weights where the precision asks for them.

All options decay matrices only, not biases and normalisation, and follow the learning rate in `param_groups`.

Not among them is the paged 8-bit AdamW of bitsandbytes. Its states are CUDA managed memory, which the driver moves
between device and host while a step runs: PyTorch's allocator does not know of them, and how much of a device they take
cannot be predicted. Loading a checkpoint puts them into ordinary memory, and on a CPU it is `AdamW8bit`.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.techniques import Technique
from zoo.techniques._eight_bit import adamw_8bit, missing
from zoo.techniques._masters import InBackward, MasterWeights
from zoo.techniques._stochastic import StochasticAdamW

if TYPE_CHECKING:
    from zoo.step import Setup, StepOptimizer

__all__ = ["OPTIONS", "Adafactor", "AdamW", "AdamW8bit", "AdamWInBackward", "MasterWeights"]


class _Optimizer(Technique):
    """What the options share: `make` brings the optimizer itself, given groups of parameters and their numbers."""

    key = "optimizer"
    stage = 300

    rounds_stochastically: ClassVar[bool] = False
    """Whether it steps parameters that have no master weights although they are in bf16."""
    steps_on_host: ClassVar[bool] = False
    """Whether it may be run over copies of the parameters in host memory, which techniques ask by this name."""

    def why_not(self, setup: Setup) -> str | None:
        pure = next((t for t in setup.chosen if t.key == "precision" and t.name == "bf16-pure"), None)
        if pure is not None and not self.rounds_stochastically:
            return (
                f"rounds to nearest, which loses small updates of bf16 parameters; with precision {pure.name} choose "
                "optimizer adamw or adamw-in-backward, or with this optimizer precision bf16 or fp32"
            )
        return None

    def apply(self, setup: Setup) -> None:
        setup.optimizer = self.over(setup, trained(setup))

    def over(self, setup: Setup, params: Sequence[nn.Parameter], first: int = 0) -> StepOptimizer:
        """The optimizer of trained parameters from number `first` on, over their master weights where there are any."""
        host = setup.host if setup.steps_on_host else None
        over_masters = setup.master_weights or host is not None
        masters = MasterWeights.of(params, setup.reference, host) if over_masters else None
        owned = params if masters is None else masters.masters
        inner = self.make(setup, decay_groups(owned, setup.weight_decay), {p: first + i for i, p in enumerate(owned)})
        return inner if masters is None else masters.drive(inner)

    def make(
        self, setup: Setup, groups: list[dict[str, Any]], numbers: Mapping[nn.Parameter, int]
    ) -> torch.optim.Optimizer:
        raise NotImplementedError(f"{type(self).__name__}.make")


class AdamW(_Optimizer):
    """Adam with decoupled weight decay; biases and normalisation are not decayed. Fused, so without temporaries."""

    name = "adamw"
    source = "Loshchilov and Hutter 2019, arXiv 1711.05101"
    exactness = "bitwise"
    rounds_stochastically = True
    steps_on_host = True

    def make(
        self, setup: Setup, groups: list[dict[str, Any]], numbers: Mapping[nn.Parameter, int]
    ) -> torch.optim.Optimizer:
        if setup.stochastic_rounding:
            return StochasticAdamW(groups, numbers, lr=setup.learning_rate, seed=setup.seed)
        return torch.optim.AdamW(groups, lr=setup.learning_rate, fused=True)


class AdamWInBackward(AdamW):
    """AdamW that steps every parameter inside the backward pass, so that its gradient is gone before the next is made.

    With several micro-batches, the pass of the last one steps, and all gradients coexist before it.
    """

    name = "adamw-in-backward"
    source = "Lv et al. 2023, arXiv 2306.09782 (LOMO: fused backward pass and update)"
    automatic = False
    affine: ClassVar[bool] = False
    passes: ClassVar[int] = 3  # the first makes gradients, others add to them, the last takes them away

    def why_not(self, setup: Setup) -> str | None:
        if setup.max_grad_norm is not None:
            return (
                f"max_grad_norm is {setup.max_grad_norm:g}, and the norm needs all gradients before the first step; "
                "leave max_grad_norm out or choose optimizer adamw"
            )
        return super().why_not(setup)

    def apply(self, setup: Setup) -> None:
        params = trained(setup)
        here = weakref.ref(setup)

        def due() -> bool:
            owner = here()
            return owner is not None and owner.last_micro_batch

        setup.optimizer = InBackward(params, [self.over(setup, [p], i) for i, p in enumerate(params)], due)


class AdamW8bit(_Optimizer):
    """AdamW whose states have 8 bits and a scale for each 256 of them; parameters below 4096 elements keep fp32."""

    name = "adamw-8bit"
    source = "Dettmers et al. 2022, arXiv 2110.02861; bitsandbytes 0.50, optim/adamw.py"
    exactness = "changes-model"
    departure = 1

    def why_not(self, setup: Setup) -> str | None:
        return missing() or super().why_not(setup)

    def make(
        self, setup: Setup, groups: list[dict[str, Any]], numbers: Mapping[nn.Parameter, int]
    ) -> torch.optim.Optimizer:
        return adamw_8bit(groups, lr=setup.learning_rate)


class Adafactor(_Optimizer):
    """Second moments as a row and a column for each matrix, no first moments, steps in proportion to the weights.

    The parameters are those of `torch.optim.Adafactor`: `epsilon1` (where left out, the resolution of the format) and
    `epsilon2`, `clipping_threshold` (there `d`), `beta2_decay`. A step changes a matrix by at most learning rate times
    its own root mean square, or times `epsilon2` where that is larger; the authors use 0.01 for the learning rate.
    """

    name = "adafactor"
    source = "Shazeer and Stern 2018, arXiv 1804.04235; torch.optim.Adafactor"
    exactness = "changes-model"
    automatic = False
    departure = 2

    beta2_decay: float = Field(-0.8, le=0)
    epsilon1: float | None = Field(None, ge=0)
    epsilon2: float = Field(1e-3, ge=0)
    clipping_threshold: float = Field(1.0, ge=1)

    def make(
        self, setup: Setup, groups: list[dict[str, Any]], numbers: Mapping[nn.Parameter, int]
    ) -> torch.optim.Optimizer:
        return _Adafactor(
            groups,
            lr=setup.learning_rate,
            beta2_decay=self.beta2_decay,
            eps=(self.epsilon1, self.epsilon2),
            d=self.clipping_threshold,
        )


class _Adafactor(torch.optim.Adafactor):
    """PyTorch's, which asks tensors for numbers, and is answered also where they have no values."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if any(isinstance(p, FakeTensor) for group in self.param_groups for p in group["params"]):
            with _EveryNumberIsOne():  # type: ignore[no-untyped-call]
                return super().step(closure)  # type: ignore[no-untyped-call]
        return super().step(closure)  # type: ignore[no-untyped-call]


class _EveryNumberIsOne(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers ``tensor.item()``, and passes everything else on."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0
        return func(*args, **(kwargs or {}))


def trained(setup: Setup) -> list[nn.Parameter]:
    """The parameters to step. Raises ValueError where there are none."""
    params = list(setup.trainable().values())
    if not params:
        raise ValueError("nothing to train: every parameter is frozen")
    return params


def decay_groups(params: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices, which are decayed, and biases and normalisation, which are not."""
    decayed = [p for p in params if p.ndim >= 2]
    plain = [p for p in params if p.ndim < 2]
    return [
        {"params": group, "weight_decay": decay} for group, decay in ((decayed, weight_decay), (plain, 0.0)) if group
    ]


OPTIONS = (AdamW, AdamWInBackward, AdamW8bit, Adafactor)
