"""A tiny Aurora and states for it, in the library's own terms and in ours."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import torch
from small_models import changed
from torch import Tensor, nn

from zoo.card import ModelCard
from zoo.domain import Batch, find_model
from zoo.meteorology.aurora import ON_LEVELS, STATIC, SURFACE, library
from zoo.meteorology.forecasting import Forecast
from zoo.step import Setup
from zoo.training.values import loader_of

LEVELS = (100, 500, 850)
FIELDS = (*STATIC, *SURFACE, *(f"{name}_{level}" for name in ON_LEVELS for level in LEVELS))
GRID = (16, 32)
SIZE: dict[str, Any] = {
    "embed_dim": 32, "num_heads": 4, "window_size": (2, 2, 4), "encoder_depths": (1, 2), "encoder_num_heads": (2, 4),
    "decoder_depths": (2, 1), "decoder_num_heads": (4, 2),
}  # fmt: skip
TIMES = [dt.datetime(2020, 1, 1, 6, tzinfo=dt.UTC), dt.datetime(2021, 7, 4, 18, tzinfo=dt.UTC)]


def tiny(**config: Any) -> ModelCard:
    """Aurora with two stages of two blocks, one of them shifted, on 16 x 32 points."""
    return changed(find_model("aurora_small"), **{"grid": GRID, **SIZE, **config})


def task(card: ModelCard | None = None, **options: Any) -> Forecast:
    """The task of forecasting on the card's whole grid, without data."""
    made = Forecast(**{"variables": list(FIELDS), "lead_hours": [6], **options})
    made.blank_batch(card or tiny(), 1, 1)
    return made


def loaded(setup: Setup) -> None:
    """Random values, none of them 0: at first every block of Aurora is the identity, and would hide what it does."""
    loader_of(setup.card, "random", 0)(setup)
    enliven(setup.model)


def enliven(model: nn.Module) -> None:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) / 20)


def states(rows: int = 2, seed: int = 0) -> Tensor:
    """Normalised states (B 2 V H W), what never changes the same in all of them."""
    made = torch.randn(rows, 2, len(FIELDS), *GRID, generator=torch.Generator().manual_seed(seed))
    made[:, :, : len(STATIC)] = made[:1, :1, : len(STATIC)]
    return made


def hours_of(times: Any = TIMES) -> Tensor:
    return torch.tensor([time.timestamp() / 3600 for time in times])


def micro_batch(made: Forecast, rows: int = 2, seed: int = 0) -> Batch:
    """What training gets from data."""
    targets = states(rows, seed + 100)[:, : made.rollout, len(STATIC) :]
    inputs = {"fields": states(rows, seed), "hours": torch.full((rows,), 6.0), "time": hours_of()[:rows]}
    return Batch(inputs, targets, rows)


def librarys(fields: Tensor, latitudes: Any, longitudes: Any) -> Any:
    """Our fields (B 2 V H W), from south to north, as a batch of the library, values as they are."""
    north_first = fields.flip(-2)
    at = FIELDS.index
    return library().Batch(
        {short: north_first[:, :, at(name)] for name, short in SURFACE.items()},
        {short: north_first[0, -1, at(name)] for name, short in STATIC.items()},
        {
            short: torch.stack([north_first[:, :, at(f"{name}_{level}")] for level in LEVELS], dim=2)
            for name, short in ON_LEVELS.items()
        },
        library().Metadata(
            torch.tensor(np.array(latitudes)[::-1].copy(), dtype=torch.float32),
            torch.tensor(longitudes, dtype=torch.float32), tuple(TIMES), LEVELS,
        ),
    )  # fmt: skip


def direct(model: nn.Module) -> nn.Module:
    """The library's model with the same weights, and nothing of ours."""
    made: nn.Module = library().Aurora(use_lora=False, **SIZE)
    made.load_state_dict(model.state_dict())
    return made.eval()
