"""AdamW in bfloat16 throughout, with stochastic rounding.

Rounded to nearest, a bfloat16 weight of 1 does not change by less than 0.002, and a second moment never decays: its
factor 0.999 is nearer to 1 than the next number. Rounded up or down at random, in proportion to what is cut
off, both are right in expectation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

_CUT = 16
"""Bits of an fp32 number that bf16 does not have."""


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW whose parameters and states keep the parameters' own format; what is computed is fp32.

    Temporaries are those of one parameter at a time. Random numbers are a function of the group's `seed`, the
    parameter's number in `streams` and its step, all part of the state: neither the order in which parameters are
    stepped nor an interruption changes them. Parameters in fp32 are stepped as by `torch.optim.AdamW`.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        streams: Mapping[nn.Parameter, int],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "seed": seed}
        super().__init__(groups, defaults)
        self._streams = dict(streams)
        self._generators: dict[torch.device, torch.Generator] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)

    def _update(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p), stream=self._streams[p])
        state["step"] += 1
        beta1, beta2 = group["betas"]
        correction1, correction2 = (1 - beta ** state["step"] for beta in (beta1, beta2))
        random = self._seeded(p.device, group["seed"], state["stream"], state["step"])
        grad = p.grad.float()
        mean = state["exp_avg"].float().lerp_(grad, 1 - beta1)
        square = state["exp_avg_sq"].float().mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        del grad
        round_into(state["exp_avg"], mean, random)
        round_into(state["exp_avg_sq"], square, random)
        scale = square.sqrt()
        del square
        scale.div_(math.sqrt(correction2)).add_(group["eps"])
        value = p.detach().float().mul_(1 - group["lr"] * group["weight_decay"])
        value.addcdiv_(mean, scale, value=-group["lr"] / correction1)
        del mean, scale
        round_into(p, value, random)

    def _seeded(self, device: torch.device, *numbers: int) -> torch.Generator:
        """The device's generator, at the beginning of a sequence that these `numbers` select."""
        generator = self._generators.get(device)
        if generator is None:
            kind = torch.device("cpu") if device.type == "meta" else device  # nothing is drawn on meta
            generator = self._generators[device] = torch.Generator(kind)
        generator.manual_seed(_mixed(*numbers))
        return generator


def round_into(target: torch.Tensor, value: torch.Tensor, random: torch.Generator) -> None:
    """Set `target` (bf16) to `value` (fp32) rounded up or down, so that its expectation is `value`.

    A random number is added to the bits that are then cut off. Infinite values stay so, and so does what is not a
    number, to whose bits nothing is added. A `target` in fp32 gets `value` as it is.
    """
    if target.dtype == torch.float32:
        target.copy_(value)
        return
    bits = torch.empty_like(value, dtype=torch.int32).random_(0, 2**_CUT, generator=random)
    bits.masked_fill_(value != value, 0)
    bits.add_(value.view(torch.int32)).bitwise_and_(-(2**_CUT))
    target.copy_(bits.view(torch.float32))


def _mixed(*numbers: int) -> int:
    """A seed in which every bit of every number counts (SplitMix64, Steele, Lea and Flood 2014)."""
    seed = 0
    for number in numbers:
        seed = (seed + number + 0x9E3779B97F4A7C15) % 2**64
        seed = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        seed = ((seed ^ (seed >> 27)) * 0x94D049BB133111EB) % 2**64
        seed ^= seed >> 31
    return seed
