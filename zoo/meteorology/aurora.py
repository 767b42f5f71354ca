"""Aurora, the library's model, as a task uses it: which of our fields is which of its variables, in whose units.

The package `microsoft-aurora` asks for `timm`, of which it uses four small functions, and which brings `torchvision`,
which in turn breaks a PyTorch for the CPU. The four have equals in PyTorch: neither of the two is needed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import utils
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from zoo.domain import Head
from zoo.errors import InputError, WeightsError, unknown
from zoo.meteorology.forecasters import ForecastHead
from zoo.meteorology.layers import DropPath
from zoo.meteorology.names import GRAVITY, parse_field
from zoo.meteorology.statistics import Statistics
from zoo.weights.read import read_pickle

if TYPE_CHECKING:
    from zoo.card import ModelCard
    from zoo.meteorology.aurora_model import AuroraForecaster

SURFACE = {
    "2m_temperature": "2t", "10m_u_component_of_wind": "10u", "10m_v_component_of_wind": "10v",
    "mean_sea_level_pressure": "msl",
}  # fmt: skip
STATIC = {"land_sea_mask": "lsm", "orography": "z", "soil_type": "slt"}
ON_LEVELS = {
    "geopotential": "z", "u_component_of_wind": "u", "v_component_of_wind": "v", "temperature": "t",
    "specific_humidity": "q",
}  # fmt: skip
_OURS = ("variables", "grid", "predicts", "statistics", "history", "step_hours", "time", "coordinates")
"""Facts of a card's config that are not the model's own."""


@dataclass(frozen=True)
class Places:
    """Where each of the library's variables is among the fields given: one place, or one for each of `levels` (hPa).

    `wanted` are the fields wanted: variable and number of the level (None: at the surface).
    """

    surface: Mapping[str, int]
    static: Mapping[str, int]
    on_levels: Mapping[str, tuple[int, ...]]
    levels: tuple[int | float, ...]
    wanted: tuple[tuple[str, int | None], ...]


def places_of(name: str, given: Sequence[str], wanted: Sequence[str]) -> Places:
    """Raises `InputError` for fields that Aurora does not know, that lack a level, or cannot be forecast."""
    problems = [unknown(f"{name}: fields given", "field", field, _known()) for field in given if not _is_known(field)]
    problems += [
        f"{name}: {field} is wanted and not among the fields given; what is forecast must be given, too"
        if field not in given
        else f"{name}: {field} is wanted, and it does not change with time; leave it out of the targets"
        for field in wanted
        if field not in given or field in STATIC
    ]
    surface = {SURFACE[field]: i for i, field in enumerate(given) if field in SURFACE}
    static = {STATIC[field]: i for i, field in enumerate(given) if field in STATIC}
    on_levels: dict[str, dict[float, int]] = {}
    for i, field in enumerate(given):
        variable, level = parse_field(field)
        if variable in ON_LEVELS and level is not None:
            on_levels.setdefault(variable, {})[level] = i
    levels = sorted({level for places in on_levels.values() for level in places})
    problems += [
        f"{name}: {variable} has no level {', '.join(f'{level:g}' for level in levels if level not in places)} hPa, "
        "which other fields have; give the same levels for each"
        for variable, places in on_levels.items()
        if len(places) < len(levels)
    ]
    for kind, found, all_of in (
        ("at the surface", surface, SURFACE),
        ("that never changes", static, STATIC),
        ("on levels", on_levels, ON_LEVELS),
    ):
        if not found:
            problems.append(f"{name}: no field {kind} is given; it needs at least one of {', '.join(all_of)}")
    if problems:
        raise InputError(problems)
    return Places(
        surface,
        static,
        {ON_LEVELS[name]: tuple(places[level] for level in levels) for name, places in on_levels.items()},
        tuple(int(level) if level == int(level) else level for level in levels),
        tuple(_wanted(field, levels) for field in wanted),
    )


def _wanted(field: str, levels: Sequence[float]) -> tuple[str, int | None]:
    if field in SURFACE:
        return SURFACE[field], None
    variable, level = parse_field(field)
    assert level is not None
    return ON_LEVELS[variable], levels.index(level)


def _is_known(field: str) -> bool:
    return field in SURFACE or field in STATIC or field in _known()


@functools.cache
def _known() -> list[str]:
    """Names of every field that the library has constants for. Raises `InputError` as `library` does."""
    library()
    constants = importlib.import_module("aurora.normalisation").locations
    back = {short: name for name, short in ON_LEVELS.items()}
    pairs = [name.rpartition("_") for name in constants]
    on_levels = [f"{back[short]}_{level}" for short, _, level in pairs if short in back and level.isdigit()]
    return [*SURFACE, *STATIC, *on_levels]


def statistics(fields: Sequence[str]) -> Statistics:
    """The constants that Aurora normalises by, in the units of the table of names.

    Raises `InputError` for fields that it has none for, and where the library is missing.
    """
    if problems := [unknown("Aurora", "field", field, _known()) for field in fields if not _is_known(field)]:
        raise InputError(problems)
    constants = importlib.import_module("aurora.normalisation")
    mean, std = [], []
    for field in fields:
        variable, level = parse_field(field)
        short = SURFACE.get(field) or STATIC.get(field) or f"{ON_LEVELS[variable]}_{level:g}"
        unit = GRAVITY if field == "orography" else 1.0  # theirs is a geopotential
        mean.append(constants.locations[short] / unit)
        std.append(constants.scales[short] / unit)
    return Statistics(tuple(fields), np.array(mean), np.array(std), 0)


def build(card: ModelCard, head: Head) -> AuroraForecaster:
    """The card's Aurora. Raises `InputError` as `places_of` and `library` do, and for another grid than the card's."""
    if head.kind not in ("forecast", "masked_lm"):  # the second is what `zoo.load` asks for: the pretraining head
        raise ValueError(f"{card.name} has no head of kind {head.kind!r} (kinds: forecast)")
    library()
    from zoo.meteorology.aurora_model import AuroraForecaster

    rows, columns = card.config["grid"]
    asked = head if isinstance(head, ForecastHead) else ForecastHead("forecast", head.outputs)
    given = asked.given or card.config["variables"]
    places = places_of(card.name, given, asked.wanted or [field for field in given if field not in STATIC])
    if asked.grid not in ((0, 0), (rows, columns)):
        raise InputError(
            f"{card.name}: a grid of {asked.grid[0]} x {asked.grid[1]} points, and the model takes the globe on "
            f"{rows} x {columns}; regrid the data, or with a row at each pole leave out the southern one: "
            f"box: {{north: 90, south: {180 / rows - 90:g}, west: 0, east: {360 - 360 / columns:g}}}"
        )
    latitudes = asked.latitudes or tuple(90 - 180 / rows * np.arange(rows)[::-1])
    longitudes = asked.longitudes or tuple(360 / columns * np.arange(columns))
    facts = {key: value for key, value in card.config.items() if key not in _OURS}
    with _numbers_on_the_host():
        return AuroraForecaster(
            places, latitudes, longitudes, history=card.config["history"], step_hours=card.config["step_hours"], **facts
        )


class _numbers_on_the_host(TorchFunctionMode):  # noqa: N801  (used as a function is)
    """The library makes rates with `torch.linspace` and reads them, which a model without storage could not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        more = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **{**(kwargs or {}), **more})


