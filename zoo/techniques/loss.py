"""The loss over a vocabulary: from all scores at once, or chunk by chunk, so that they never exist as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name that torch's documentation uses)
from pydantic import Field
from torch import nn
from torch.autograd.function import once_differentiable

from zoo.errors import InputError
from zoo.techniques import Technique

if TYPE_CHECKING:
    from zoo.step import Setup

VOCABULARY_HEADS = ("masked_lm", "causal_lm")
"""Kinds of heads whose outputs are the tokens of the model's vocabulary."""


class FullLoss(Technique):
    """Compute the scores of all tokens, then the loss, as models are written."""

    key = "loss"
    name = "full"
    source = "-"
    stage = 210
    exactness = "bitwise"

    def apply(self, setup: Setup) -> None:
        pass


class ChunkedLoss(Technique):
    """Cross-entropy over `chunk` tokens at a time; the scores of a chunk are computed again in the backward pass.

    The output layer hands on its input and weight; the loss multiplies them. One product more than without, and neither
    forward nor backward more than (chunk, vocabulary) scores. The gradient of the weight is summed in fp32 at least.
    `tolerance` bounds the relative error of losses and of all weights together in three steps in fp32.
    """

    key = "loss"
    name = "chunked"
    source = "Wijmans et al. 2024, arXiv 2411.09009; Hsu et al. 2024, arXiv 2410.10989"
    stage = 210
    exactness = "rounding"
    tolerance = 2**-14
    automatic = False
    affine = False

    chunk: int = Field(1024, ge=1)

    def why_not(self, setup: Setup) -> str | None:
        kind = setup.task.head.kind
        if kind not in VOCABULARY_HEADS:
            return (
                f"{setup.task.name} has a head of kind {kind}, whose outputs are no vocabulary; "
                f"write loss: full (chunked is for heads of kind {' or '.join(VOCABULARY_HEADS)})"
            )
        if not _output_layers(setup):
            return f"no linear layer in role head of {setup.card.name} could be the output layer"
        return None

    def apply(self, setup: Setup) -> None:
        for name, layer in _output_layers(setup).items():
            if type(layer) is not nn.Linear:
                raise InputError(
                    f"loss: chunked: the output layer {name} is a {type(layer).__name__}; "
                    "only a plain linear layer can be multiplied in chunks"
                )
            _hand_on(layer, self.chunk)


def _output_layers(setup: Setup) -> dict[str, nn.Module]:
    """The last linear layer of the head, and under PEFT both that which is trained and the one it was copied from."""
    if "head" not in setup.card.roles:
        return {}
    found: dict[str, dict[str, nn.Module]] = {}
    for head, module in setup.modules_of("head").items():
        for name, inner in module.named_modules(prefix=head):
            if isinstance(inner, nn.Linear):
                found.setdefault(re.sub(r"\.(original_module|modules_to_save\.[^.]+)(?=\.|$)", "", name), {})[name] = (
                    inner
                )
    return list(found.values())[-1] if found else {}


def _hand_on(layer: nn.Linear, chunk: int) -> None:
    """Wrap `forward` on the instance: names of parameters stay as they are."""

    def forward(hidden: torch.Tensor) -> ChunkedScores:
        return ChunkedScores(hidden, layer.weight, layer.bias, chunk)

    layer.forward = forward  # type: ignore[method-assign, assignment]


class NotComputed(InputError, AttributeError):
    """A model asks more of its scores than the loss: it computes something from them."""


