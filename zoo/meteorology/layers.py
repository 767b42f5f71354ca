"""Self-attention, feed-forward and stochastic depth as both weather transformers use them; fields by their places.

Legend of shapes: `B` batch, `L` patches, `D` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2): (B L D) -> (B L D)."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        b, length, width = x.shape
        qkv = self.qkv(x).reshape(b, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.dropout(self.proj(mixed.transpose(1, 2).reshape(b, length, width)))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Two linear layers with GELU between them (exact, or approximated with ``tanh``): (B L D) -> (B L D)."""

    def __init__(
        self, width: int, hidden: int, approximate: Literal["none", "tanh"] = "none", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(self.act(self.fc1(x)))))  # type: ignore[no-any-return]


class DropPath(nn.Module):
    """Leaves a residual branch out for a random part of the samples (Huang et al. 2016, arXiv:1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.empty(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)


def initialise_linear(module: nn.Module) -> None:
    """Normal weights and zero biases for `nn.Linear`, for use with `nn.Module.apply`.

    The authors cut the distribution off at 2, a hundred deviations away, which never happens.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def fields_at(states: Tensor, places: Sequence[int]) -> Tensor:
    """Some fields of states (... V H W), in the order of `places`; without a copy where they follow each other."""
    first = places[0]
    if list(places) == list(range(first, first + len(places))):
        return states.narrow(-3, first, len(places))
    return torch.stack([states.select(-3, place) for place in places], dim=-3)