def checkpoint(folder: Path) -> Mapping[str, Tensor]:
    """Folder -> state dict of a released checkpoint, in the names of the library. Raises `WeightsError`."""
    found = [folder] if folder.is_file() else sorted(folder.glob("*.ckpt"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise WeightsError(f"{folder}: needs exactly one checkpoint (.ckpt), has {names}; name the file")
    library()
    state = read_pickle(found[0])
    adapt = importlib.import_module("aurora.model.compat")._adapt_checkpoint_pretrained
    adapted: dict[str, Tensor] = adapt(4, dict(state))
    return adapted


def library() -> ModuleType:
    """The package `aurora`. Raises `InputError` with the command that installs it."""
    try:
        missing = [name for name in ("aurora", "einops") if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(f"no package {' and '.join(missing)}")
        with _timm(), _disable_current_modes(), torch.device("cpu"):  # it works out a constant while it is imported
            return importlib.import_module("aurora")
    except ImportError as error:
        raise InputError(
            f"Aurora: {error}; install it with\n  pip install 'science-zoo[aurora]'\n  "
            "pip install --no-deps 'microsoft-aurora>=2.0.1,<3'"
        ) from error


@contextlib.contextmanager
def _timm() -> Iterator[None]:
    """While entered, the four functions that the library takes from `timm` can be imported from there.

    Afterwards nothing passes for `timm`. Where the real one can be imported, it is used.
    """
    if "aurora" in sys.modules or (importlib.util.find_spec("torchvision") and importlib.util.find_spec("timm")):
        yield
        return
    made = {name: ModuleType(name) for name in ("timm", "timm.layers", "timm.models", "timm.models.vision_transformer")}
    layers: Any = made["timm.layers"]
    layers.DropPath, layers.to_2tuple, layers.to_3tuple = DropPath, utils._pair, utils._triple
    transformer: Any = made["timm.models.vision_transformer"]
    transformer.trunc_normal_ = nn.init.trunc_normal_
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "timm"}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            sys.modules.pop(name, None)
        sys.modules.update(before)
