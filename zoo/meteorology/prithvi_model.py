"""Prithvi WxC under the signature of a forecaster. Imported only once `zoo.meteorology.prithvi.library` has succeeded.

The library's modules are used as they are, put together as in its forward pass, but without what that does for masks:
nothing is masked in forecasts, and yet it would draw an order of tokens at random, gather all of them twice, and sort
them in the backward pass on a GPU that is to give the same numbers every time. What else is changed changes no number:

- its scalers are buffers of a module of their own, which stays in fp32 whatever the model's number format;
- fields come and go normalised as the task has them, and are brought into the library's units by what the task says;
- a block is given its tokens and not a tuple, so that techniques find what it is given;
- masks of shifted windows, which its attention does not look at, are not made.

Legend of shapes: `B` batch, `S` states of history, `V` fields given, `C` channels of the library, `O` fields wanted,
`H` x `W` grid points, `G` windows of `L` tokens, `D` width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import PrithviWxC.model as library
import torch
from PrithviWxC.model import PatchEmbed, PrithviWxC, SWINShift, Transformer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.meteorology.layers import fields_at
from zoo.meteorology.prithvi import SCALERS, Places
from zoo.meteorology.released import PRITHVI, PRITHVI_STATIC

_IN_TIME = 4
"""Of the fields that the library calls static: cosine and sine of the day of the year, and of the hour of the day."""


class Scalers(nn.Module):
    """The library's scalers. `released` is 1 where they are those of a checkpoint, else 0: then nothing is scaled."""

    input_scalers_mu: Tensor
    input_scalers_sigma: Tensor
    static_input_scalers_mu: Tensor
    static_input_scalers_sigma: Tensor
    output_scalers: Tensor
    released: Tensor

    def __init__(self, scalers: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in scalers.items():
            self.register_buffer(name, value)
        self.register_buffer("released", torch.zeros(()))

    def reset_parameters(self) -> None:
        """Fields stay as they are normalised."""
        for name, value in self.named_buffers():
            value.fill_(0.0 if name.endswith("_mu") or name == "released" else 1.0)

    def units(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """What brings normalised fields into the units that the scalers are for."""
        return mean * self.released, std * self.released + (1 - self.released)


class PrithviForecaster(PrithviWxC):  # type: ignore[misc]
    """Prithvi WxC for the fields that `places` tells, on a grid of `latitudes` and `longitudes` in degrees."""

    def __init__(
        self, places: Places, latitudes: Sequence[float], longitudes: Sequence[float], *, history: int, **facts: Any
    ) -> None:
        channels, static = len(PRITHVI), _IN_TIME + len(PRITHVI_STATIC)
        super().__init__(
            in_channels=channels,
            input_size_time=history,
            in_channels_static=static,
            input_scalers_mu=torch.zeros(channels),
            input_scalers_sigma=torch.zeros(channels),
            input_scalers_epsilon=0.0,
            static_input_scalers_mu=torch.zeros(static + 3),  # three more: positions, which have ways of their own
            static_input_scalers_sigma=torch.zeros(static + 3),
            static_input_scalers_epsilon=0.0,
            output_scalers=torch.zeros(channels),
            n_lats_px=len(latitudes),
            n_lons_px=len(longitudes),
            mask_ratio_inputs=0.0,
            mask_ratio_targets=0.0,
            dropout=0.0,  # the library's attention would apply it in forecasts, too
            residual="climate",
            masking_mode="global",  # of nothing
            positional_encoding="fourier",
            checkpoint_encoder=[],  # a technique recomputes, where a recipe asks for it
            checkpoint_decoder=[],
            **facts,
        )
        self.places = places
        # plain tuples: tensors would be made without storage, and go from device to device
        self.latitudes, self.longitudes = _radians(latitudes), _radians(longitudes)
        self.scalers = Scalers({name: self._buffers.pop(name) for name in SCALERS})
        self.mask_token.requires_grad_(False)  # nothing is masked
        for part in (self.patch_embedding, self.patch_embedding_static):
            part.__class__ = _Embedding
        for stack in (self.encoder.lgl_block, self.decoder.lgl_block):
            stack.evaluator = [_evaluate] * len(stack.transformers)
            for block in stack.transformers:
                block.__class__ = _Block
            if isinstance(getattr(stack.shifter, "local_mask", None), Tensor):
                stack.shifter.__class__ = _Shift
                del stack.shifter.local_mask, stack.shifter.global_mask

    def forward(
        self, fields: Tensor, hours: Tensor, time: Tensor, climate: Tensor, mean: Tensor, std: Tensor
    ) -> Tensor:
        """Normalised states (B S V H W) at `time` (B), hours since 1970, and before -> fields wanted (B O H W).

        `hours` (B) are those between the states, and to the time that is forecast, for which `climate` (B V H W) is
        what is usual. `mean` and `std` (B V) are what fields are normalised by.
        """
        factors = torch.tensor(self.places.factors, device=mean.device)
        units = self.scalers.units(mean * factors, std * factors)
        shift, scale = (one[:, :, None, None] for one in units)
        channels, static = self.places.channels, self.places.static
        here, there = fields_at(scale, channels), fields_at(shift, channels)
        usual = fields_at(climate, channels) * here + there
        tokens = self._tokens(
            fields_at(fields, channels) * here[:, None] + there[:, None],
            self._static(time, *(fields_at(one, static) for one in (fields[:, -1], scale, shift))),
            usual,
            hours.to(self.mask_token.dtype),
        )
        said = self.from_patching(self.unembed(self.decoder(self.encoder(tokens))))
        forecast = self.scalers.output_scalers * functional.pixel_shuffle(said, self.patch_size_px[0]) + usual
        wanted, scale, shift = (fields_at(one, self.places.wanted) for one in (forecast, here, there))
        return (wanted - shift) / scale

    def _tokens(self, states: Tensor, static: Tensor, usual: Tensor, step: Tensor) -> Tensor:
        """States (B S C H W), static fields (B 10 H W), what is usual (B C H W) and hours (B) -> tokens (B G L D)."""
        known = self.scalers
        mean, std = known.input_scalers_mu, known.input_scalers_sigma
        seen = self.patch_embedding(self.parameter_dropout(((states - mean) / std).flatten(1, 2)))
        still = (static[:, 2:] - known.static_input_scalers_mu[:, 3:]) / known.static_input_scalers_sigma[:, 3:]
        beside = self.patch_embedding_static(torch.cat((still, (usual - mean[0]) / std[0]), dim=1))
        beside += self.fourier_pos_encoding(static)
        tokens: Tensor = self.to_patching(seen) + self.to_patching(beside) + self.time_encoding(step, step)
        return tokens

    def _static(self, time: Tensor, fields: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Latitude and longitude in radians, `calendar`, and fields that do not change: (B 10 H W), fp32."""
        rows = torch.tensor(self.latitudes, dtype=torch.float32, device=time.device)
        columns = torch.tensor(self.longitudes, dtype=torch.float32, device=time.device)
        everywhere = len(time), -1, len(rows), len(columns)
        place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        parts = [place.expand(everywhere), calendar(time)[:, :, None, None].expand(everywhere), fields * scale + shift]
        return torch.cat(parts, dim=1)

    def reset_parameters(self) -> None:
        """The authors' initial value of what is the model's own."""
        nn.init.normal_(self.mask_token)


def _radians(degrees: Sequence[float]) -> tuple[float, ...]:
    """As the library's dataset makes them, in single precision."""
    return tuple(float(value) for value in np.asarray(degrees, np.float32) / 360.0 * 2.0 * np.pi)


def calendar(time: Tensor) -> Tensor:
    """Cosine and sine of the day of the year (1 to 366) and of the hour of the day: (B 4), of hours since 1970 (B).

    Days are counted in years that begin in March, so that a leap day is the last of its year (Hinnant 2021,
    "chrono-Compatible Low-Level Date Algorithms", civil_from_days).
    """
    hours = time.round().long()
    days = hours.div(24, rounding_mode="floor")
    of_day = hours - 24 * days
    of_era = (days + 719_468).remainder(146_097)  # days since the beginning of March of a year that 400 divides
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    leap = ((year % 4 == 0) & (year % 100 != 0)) | (year == 0)
    of_january = torch.where(of_year >= 306, of_year - 305, of_year + 60 + leap.long())
    angles = torch.stack([of_january.double() / 366, of_day.double() / 24], dim=1) * (2 * math.pi)
    return torch.stack([angles.cos(), angles.sin()], dim=2).flatten(1).float()


# --------------------------------------------------------------------------------------- changes to the library's code


class _Block(Transformer):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x, None))  # type: ignore[no-any-return]


def _evaluate(block: nn.Module, given: tuple[Tensor, Tensor | None]) -> Any:
    return block(given[0])


class _Embedding(PatchEmbed):  # type: ignore[misc]
    """Is given fields in fp32, whatever the number format of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.proj.weight.dtype))  # type: ignore[no-any-return]


class _Shift(SWINShift):  # type: ignore[misc]
    def forward(self, data: Tensor) -> tuple[Tensor, dict[bool, None]]:
        moved = self._from_grid_local(self._shift(self._to_grid_local(data)))
        return moved, {True: None, False: None}


# It compares versions as text, so that PyTorch 2.13 passes for older than 2.3, and asks for kernels in a way that is
# deprecated, and that lets cuDNN's in.
library.TORCH_VERSION = "9"
library.SDPBackend, library.sdpa_kernel = SDPBackend, sdpa_kernel
