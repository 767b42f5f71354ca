"""Work that treats every position of its input by itself, done for some positions at a time."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import nn
from torch.utils.checkpoint import checkpoint

from zoo.techniques import Technique

if TYPE_CHECKING:
    from zoo.card import ModelCard
    from zoo.step import Setup

ROLE = "positionwise"


class NoChunking(Technique):
    """All positions at once, as models are written."""

    key = "chunking"
    name = "none"
    source = "-"
    stage = 200
    exactness = "bitwise"

    def apply(self, setup: Setup) -> None:
        pass


class Positions(Technique):
    """Run modules of role ``positionwise`` on one of `pieces` parts of the positions (dimension 1) after the other.

    Each part is computed again in the backward pass, so that only one of them has its intermediate results at any time.
    What comes out is the same; gradients of the weights are summed over the parts, so in another order. `tolerance`
    bounds the relative error of losses and of all weights together in three steps in fp32.
    """

    key = "chunking"
    name = "positions"
    source = "Kitaev, Kaiser, Levskaya 2020 (Reformer), arXiv 2001.04451, section 3 (chunking)"
    stage = 200
    exactness = "rounding"
    tolerance = 2**-14

    pieces: int = Field(8, ge=2)

    def automatic_for(self, card: ModelCard | None) -> bool:
        return card is not None and ROLE in card.roles

    def why_not(self, setup: Setup) -> str | None:
        if ROLE not in setup.card.roles:
            return f"{setup.card.name} has no role {ROLE}: nothing is known to treat every position by itself"
        for name, module in setup.modules_of(ROLE).items():
            if any(isinstance(part, nn.Dropout) and part.p > 0 for part in module.modules()):
                return f"{name} of {setup.card.name} has dropout, whose masks would be others than those of all at once"
        return None

    def apply(self, setup: Setup) -> None:
        for module in setup.modules_of(ROLE).values():
            _divide(module, self.pieces)


def _divide(module: nn.Module, pieces: int) -> None:
    """Wrap `forward` on the instance, whose first argument is (B, L, ...), as is its result (B, L, ...).

    Whatever other tensor has L as its dimension 1 is divided as well.
    """
    forward = module.forward

    @functools.wraps(forward)
    def divided(*args: Any, **kwargs: Any) -> torch.Tensor:
        length = args[0].shape[1]
        size = -(-length // pieces)
        made = []
        for start in range(0, length, size):
            part = functools.partial(_part, start=start, size=min(size, length - start), length=length)
            mine, named = [part(value) for value in args], {key: part(value) for key, value in kwargs.items()}
            if torch.is_grad_enabled():
                made.append(checkpoint(forward, *mine, use_reentrant=False, preserve_rng_state=False, **named))
            else:
                made.append(forward(*mine, **named))
        return torch.cat(made, 1)

    marked: Any = divided
    marked.recomputes = True
    module.forward = marked


def _part(value: Any, *, start: int, size: int, length: int) -> Any:
    along = isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[1] == length
    return value.narrow(1, start, size) if along else value


OPTIONS = (NoChunking, Positions)
