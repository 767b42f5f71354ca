"""Aurora under the signature of a forecaster. Imported only once `zoo.meteorology.aurora.library` has succeeded.

The library's code is used as it is, with a few things changed from outside, none of which changes a number:

- fields come and go in its own normalised units, since `Statistics` have made them so before;
- it checks coordinates, levels and times by asking tensors for their values at every step, which waits for the device,
  and which tensors without storage cannot answer: what it would find is checked here once;
- encodings of position are worked out once and not at every step;
- encoder, backbone, decoder and heads may each have a number format of their own;
- masks of windows are kept with the model and not in a cache of the process, in which a mask without storage would
  outlive a prediction.

Legend of shapes: `B` batch, `S` states of history, `V` fields given, `O` fields wanted, `H` x `W` grid points.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import aurora.model.decoder
import aurora.model.encoder
import aurora.model.swin3d
import torch
from aurora import Aurora, Batch, Metadata
from aurora.model.decoder import LinearPatchReconstruction, Perceiver3DDecoder
from aurora.model.encoder import Perceiver3DEncoder
from aurora.model.fourier import absolute_time_expansion, lead_time_expansion, levels_expansion
from aurora.model.patchembed import LevelPatchEmbed
from aurora.model.perceiver import PerceiverAttention, PerceiverResampler
from aurora.model.posencoding import pos_scale_enc
from aurora.model.swin3d import Swin3DTransformerBackbone, Swin3DTransformerBlock
from aurora.model.util import init_weights
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from zoo.errors import InputError
from zoo.meteorology.aurora import Places
from zoo.meteorology.layers import fields_at


@dataclasses.dataclass
class Place(Metadata):  # type: ignore[misc]
    """Metadata whose coordinates, constants in the host's memory, have been checked before.

    `hours` (B) since 1970 are for the encoder. The decoder, which would ask the device for the hours of the step to add
    them to each time, finds none.
    """

    hours: Tensor | None = None

    def __post_init__(self) -> None:
        pass


class Normalised(Batch):  # type: ignore[misc]
    """A batch that is in the model's own units already: its fields move and change type, its coordinates do not."""

    def normalise(self, surf_stats: Any) -> Batch:
        return self

    def unnormalise(self, surf_stats: Any) -> Batch:
        return self

    def _fmap(self, f: Callable[[Tensor], Tensor]) -> Batch:
        fields = ({name: f(x) for name, x in kind.items()} for kind in (self.surf_vars, self.static_vars))
        return Normalised(*fields, {name: f(x) for name, x in self.atmos_vars.items()}, self.metadata)