class ChunkedScores:
    """Scores ``hidden @ weight.T + bias`` that have not been computed.

    Shapes: `hidden` (..., H), `weight` (V, H), `bias` (V) or None; the scores are (..., V). A bias can be added;
    anything else that a model does with its scores raises `InputError`.
    """

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, chunk: int) -> None:
        self._hidden = hidden
        self._weight = weight
        self._bias = bias
        self._chunk = chunk

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self._hidden.shape[:-1], self._weight.shape[0]))

    @property
    def dtype(self) -> torch.dtype:
        return self._hidden.dtype

    @property
    def device(self) -> torch.device:
        return self._hidden.device

    def __add__(self, bias: Any) -> ChunkedScores:
        if not isinstance(bias, torch.Tensor) or bias.shape != self._weight.shape[:1]:
            raise _not_computed("adds anything but a bias to it")
        whole = bias if self._bias is None else self._bias + bias
        return ChunkedScores(self._hidden, self._weight, whole, self._chunk)

    __radd__ = __add__

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> ChunkedScores:
        if func in (torch.add, torch.Tensor.add) and len(args) == 2 and not kwargs:
            first, second = args
            return first + second if isinstance(first, cls) else second + first  # type: ignore[no-any-return]
        raise _not_computed(f"calls {getattr(func, '__name__', func)} with it")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _not_computed(f"asks for its {name}")

    def full(self) -> torch.Tensor:
        """All scores at once, in the type of the model."""
        return F.linear(self._hidden, self._weight, self._bias)

    def summed_cross_entropy(self, targets: torch.Tensor, ignored: int) -> torch.Tensor:
        """Sum over `targets` (...) of the cross-entropy, those that are `ignored` left out; fp32 at least."""
        hidden = self._hidden.flatten(0, -2)
        loss: torch.Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, self._weight, self._bias, targets.flatten(), ignored, self._chunk
        )
        return loss

    @torch.no_grad()
    def likelihoods(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log likelihoods of `targets` (...) and the likeliest tokens."""
        hidden, wanted = self._hidden.flatten(0, -2), targets.flatten()
        said, best = [], []
        for part in _parts(len(hidden), self._chunk):
            scores = _scores(hidden[part], self._weight, self._bias)
            best.append(scores.argmax(-1))
            picked, normalizer = _normalized(scores, wanted[part])
            said.append(picked - normalizer)
        return torch.cat(said).view(targets.shape), torch.cat(best).view(targets.shape)


def _not_computed(what: str) -> NotComputed:
    return NotComputed(
        f"loss: chunked: the model does not only return what its output layer gives, it {what}; write loss: full"
    )


def _parts(count: int, chunk: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk, count)) for start in range(0, count, chunk))


def _scores(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Of the tokens given, in fp32 at least; nobody else holds them."""
    scores = hidden @ weight.t() if bias is None else torch.addmm(bias, hidden, weight.t())
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _normalized(scores: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The targets' scores and the logarithm of the sum of all exponentials. Overwrites `scores`."""
    picked = scores.gather(1, targets.unsqueeze(1)).squeeze(1)
    highest = scores.amax(1)
    return picked, scores.sub_(highest.unsqueeze(1)).exp_().sum(1).log_().add_(highest)


class _CrossEntropy(torch.autograd.Function):
    """The summed cross-entropy of chunks. Kept for the backward pass: one number for each token beside the inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        ignored: int,
        chunk: int,
    ) -> torch.Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        counted = targets != ignored
        targets = targets.masked_fill(~counted, 0)
        normalizers = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        for part in _parts(len(hidden), chunk):
            picked, normalizers[part] = _normalized(_scores(hidden[part], weight, bias), targets[part])
            total += (normalizers[part] - picked).masked_fill_(~counted[part], 0).sum()
        ctx.save_for_backward(hidden, weight, bias, targets, counted, normalizers)
        ctx.chunk = chunk
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, counted, normalizers = ctx.saved_tensors
        wide = normalizers.dtype
        of_hidden, of_weight, of_bias = (
            torch.zeros(t.shape, dtype=t.dtype if t is hidden else wide, device=t.device) if needed else None
            for t, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        )
        for part in _parts(len(hidden), ctx.chunk):
            # The derivative by a score is its probability, less one for the target.
            slopes = _scores(hidden[part], weight, bias).sub_(normalizers[part].unsqueeze(1)).exp_()
            slopes.scatter_add_(1, targets[part].unsqueeze(1), slopes.new_full((1, 1), -1.0).expand(len(slopes), 1))
            slopes.mul_((counted[part] * grad).unsqueeze(1))
            if of_bias is not None:
                of_bias += slopes.sum(0)
            slopes = slopes.to(hidden.dtype)
            if of_hidden is not None:
                torch.mm(slopes, weight, out=of_hidden[part])
            if of_weight is not None and of_weight.dtype == slopes.dtype:
                of_weight.addmm_(slopes.t(), hidden[part])
            elif of_weight is not None:
                of_weight += slopes.t() @ hidden[part]
            del slopes
        return (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(bias.dtype),
            *(None, None, None),
        )


OPTIONS = (FullLoss, ChunkedLoss)
