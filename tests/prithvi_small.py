"""A tiny Prithvi WxC, files like those that its authors make of MERRA-2, and states in the library's own terms."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
import yaml
from small_models import changed
from torch import Tensor, nn

from zoo.card import ModelCard
from zoo.domain import Batch, find_model
from zoo.meteorology.forecasting import Forecast
from zoo.meteorology.names import GRAVITY, identify, usual
from zoo.meteorology.prithvi import library
from zoo.meteorology.released import PRITHVI, PRITHVI_STATIC
from zoo.step import Setup
from zoo.training.values import loader_of

NAME = "prithvi_wxc_rollout_2300m"
FIELDS = (*PRITHVI_STATIC, *PRITHVI)
GRID = (8, 16)
BOX = {"north": 67.5, "south": -90, "west": -180, "east": 157.5}
SIZE: dict[str, Any] = {
    "grid": GRID, "mask_unit_size_px": (4, 8), "embed_dim": 32, "n_heads": 4, "n_blocks_encoder": 2,
}  # fmt: skip
HOURS = (438_294.0, 461_082.0)
"""2020-01-01 at 6 h, and 2022-08-07 at 18 h, since 1970."""


def tiny(name: str = NAME, **config: Any) -> ModelCard:
    """Prithvi with 5 blocks in each half, on 2 x 2 windows of 2 x 4 patches."""
    return changed(find_model(name), **{**SIZE, **config})


def task(card: ModelCard | None = None, **options: Any) -> Forecast:
    """The task of forecasting on the card's whole grid, without data."""
    made = Forecast(**{"variables": list(FIELDS), "lead_hours": [6], **options})
    made.blank_batch(card or tiny(), 1, 1)
    return made


def micro_batch(made: Forecast, card: ModelCard | None = None, rows: int = 2, seed: int = 0) -> Batch:
    """What training gets from data: normalised fields of the size of 1, in units of all sizes."""
    draw = torch.Generator().manual_seed(seed)
    blank = made.blank_batch(card or tiny(), rows, 1)
    inputs = {name: torch.randn(like.shape, generator=draw) for name, like in blank.inputs.items()}
    inputs["hours"], inputs["time"] = torch.full((rows,), 6.0), torch.tensor(HOURS[:rows])
    mean, std = (torch.cat([static[0, 7:], one[0, 0]])[:, 0, 0] for static, one in _pairs())
    factors = torch.tensor([GRAVITY if name == "orography" else 1.0 for name in FIELDS])
    inputs["mean"], inputs["std"] = (((mean + 0.2 * std) / factors).expand(rows, -1), (std / factors).expand(rows, -1))
    return Batch(inputs, torch.randn(blank.targets.shape, generator=draw), rows)


def _pairs() -> list[tuple[Tensor, Tensor]]:
    """Means, then deviations, of the static and of the other fields, that the data has: near those of the scalers."""
    made = released()
    return [
        (made[f"static_input_scalers_{what}"], made[f"input_scalers_{what}"] * factor)
        for what, factor in (("mu", 1.0), ("sigma", 1.1))
    ]


def loaded(setup: Setup) -> None:
    """Random weights, and scalers as a checkpoint has them."""
    loader_of(setup.card, "random", 0)(setup)
    with torch.no_grad():
        for name, value in {**released(), "released": torch.ones(())}.items():
            getattr(setup.base.scalers, name).copy_(value)


# ------------------------------------------------------------------------------------------------------- the library


@functools.cache
def facts() -> dict[str, Any]:
    """The names of variables that the library keeps beside its code."""
    path = Path(str(library().__file__)).parent / "config_files" / "config.yaml"
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def released(seed: int = 5) -> dict[str, Tensor]:
    """Values of scalers as a checkpoint has them, in the library's names and shapes: of sizes from 0.001 to 1000."""
    draw = np.random.default_rng(seed)
    channels, static = (1, 1, len(PRITHVI), 1, 1), (1, 7 + len(PRITHVI_STATIC), 1, 1)
    sigma, static_sigma = (10 ** draw.uniform(-3, 3, shape) for shape in (channels, static))
    made = {
        "input_scalers_mu": sigma * draw.normal(size=channels),
        "input_scalers_sigma": sigma,
        "static_input_scalers_mu": static_sigma * draw.normal(size=static),
        "static_input_scalers_sigma": static_sigma,
        "output_scalers": sigma[0] * draw.uniform(0.2, 1, channels[1:]),
    }
    made["static_input_scalers_mu"][:, :7], made["static_input_scalers_sigma"][:, :7] = 0, 1
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in made.items()}


def direct(model: nn.Module, card: ModelCard | None = None, **options: Any) -> Any:
    """The library's model with the same weights and scalers, and nothing of ours."""
    config = (card or tiny()).config
    own = ("patch_size_px", "mask_unit_size_px", "embed_dim", "n_heads", "n_blocks_encoder", "n_blocks_decoder",
           "mlp_multiplier", "encoder_shifting", "decoder_shifting", "drop_path", "parameter_dropout")  # fmt: skip
    made = library().PrithviWxC(
        in_channels=160, input_size_time=2, in_channels_static=8, input_scalers_mu=torch.zeros(160),
        input_scalers_sigma=torch.zeros(160), input_scalers_epsilon=0.0, static_input_scalers_mu=torch.zeros(11),
        static_input_scalers_sigma=torch.zeros(11), static_input_scalers_epsilon=0.0, output_scalers=torch.zeros(160),
        n_lats_px=config["grid"][0], n_lons_px=config["grid"][1], mask_ratio_inputs=0.0, mask_ratio_targets=0.0,
        dropout=0.0, positional_encoding="fourier",
        **{"residual": "climate", "masking_mode": "both", **{name: config[name] for name in own}, **options},
    )  # fmt: skip
    state = {name.removeprefix("scalers."): value for name, value in model.state_dict().items()}
    state.pop("released")
    left = made.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert all("shifter." in name for name in left.missing_keys), "masks that its attention does not look at"
    return made.eval()