class _Encoder(Perceiver3DEncoder):  # type: ignore[misc]
    """Is told the times as a tensor: the library would have a list of dates, one for each sample."""

    def forward(self, batch: Batch, lead_times: Tensor) -> Tensor:
        anytime = datetime(1970, 1, 1, tzinfo=UTC)
        told = dataclasses.replace(batch, metadata=dataclasses.replace(batch.metadata, time=(anytime,)))
        _running.hours = batch.metadata.hours
        try:
            return super().forward(told, lead_times)  # type: ignore[no-any-return]
        finally:
            del _running.hours

    def aggregate_levels(self, x: Tensor) -> Tensor:
        latents = self.atmos_latents.to(dtype=x.dtype)[None, None].expand(len(x), x.shape[2], -1, -1)
        return self.level_agg(latents, x.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class _Backbone(Swin3DTransformerBackbone):  # type: ignore[misc]
    """Takes tokens in its own number format, whatever the encoder's."""

    def forward(self, x: Tensor, **more: Any) -> Tensor:
        return super().forward(x.to(_format(self)), **more)  # type: ignore[no-any-return]


class _Block(Swin3DTransformerBlock):  # type: ignore[misc]
    """Shares the masks of shifted windows with all blocks of its model."""

    masks: dict[Any, Tensor]

    def forward(self, *args: Any, **more: Any) -> Tensor:
        _running.masks = self.masks
        try:
            return super().forward(*args, **more)  # type: ignore[no-any-return]
        finally:
            del _running.masks


class _Decoder(Perceiver3DDecoder):  # type: ignore[misc]
    """Takes tokens in its own number format, whatever the backbone's."""

    def forward(self, x: Tensor, *args: Any, **more: Any) -> Batch:
        return super().forward(x.to(_format(self)), *args, **more)

    def deaggregate_levels(self, level_embed: Tensor, x: Tensor, level_decoder: nn.Module) -> Tensor:
        return level_decoder(level_embed, x)  # type: ignore[no-any-return]


class _Levels(PerceiverResampler):  # type: ignore[misc]
    """Treats every patch by itself: keeps patches (dimension 1) apart from samples, for a technique to divide them."""

    def forward(self, latents: Tensor, x: Tensor) -> Tensor:
        made: Tensor = super().forward(latents.flatten(0, 1), x.flatten(0, 1))
        return made.reshape(latents.shape)


class _Head(LinearPatchReconstruction):  # type: ignore[misc]
    """Takes tokens in its own number format, whatever the decoder's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))  # type: ignore[no-any-return]


class _Product(nn.Linear):
    """One product of matrices for all patches; what is the same at each of them, as latents are, is multiplied once.

    With frozen weights, PyTorch would make a product for each patch where they do not lie one behind the other in
    memory, and in bf16 on a CPU as many copies of the weights: 136 GB for the decoder of Aurora at 0.25 degrees.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.stride(0) == 0:
            return super().forward(x[:1]).expand(len(x), -1, -1)
        return super().forward(x.contiguous())


def _format(module: nn.Module) -> torch.dtype:
    """What a module computes in; quantized weights are integers."""
    return next(p.dtype for p in module.parameters() if p.is_floating_point())


_OURS = {PerceiverResampler: _Levels, LinearPatchReconstruction: _Head, Swin3DTransformerBlock: _Block}


class AuroraForecaster(Aurora):  # type: ignore[misc]
    """Aurora for the fields that `places` tells, on a grid of `latitudes` and `longitudes` in degrees.

    `plain_aggregation`: attention over levels, 3 to 13 of them at each of 64,800 patches, without a fused kernel. Its
    scores are small, and the backward pass of FlashAttention would make room for 128 levels at each patch, 32 GiB.
    Raises `InputError` for coordinates that are not those of a globe in rows and columns of whole patches.
    """

    def __init__(
        self,
        places: Places,
        latitudes: Sequence[float],
        longitudes: Sequence[float],
        *,
        history: int,
        step_hours: float,
        patch_size: int,
        plain_aggregation: bool,
        **facts: Any,
    ) -> None:
        super().__init__(
            use_lora=False,
            max_history_size=history,
            timestep=timedelta(hours=step_hours),
            patch_size=patch_size,
            **facts,
        )
        self.places = places
        self.southward = latitudes[0] > latitudes[-1]
        north_first = tuple(latitudes if self.southward else reversed(latitudes))
        _check_globe(north_first, tuple(longitudes), patch_size)
        # plain tuples: tensors would be made without storage, and go from device to device
        self.latitudes, self.longitudes = north_first, tuple(longitudes)
        self.encoder.__class__, self.backbone.__class__, self.decoder.__class__ = _Encoder, _Backbone, _Decoder
        masks: dict[Any, Tensor] = {}
        for module in self.modules():
            if isinstance(module, PerceiverAttention) and plain_aggregation:
                module.use_fp16_safe_attention = True  # the library's plain attention
                module.to_q.__class__ = module.to_kv.__class__ = _Product
            elif type(module) in _OURS:
                module.__class__ = _OURS[type(module)]
            if isinstance(module, _Block):
                module.masks = masks

    def forward(self, fields: Tensor, hours: Tensor, time: Tensor) -> Tensor:
        """Normalised states (B S V H W) at `time` (B), hours since 1970, and before -> fields wanted (B O H W), 6 h on.

        `hours` (B), those of the step, are the model's own always: the task sees to it.
        """
        states = fields if self.southward else fields.flip(-2)
        with _disable_current_modes():
            coordinates = _on_the_host(self.latitudes), _on_the_host(self.longitudes)
        places = self.places
        batch = Normalised(
            {name: states[:, :, i] for name, i in places.surface.items()},
            {name: states[0, -1, i] for name, i in places.static.items()},
            {name: fields_at(states, where) for name, where in places.on_levels.items()},
            Place(*coordinates, (), places.levels, hours=time),
        )
        said = super().forward(batch)
        found = [
            said.surf_vars[name][:, 0] if level is None else said.atmos_vars[name][:, 0, level]
            for name, level in places.wanted
        ]
        wanted = torch.stack(found, dim=1)
        return wanted if self.southward else wanted.flip(-2)

    def _post_decoder_hook(self, batch: Batch, pred: Batch) -> Batch:
        return Normalised(pred.surf_vars, pred.static_vars, pred.atmos_vars, pred.metadata)

    def reset_parameters(self) -> None:
        """Values of the authors' initialisation."""
        self.apply(init_weights)
        for layer in (*self.backbone.encoder_layers, *self.backbone.decoder_layers):
            layer.init_respostnorm()
        nn.init.trunc_normal_(self.encoder.atmos_latents, std=0.02)
        nn.init.trunc_normal_(self.encoder.surf_level_encoding, std=0.02)
        for module in self.modules():
            if isinstance(module, LevelPatchEmbed):
                module.init_weights()


def _on_the_host(numbers: Sequence[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device="cpu")


def _check_globe(latitudes: tuple[float, ...], longitudes: tuple[float, ...], patch_size: int) -> None:
    down = latitudes[0] <= 90 and latitudes[-1] >= -90 and all(a > b for a, b in itertools.pairwise(latitudes))
    east = longitudes[0] >= 0 and longitudes[-1] < 360 and all(a < b for a, b in itertools.pairwise(longitudes))
    rows, columns = len(latitudes), len(longitudes)
    whole = latitudes[0] - latitudes[-1] > 180 - 270 / rows and longitudes[-1] - longitudes[0] > 360 - 540 / columns
    if not (down and east and whole):
        raise InputError(
            f"Aurora: {rows} latitudes from {latitudes[0]:g} to {latitudes[-1]:g}, {columns} longitudes from "
            f"{longitudes[0]:g} to {longitudes[-1]:g}; it takes the whole globe only, latitudes within 90 and -90, "
            "longitudes from 0 to below 360, both in order"
        )
    if len(latitudes) % patch_size or len(longitudes) % patch_size:
        raise InputError(
            f"Aurora: a grid of {len(latitudes)} x {len(longitudes)} points is not made of whole patches of "
            f"{patch_size} x {patch_size}; leave out a row with a box"
        )


# --------------------------------------------------------------------------------------- changes to the library's code


_running = threading.local()
"""`hours` (B) since 1970 of the encoder, `masks` of the block that is running in this thread: backward passes have
threads of their own."""


def _expansion_of_times(x: Tensor, width: int) -> Tensor:
    return absolute_time_expansion(getattr(_running, "hours", x), width)  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=1)
def _encodings(width: int, latitudes: tuple[float, ...], longitudes: tuple[float, ...], patch: int) -> Any:
    expansions = aurora.model.encoder.pos_expansion, aurora.model.encoder.scale_expansion
    with torch.inference_mode(False), torch.no_grad():  # they are for every step, not only for one without gradients
        coordinates = _on_the_host(latitudes), _on_the_host(longitudes)
        return pos_scale_enc(width, *coordinates, patch, pos_expansion=expansions[0], scale_expansion=expansions[1])


def _once(width: int, latitudes: Tensor, longitudes: Tensor, patch: int, **given: Any) -> tuple[Tensor, ...]:
    if not hasattr(_running, "hours"):  # the library itself is at work
        return pos_scale_enc(width, latitudes, longitudes, patch, **given)  # type: ignore[no-any-return]
    with _disable_current_modes():
        if _running.hours.is_meta:  # without storage there are no values, which take seconds to compute
            patches = (len(latitudes) // patch) * (len(longitudes) // patch)
            found = tuple(torch.empty(patches, width) for _ in range(2))
        else:
            found = _encodings(width, tuple(latitudes.tolist()), tuple(longitudes.tolist()), patch)
    return tuple(encoding.to(_running.hours.device) for encoding in found)


aurora.model.encoder.pos_scale_enc = _once
aurora.model.encoder.absolute_time_expansion = _expansion_of_times
aurora.model.decoder.Metadata = Place
for _expansion in (lead_time_expansion, levels_expansion):
    _expansion.assert_range = False  # hours of a step and levels of the table of constants are in range
_mask = aurora.model.swin3d.compute_3d_shifted_window_mask
_mask = getattr(_mask, "__wrapped__", _mask)  # the library keeps masks in a cache of its own


def _mask_kept(*facts: Any, **more: Any) -> tuple[Tensor, None]:
    masks = getattr(_running, "masks", {})  # none of a model of the library itself
    key = facts, *more.items()
    if key not in masks:
        with torch.inference_mode(False), torch.no_grad():
            masks[key], _ = _mask(*facts, **more)
    return masks[key], None


aurora.model.swin3d.compute_3d_shifted_window_mask = _mask_kept
