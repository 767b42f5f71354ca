"""What all pictures of this domain share: units that forecasters read, and PNG files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo.errors import InputError, ZooError
from zoo.meteorology.names import GRAVITY, parse_field, unit_key, variable_named

_WIDTH = 10.0  # inches; 1000 pixels at 100 dots per inch, so that text is read at the width of a README


@dataclass(frozen=True)
class Shown:
    """How a variable is drawn: its unit on the map, the factor to it, whether it has a sign, and contour lines."""

    label: str
    unit: str
    factor: float = 1.0
    offset: float = 0.0
    signed: bool = False
    contours: bool = False


_SHOWN = {
    "geopotential": Shown("geopotential height", "dam", 0.1 / GRAVITY, contours=True),
    "temperature": Shown("temperature", "°C", 1.0, -273.15),
    "2m_temperature": Shown("2 m temperature", "°C", 1.0, -273.15),
    "u_component_of_wind": Shown("eastward wind", "m/s", signed=True),
    "v_component_of_wind": Shown("northward wind", "m/s", signed=True),
    "10m_u_component_of_wind": Shown("10 m eastward wind", "m/s", signed=True),
    "10m_v_component_of_wind": Shown("10 m northward wind", "m/s", signed=True),
    "mean_sea_level_pressure": Shown("sea level pressure", "hPa", 0.01, contours=True),
    "surface_pressure": Shown("surface pressure", "hPa", 0.01, contours=True),
}
"""Units that forecasters read, for variables in the units of the table of names; others are drawn as they are."""


def shown_as(name: str, units: str) -> Shown:
    """How a variable or field is drawn, where its values are in `units`."""
    variable, level = parse_field(name)
    known, table = _SHOWN.get(variable), variable_named(variable)
    label = variable.replace("_", " ")
    if known and table and (not units or unit_key(units) == unit_key(table.unit)):
        label = known.label if level is None else f"{known.label} at {level:g} hPa"
        return replace(known, label=label)
    return Shown(label, units or "unit not given")


def difference_unit(shown: Shown) -> str:
    """Of a difference of two values: kelvins where they are degrees Celsius."""
    return "K" if shown.unit == "°C" else shown.unit


def sentence(text: str) -> str:
    """With a capital letter at its start."""
    return text[:1].upper() + text[1:]


def png(path: Path | str) -> Path:
    """Where a picture goes. Raises `InputError` for a name that does not end in ``.png``."""
    target = Path(path).expanduser().absolute()
    if target.suffix.lower() != ".png":
        raise InputError(f"{target}: pictures are written as PNG; give a name that ends in .png")
    return target


@contextlib.contextmanager
def figure_at(path: Path | str, height: float) -> Iterator[Any]:
    """A figure that is written to `path` as PNG when the block ends, whole or not at all; nothing global is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    target = png(path)
    figure = Figure(figsize=(_WIDTH, height), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    yield figure
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of shapes at the date line
            figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.15)
        os.replace(temporary, target)
    except OSError as error:
        raise ZooError(f"{target}: the picture cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
