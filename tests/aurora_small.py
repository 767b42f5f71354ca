"""A tiny Aurora and states for it, in the library's own terms and in ours; files like ERA5's, and a checkpoint."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from small_models import CPU, Steps, changed, defaults, run_steps
from torch import Tensor, nn

from zoo.card import ModelCard
from zoo.domain import Batch, find_model
from zoo.meteorology.aurora import ON_LEVELS, STATIC, SURFACE, library, statistics
from zoo.meteorology.forecasting import Forecast
from zoo.meteorology.names import parse_field, variable_named
from zoo.step import Setup
from zoo.step import build as build_setup
from zoo.techniques import Technique
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


def made(*techniques: Technique, **config: Any) -> Any:
    """The model as training has it, with random weights of which none is 0."""
    card = tiny(**config)
    chosen = defaults(**{technique.key: technique for technique in techniques})
    return build_setup(card, task(card), chosen, CPU, load=loaded).model.eval()


def three_steps(*techniques: Technique, rollout: int = 1, dropout: float = 0.1) -> Steps:
    """What training on three batches of two states did."""
    card = tiny(drop_rate=dropout, drop_path=dropout)
    job = task(card, rollout=rollout)
    steps = [[micro_batch(job, 2, seed)] for seed in range(3)]
    return run_steps(card, job, defaults(**{t.key: t for t in techniques}), steps, load=loaded)


def checkpoint_of(model: nn.Module, path: Path) -> Path:
    """A file as Aurora's authors release them: other names, and the weights of all fields at the surface in one."""
    state = {f"net.{name}": value.detach() for name, value in model.state_dict().items()}
    names = (*SURFACE.values(), *STATIC.values())
    parts = [state.pop(f"net.encoder.surf_token_embeds.weights.{name}") for name in names]
    state["net.encoder.surf_token_embeds.weight"] = torch.cat(parts, dim=1)
    torch.save(state, path)
    return path


def analyses(path: Path, times: int = 48, start: str = "2020-02-25", seed: int = 0) -> xr.Dataset:
    """Six-hourly fields of `FIELDS` with both poles, in a Zarr store at `path`: waves that travel around the globe.

    Each has about the mean and the deviation that Aurora's constants are for, and not quite.
    """
    rows, columns = GRID[0] + 1, GRID[1]
    made = xr.Dataset(
        coords={
            "time": np.datetime64(start, "ns") + np.arange(times) * np.timedelta64(6, "h"),
            "level": ("level", list(LEVELS), {"units": "hPa"}),
            "latitude": ("latitude", 90 - np.arange(rows) * 180 / GRID[0], {"units": "degrees_north"}),
            "longitude": ("longitude", np.arange(columns) * 360 / columns, {"units": "degrees_east"}),
        }
    )
    draw, constants = np.random.default_rng(seed), statistics(FIELDS)
    n = np.arange(times)[:, None, None]
    north = np.cos(np.deg2rad(made.latitude.values))[None, :, None]
    east = np.deg2rad(made.longitude.values)[None, None, :]
    fields = {}
    for i, name in enumerate(FIELDS):
        still = name in STATIC
        wave = north * np.sin((1 + i % 3) * east - (0 if still else 0.4) * n + i)
        noise = 0.05 * draw.normal(size=(times, rows, columns))
        values = constants.mean[i] + constants.std[i] * (0.3 + wave + (0 if still else noise))
        fields[name] = values[:1] if still else values
    for name in dict.fromkeys(parse_field(field)[0] for field in FIELDS):
        levels = [fields[f"{name}_{level}"] for level in LEVELS if f"{name}_{level}" in fields]
        dims = ("time", "level", "latitude", "longitude") if levels else ("time", "latitude", "longitude")
        values = np.stack(levels, axis=1) if levels else fields[name]
        if name in STATIC:
            dims, values = dims[1:], values[0]
        made[name] = (dims, values.astype(np.float32), {"units": variable_named(name).unit})
    made.to_zarr(path, mode="w", zarr_format=2)
    return made