# ------------------------------------------------------------------------------------------------------------- files


@functools.cache
def units() -> dict[str, str]:
    """Units by MERRA-2's names, as its files have them."""
    told = {"PHIS": "m+2 s-2"}
    named = [*facts()["surface_vars"], *facts()["static_surface_vars"], *facts()["vertical_vars"]]
    found = {name: identify(name, {}, on_levels=name in facts()["vertical_vars"], height_m=None) for name in named}
    return {name: told.get(name) or variable.unit for name, variable in found.items() if variable}


def merra(folder: Path, days: int = 6, start: str = "2020-02-27", seed: int = 0) -> Path:
    """Two files for each day, surface and layers, as the library's `extract_prithvi_wxc_input_data` writes them."""
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(seed)
    fixed = {name: (("lat", "lon"), values(draw, name, 1)[0]) for name in facts()["static_surface_vars"]}
    for day in np.datetime64(start) + np.arange(days):
        minutes = (day - np.datetime64("2020-01-01")).astype("timedelta64[m]").astype(int) + 180 * np.arange(8)
        time = ("time", minutes.astype(np.int32), {"begin_time": 0, "begin_date": 20200101})
        date = str(day).replace("-", "")
        dims = ("time", "lat", "lon")
        surface = {name: (dims, values(draw, name, 8)) for name in facts()["surface_vars"]}
        write(folder / f"MERRA2_sfc_{date}.nc", {**surface, **fixed}, time=time)
        layers = {name: (("time", "lev", *dims[1:]), values(draw, name, 8, 14)) for name in facts()["vertical_vars"]}
        write(folder / f"MERRA_pres_{date}.nc", layers, time=time)
    return folder


def climatology(folder: Path, days: range, seed: int = 1) -> str:
    """Files of what is usual at every third hour of some days of the year, and the pattern that names them.

    Every second day is the same: there is one file for all of them.
    """
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(seed)
    for day in days:
        for hour in range(0, 24, 3):
            for kind in ("surface", "vertical"):
                path, alike = (folder / f"climate_{kind}_doy{d:03}_hour{hour:02}.nc" for d in (day, day - 2))
                if alike.exists():
                    path.hardlink_to(alike)
                    continue
                dims, names = (("lat", "lon"), "surface_vars") if kind == "surface" else (
                    ("lev", "lat", "lon"), "vertical_vars"
                )  # fmt: skip
                shape = (1,) if kind == "surface" else (1, 14)
                write(path, {name: (dims, values(draw, name, *shape)[0]) for name in facts()[names]})
    return str(folder / "climate_*_doy{day:03}_hour{hour:02}.nc")


def values(draw: Any, name: str, *shape: int) -> Any:
    """Noise about a mean, both of a size of the variable's own, on the grid with the row at the north pole.

    Where it is known how large a variable is on Earth, the mean is.
    """
    known = identify(name, {}, on_levels=name in facts()["vertical_vars"], height_m=None)
    between = usual(known.name) if known else None
    size = 10.0 ** (sum(map(ord, name)) % 7 - 3) if between is None else sum(between) / 4
    return (size * (2 + draw.normal(size=(*shape, GRID[0] + 1, GRID[1])))).astype(np.float32)


def write(path: Path, variables: dict[str, Any], **coordinates: Any) -> None:
    """A file with coordinates as MERRA-2 has them: rows from the south pole, the lowest layer first."""
    rows, columns = GRID
    known = units()
    data = {name: (*one, {"units": known[name]}) for name, one in variables.items()}
    place: dict[str, Any] = {
        "lat": ("lat", np.arange(rows + 1) * 180 / rows - 90, {"units": "degrees_north"}),
        "lon": ("lon", np.arange(columns) * 360 / columns - 180, {"units": "degrees_east"}),
    }
    if any("lev" in one[0] for one in variables.values()):
        lowest_first = np.array(facts()["levels"][::-1])
        place["lev"] = ("lev", lowest_first, {"units": "layer", "positive": "down"})
    xr.Dataset(data, {**coordinates, **place}).to_netcdf(path, engine="netcdf4")


def of_library(folder: Path, climate: str, time: str) -> dict[str, Tensor]:
    """What the library's own dataset makes of the files, for a forecast of 6 hours from a time."""
    loaders = importlib.import_module("PrithviWxC.dataloaders.merra2")
    where, usual = str(folder), str(Path(climate).parent)
    data = loaders.Merra2Dataset(
        (time, "2030-01-01"), [6], [-6], where, where, usual, usual, positional_encoding="fourier",
        **{name: facts()[name] for name in ("surface_vars", "static_surface_vars", "vertical_vars", "levels")},
    )  # fmt: skip
    padding = {"level": [0, 0], "lat": [0, -1], "lon": [0, 0]}
    pandas = importlib.import_module("pandas")
    found: dict[str, Tensor] = loaders.preproc([data.get_data(pandas.Timestamp(time), -6, 6)], padding)
    return found
