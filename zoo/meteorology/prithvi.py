"""Prithvi WxC, the library's model, as a task uses it: which of our fields is which of its channels, on which grid."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from zoo.domain import Head
from zoo.errors import InputError, unknown
from zoo.meteorology.checkpoints import only_checkpoint, read_training_checkpoint
from zoo.meteorology.forecasters import ForecastHead
from zoo.meteorology.names import GRAVITY
from zoo.meteorology.released import PRITHVI, PRITHVI_STATIC

if TYPE_CHECKING:
    from zoo.card import ModelCard
    from zoo.meteorology.prithvi_model import PrithviForecaster

SCALERS = (
    "input_scalers_mu", "input_scalers_sigma", "static_input_scalers_mu", "static_input_scalers_sigma",
    "output_scalers",
)  # fmt: skip
"""Buffers of the library's model: means and deviations of its variables, and deviations from climatology."""
_LIBRARYS = (
    "patch_size_px", "mask_unit_size_px", "embed_dim", "n_blocks_encoder", "n_blocks_decoder", "mlp_multiplier",
    "n_heads", "encoder_shifting", "decoder_shifting", "drop_path", "parameter_dropout",
)  # fmt: skip
"""Facts of a card's config that are the library's own; the others are the task's."""


@dataclass(frozen=True)
class Places:
    """Where each of the library's 160 channels and of its 4 fields that never change is among the fields given.

    `wanted` are the channels of the fields wanted. `factors` make a given field, in the unit of the table of names,
    what the library's is: its orography is a geopotential.
    """

    channels: tuple[int, ...]
    static: tuple[int, ...]
    wanted: tuple[int, ...]
    factors: tuple[float, ...]


def places_of(name: str, given: Sequence[str], wanted: Sequence[str]) -> Places:
    """Raises `InputError` for fields that Prithvi does not know, that it lacks, or that it does not forecast."""
    known = (*PRITHVI, *PRITHVI_STATIC)
    problems = [unknown(f"{name}: fields given", "field", field, known) for field in given if field not in known]
    if lacking := [field for field in known if field not in given]:
        more = f" and {len(lacking) - 6} more" if len(lacking) > 6 else ""
        problems.append(
            f"{name}: it takes all of its {len(PRITHVI)} variables and {len(PRITHVI_STATIC)} that do not change; not "
            f"given are {', '.join(lacking[:6])}{more}; recipes/meteorology/prithvi_lora.yaml names them all"
        )
    for field in wanted:
        if field in PRITHVI_STATIC:
            problems.append(f"{name}: {field} is wanted, and it is given only; leave it out of the targets")
        elif field not in PRITHVI:
            problems.append(unknown(f"{name}: fields wanted", "field", field, PRITHVI))
    if problems:
        raise InputError(problems)
    return Places(
        tuple(given.index(field) for field in PRITHVI),
        tuple(given.index(field) for field in PRITHVI_STATIC),
        tuple(PRITHVI.index(field) for field in wanted),
        tuple(GRAVITY if field == "orography" else 1.0 for field in given),
    )


def build(card: ModelCard, head: Head) -> PrithviForecaster:
    """The card's Prithvi. Raises `InputError` as `places_of` and `library` do, and for another grid than the card's."""
    if head.kind not in ("forecast", "masked_lm"):  # the second is what `zoo.load` asks for: the pretraining head
        raise ValueError(f"{card.name} has no head of kind {head.kind!r} (kinds: forecast)")
    library()
    from zoo.meteorology.prithvi_model import PrithviForecaster

    rows, columns = card.config["grid"]
    asked = head if isinstance(head, ForecastHead) else ForecastHead("forecast", head.outputs)
    places = places_of(card.name, asked.given or card.config["variables"], asked.wanted or PRITHVI)
    latitudes = asked.latitudes or tuple(180 / rows * np.arange(rows) - 90)
    longitudes = asked.longitudes or tuple(360 / columns * np.arange(columns) - 180)
    _check_grid(card.name, (rows, columns), latitudes, longitudes)
    facts = {key: card.config[key] for key in _LIBRARYS}
    return PrithviForecaster(places, latitudes, longitudes, history=card.config["history"], **facts)


def _check_grid(name: str, shape: tuple[int, int], latitudes: Sequence[float], longitudes: Sequence[float]) -> None:
    """Raises `InputError` where the points are not those of the whole globe, from south to north."""
    rows, columns = shape
    whole = (len(latitudes), len(longitudes)) == shape
    whole = whole and np.allclose(np.diff(latitudes), 180 / rows) and np.allclose(np.diff(longitudes), 360 / columns)
    if not whole:
        raise InputError(
            f"{name}: a grid of {len(latitudes)} x {len(longitudes)} points, latitudes from {latitudes[0]:g} to "
            f"{latitudes[-1]:g}, longitudes from {longitudes[0]:g} to {longitudes[-1]:g}; the model takes the globe on "
            f"{rows} x {columns} even points from south to north; regrid the data, or with a row at each pole leave "
            f"out the northern one: box: {{north: {90 - 180 / rows:g}, south: -90, west: -180, "
            f"east: {180 - 360 / columns:g}}}"
        )


def checkpoint(folder: Path) -> Mapping[str, Tensor]:
    """Folder -> state dict of a released checkpoint in our names, scalers included. Raises `WeightsError`."""
    state = read_training_checkpoint(only_checkpoint(folder), "model_state", bare=True)
    kept = {name: value for name, value in state.items() if "shifter." not in name}  # masks that nobody looks at
    renamed = {f"scalers.{name}" if name in SCALERS else name: value for name, value in kept.items()}
    return {**renamed, "scalers.released": torch.ones(())}


def library() -> ModuleType:
    """The library's module of the model. Raises `InputError` with the command that installs it."""
    try:
        if importlib.util.find_spec("PrithviWxC") is None:
            raise ImportError("no package PrithviWxC")
        return importlib.import_module("PrithviWxC.model")
    except ImportError as error:
        raise InputError(f"Prithvi WxC: {error}; install it with\n  pip install 'science-zoo[prithvi]'") from error
