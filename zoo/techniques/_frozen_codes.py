"""Frozen linear layers whose weights are held in 4 or 8 bits by bitsandbytes, in every world.

The layers are bitsandbytes' own with another `forward`: the weight is dequantized and multiplied by operations that
a ledger sees one by one, where those of bitsandbytes hide the dequantized weight inside a kernel. It is what its own
kernels do while training (``_gemm_4bit_default_impl``, ``MatMul8bitFp``), to the bit. In `eval()` bitsandbytes does
otherwise: on some CPUs a 4-bit layer repacks its weight for good, rounds its scales, and from then on passes no
gradient to its input; an 8-bit one rounds its inputs to 8 bits as well. Here evaluation computes what training did.

This module imports bitsandbytes: import it through `zoo.techniques.quantization.layers`.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes
import torch
import torch.nn.functional as F  # noqa: N812  (the name that torch's documentation uses)
from bitsandbytes import functional
from bitsandbytes.nn import Int8Params, Params4bit
from torch import nn

if "dynamic" not in functional.name2qmap:  # bitsandbytes would keep the first it makes, with storage or without
    functional.name2qmap["dynamic"] = functional.create_dynamic_map()

BLOCK = 64
"""Weights that share a scale in 4 bits (Dettmers et al. 2023, section 3)."""


class _Product(torch.autograd.Function):
    """``x @ weight.T + bias``, with the weight dequantized once in each direction and never kept.

    x: (..., inputs); result: (..., outputs).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Linear4bit | Linear8bit, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.layer = layer
        return F.linear(x, layer.full_weight().to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor | None]:
        (grad,) = grads
        into_x, _, into_bias = ctx.needs_input_grad
        return (
            torch.matmul(grad, ctx.layer.full_weight().to(grad.dtype)) if into_x else None,
            None,
            grad.flatten(0, -2).sum(0) if into_bias else None,
        )


class _Frozen:
    """What both kinds of layer share."""

    compute_dtype: torch.dtype
    weight: nn.Parameter
    bias: nn.Parameter | None

    def full_weight(self) -> torch.Tensor:
        """The weight as it is multiplied: (outputs, inputs) in `compute_dtype`."""
        raise NotImplementedError

    @property
    def W_q(self) -> nn.Parameter:  # noqa: N802
        """By this name PEFT knows layers that `dequantize` themselves (``peft.utils.integrations``), for DoRA."""
        return self.weight

    def dequantize(self) -> torch.Tensor:
        return self.full_weight()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., inputs) of any floating-point type; the result has the same type."""
        out: torch.Tensor = _Product.apply(x.to(self.compute_dtype), self, self.bias)  # type: ignore[no-untyped-call]
        return out.to(x.dtype)


class Linear4bit(_Frozen, bitsandbytes.nn.Linear4bit):  # type: ignore[misc]
    """NF4: codes of 4 bits and a scale for every 64 weights. The scales are 8-bit codes where quantized doubly."""

    def full_weight(self) -> torch.Tensor:
        weight: torch.Tensor = functional.dequantize_4bit(self.weight.data, self.quant_state)
        return weight

    def fill(self, value: torch.Tensor) -> None:
        """Take the weight in `value`, (outputs, inputs) in any floating-point type."""
        empty: Any = self.weight
        self.weight = quantized_4bit(value, self, compress=empty.compress_statistics)
        self.quant_state.dtype = self.compute_dtype


class Linear8bit(_Frozen, bitsandbytes.nn.Linear8bitLt):  # type: ignore[misc]
    """8-bit integers with one scale for each output."""

    def full_weight(self) -> torch.Tensor:
        codes: torch.Tensor = self.weight.data
        scales = self.state.SCB.unsqueeze(1).mul(1.0 / 127.0)
        if codes.device.type == "cpu":  # which multiplies 16-bit by 32-bit numbers in a 32-bit copy: let it be seen
            return codes.float().mul_(scales).to(self.compute_dtype)
        return codes.to(self.compute_dtype).mul_(scales)

    def fill(self, value: torch.Tensor) -> None:
        """Take the weight in `value`, (outputs, inputs) in any floating-point type."""
        codes, scales, _ = functional.int8_vectorwise_quant(value.to(torch.float16))
        self.weight = _parameter(Int8Params, codes, has_fp16_weights=False)
        self.state.CB, self.state.SCB = self.weight.data, scales


def empty_4bit(linear: nn.Linear, *, compress: bool, kind: Any = Linear4bit) -> Any:
    """A 4-bit layer (`kind`, of bitsandbytes) for the place of `linear`, with its bias. Call it storage-free.

    `compress` quantizes the scales, too.
    """
    dtype = linear.weight.dtype
    made = kind(
        linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, compress_statistics=compress,
        quant_type="nf4",
    )  # fmt: skip
    made.bias = linear.bias
    made.weight.data = made.weight.data.to(dtype)
    return made.train(linear.training)


def empty_8bit(linear: nn.Linear) -> Linear8bit:
    """An 8-bit layer for the place of `linear`, with its bias. Call it storage-free."""
    made = Linear8bit(linear.in_features, linear.out_features, bias=False, has_fp16_weights=False)
    made.bias = linear.bias
    made.compute_dtype = linear.weight.dtype
    made.train(linear.training)
    return made


def quantized_4bit(value: torch.Tensor, owner: Any, *, compress: bool) -> Any:
    """The parameter that ``Params4bit.to(device)`` makes of `value`: codes, with scales in ``owner.quant_state``."""
    codes, state = functional.quantize_4bit(value, blocksize=BLOCK, compress_statistics=compress, quant_type="nf4")
    owner.quant_state = state
    return _parameter(
        Params4bit, codes, quant_state=state, blocksize=BLOCK, compress_statistics=compress, quant_type="nf4",
        quant_storage=torch.uint8, bnb_quantized=True, module=owner,
    )  # fmt: skip


def _parameter(kind: Any, codes: torch.Tensor, **facts: Any) -> Any:
    """A parameter of `kind`; a fake tensor, which can be of no other class, becomes a plain one with the same facts."""
    if type(codes) is torch.Tensor:
        return kind(codes, requires_grad=False, **facts)
    made = nn.Parameter(codes, requires_grad=False)
    for name, value in facts.items():
        setattr(made, name, value)
    return made
