"""Forecast recipes on small gridded files: waves that travel around the globe, the same every run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
import yaml
from conftest import merge
from torch import Tensor, nn

from zoo.data.prepare import Data
from zoo.meteorology.forecasting import Forecast
from zoo.meteorology.names import parse_field, usual, variable_named
from zoo.meteorology.source import COMPUTED
from zoo.recipe_file import read_recipe
from zoo.resolve import Job, resolve

VARIABLES = ["temperature_500", "geopotential_500"]
TINY = {"width": 32, "depth": 2, "heads": 2, "head_depth": 1}


def waves(
    times: Any = 60,
    *,
    rows: int = 8,
    columns: int = 16,
    latitudes: Any = None,
    start: str = "2001-01-01",
    hours: float = 6,
    seed: int = 0,
) -> xr.Dataset:
    """Temperature and geopotential on 500 and 850 hPa, and a land-sea mask: a few waves, and noise."""
    if isinstance(times, int):
        step = np.timedelta64(round(hours * 3600), "s")
        times = (np.datetime64(start) + np.arange(times) * step).astype("datetime64[ns]")
    if latitudes is None:
        latitudes = (np.arange(rows) + 0.5) * 180 / rows - 90
    longitudes = np.arange(columns) * 360 / columns
    draw = np.random.default_rng(seed)
    n, phase = np.arange(len(times))[:, None, None], np.deg2rad(longitudes)[None, None, :]
    height = np.cos(np.deg2rad(latitudes))[None, :, None]
    wave = sum(height * a * np.sin(k * phase - 0.3 * k * n) for k, a in ((1, 8.0), (2, 5.0), (3, 3.0)))
    noisy = [wave * share + draw.normal(size=wave.shape) for share in (1.0, 0.7)]
    t = np.stack([base + 20 * height + field for base, field in zip((255, 280), noisy, strict=True)], axis=1)
    z = np.stack([base + 900 * field for base, field in zip((54000, 14000), noisy, strict=True)], axis=1)
    dims = ["time", "level", "latitude", "longitude"]
    return xr.Dataset(
        {
            "t": (dims, t.astype(np.float32), {"units": "K"}),
            "z": (dims, z.astype(np.float32), {"units": "m2 s-2"}),
            "lsm": (dims[2:], (draw.random((len(latitudes), columns)) > 0.5).astype(np.float32), {"units": "1"}),
        },
        {
            "time": times,
            "level": ("level", [500.0, 850.0], {"units": "hPa"}),
            "latitude": ("latitude", latitudes, {"units": "degrees_north"}),
            "longitude": ("longitude", longitudes, {"units": "degrees_east"}),
        },
    )


def fields(names: Sequence[str], rows: int, columns: int, times: int = 24, dtype: Any = np.float32) -> xr.Dataset:
    """Six-hourly noise for any fields by name, all of a variable's levels in one array, on a global grid.

    Where it is known how large a field is on Earth, it is about that large.
    """
    wanted: dict[str, set[float]] = {}
    for name in names:
        variable, level = parse_field(name)
        wanted.setdefault(variable, set()).update(() if level is None else (level,))
    levels = sorted(set().union(*wanted.values()))
    like = waves(times, rows=rows, columns=columns)[["time", "latitude", "longitude"]]
    draw, data = np.random.default_rng(0), {}
    for name, mine in wanted.items():
        if name in COMPUTED:
            continue
        dims = ["time", *(["level"] if mine else []), "latitude", "longitude"]
        still = name in ("land_sea_mask", "orography")
        shape = [n for d, n in (("time", times), ("level", len(levels)), ("latitude", rows), ("longitude", columns))
                 if d in dims]  # fmt: skip
        unit = variable_named(name).unit
        values = draw.random(shape[still:], dtype=np.float32)
        for at, field in enumerate([f"{name}_{level:g}" for level in levels] if mine else [name]):
            if between := usual(field):
                some = values[:, at] if mine else values
                some[...] = between[0] + (0.4 + 0.2 * some) * (between[1] - between[0])
        data[name] = (dims[still:], values.astype(dtype), {"units": unit})
    level = {"level": ("level", levels, {"units": "hPa"})} if levels else {}
    return xr.Dataset(data, {**like.coords, **level})


def months(count: int = 60) -> xr.Dataset:
    """The same in months."""
    return waves((np.datetime64("1990-01") + np.arange(count)).astype("datetime64[ns]"))


class Forecasts:
    """Writes data and recipes of forecasts to a folder; keys are changed by dotted name, None removes one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def data(self, made: xr.Dataset | None = None, name: str = "waves.nc") -> Path:
        path = self.folder / name
        path.unlink(missing_ok=True)  # what is open stays as it is
        (waves() if made is None else made).to_netcdf(path, engine="netcdf4")
        return path

    def write(self, changes: dict[str, Any] | None = None, *, data: Path | str | None = None, **options: Any) -> Path:
        """A recipe; `options` are those of the task, and None removes one."""
        recipe: dict[str, Any] = {
            "name": "waves",
            "domain": "meteorology",
            "model": "climax_small",
            "checkpoint": "random",
            "task": {"forecast": {"variables": VARIABLES, "lead_hours": [6]}},
            "data": {
                "path": str(data or self.folder / "waves.nc"),
                "split": {"method": "time", "fractions": [0.7, 0.15, 0.15]},
            },
            "budget": {"device": "2GiB"},
            "techniques": {
                "precision": "fp32",
                "adapter": "full",
                "checkpointing": "none",
                "attention": "sdpa",
                "loss": "full",
                "optimizer": "adamw",
                "offload": "none",
                "quantization": "none",
            },
            "train": {"max_steps": 3, "global_batch_size": 4, "learning_rate": 1e-3, "seed": 3},
            "output": str(self.folder / "run"),
        }
        merge(recipe, changes or {})
        for task in recipe["task"].values():
            merge(task, options)
        target = self.folder / "waves.yaml"
        target.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return target

    def job(self, changes: dict[str, Any] | None = None, *, data: Path | str | None = None, **options: Any) -> Job:
        if data is None and not (self.folder / "waves.nc").exists():
            self.data()
        return resolve(read_recipe(self.write(changes, data=data, **options)))

    def prepared(self, changes: dict[str, Any] | None = None, **options: Any) -> tuple[Forecast, Data]:
        job = self.job(changes, **options)
        assert isinstance(job.task, Forecast)
        return job.task, job.task.prepare(job, fetch)


def fetch(source: Any) -> Path:
    from zoo.weights import fetch as get

    return get(source)


class Says(nn.Module):
    """A model that says what it is told to, one after the other, whatever it is given; and remembers what that was."""

    def __init__(self, *answers: Tensor) -> None:
        super().__init__()
        self.answers = list(answers)
        self.given: list[tuple[Tensor, Tensor]] = []
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, fields: Tensor, hours: Tensor) -> Tensor:
        self.given.append((fields, hours))
        return self.answers[(len(self.given) - 1) % len(self.answers)]


class Zeros(nn.Module):
    """A model that says nothing."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs, self.weight = outputs, nn.Parameter(torch.zeros(1))

    def forward(self, fields: Tensor, hours: Tensor) -> Tensor:
        return fields.new_zeros(fields.shape[0], self.outputs, *fields.shape[2:])
