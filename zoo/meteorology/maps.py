"""Maps for a forecaster, of forecast, truth and error, as PNG.

With cartopy (the extra ``maps``) globes are drawn in Robinson's projection, regions on a plain grid of degrees, with
coastlines where Natural Earth's are on this machine; without it on plain axes of degrees. Colours can be told apart
with any colour vision: viridis for fields, a blue to red map centred on zero for errors and wind components.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from zoo.errors import InputError
from zoo.meteorology.names import field_name, parse_field
from zoo.meteorology.pictures import difference_unit, figure_at, sentence, shown_as
from zoo.meteorology.scores import latitude_weights

Array = npt.NDArray[np.float64]

FIELD_COLOURS, SIGNED_COLOURS = "viridis", "RdBu_r"


def draw_maps(
    path: Path | str,
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    title: str = "",
    variable: str | None = None,
    cartopy: bool | None = None,
) -> Path:
    """Draw forecast, truth and their difference (latitude longitude) below each other as a PNG at `path`.

    Forecast and truth share one scale of colours, the difference has one centred on zero that covers all but the
    largest 0.5 % of errors. `variable` is the name in the table of names (by default that of `forecast`), which
    decides on units. `cartopy`: None uses it when it is installed. Raises `InputError` for other dimensions, grids
    that differ, and fields without any number; `ZooError` where it cannot be written.
    """
    name = variable or str(forecast.name)
    level = truth.coords.get("level")
    if level is not None and level.ndim == 0 and parse_field(name)[1] is None:
        name = field_name(name, float(level))
    shown = shown_as(name, str(truth.attrs.get("units", forecast.attrs.get("units", ""))))
    fields = [_field(array, "forecast" if array is forecast else "truth") for array in (forecast, truth)]
    if fields[0].shape != fields[1].shape:
        raise InputError(f"map: forecast is {fields[0].shape}, truth {fields[1].shape}; regrid one of them first")
    difference = (fields[0] - fields[1]) * shown.factor
    fields = [field * shown.factor + shown.offset for field in fields]
    if not np.isfinite(difference).any():
        raise InputError("map: forecast and truth have no point in common that is a number")
    low, high = float(np.nanmin(fields)), float(np.nanmax(fields))
    if shown.signed:
        low, high = -max(-low, high), max(-low, high)
    most = float(np.nanpercentile(np.abs(difference), 99.5)) or float(np.nanmax(np.abs(difference))) or 1.0
    rmse = _rmse(difference, forecast["latitude"].values)
    panels = (
        ("Forecast", fields[0], SIGNED_COLOURS if shown.signed else FIELD_COLOURS, (low, high)),
        ("Truth", fields[1], SIGNED_COLOURS if shown.signed else FIELD_COLOURS, (low, high)),
        (
            f"Forecast minus truth (RMSE {rmse:.3g} {difference_unit(shown)})",
            difference,
            SIGNED_COLOURS,
            (-most, most),
        ),
    )
    with figure_at(path, len(panels) * 4.35 + 0.6) as figure:
        axes = _Axes(figure, forecast["latitude"].values, forecast["longitude"].values, cartopy)
        for place, (heading, values, colours, limits) in enumerate(panels):
            unit = difference_unit(shown) if place == 2 else shown.unit
            lines = _contour_levels(limits) if shown.contours and place < 2 else None
            axes.draw(len(panels), place, heading, values, colours, limits, f"{shown.label} ({unit})", lines)
        figure.suptitle(title or sentence(shown.label), fontsize=15, fontweight="bold")
    return Path(path)


class _Axes:
    """Maps of one grid in one figure: cartopy's, or plain ones."""

    def __init__(self, figure: Any, latitudes: Array, longitudes: Array, cartopy: bool | None) -> None:
        self.figure = figure
        order = np.argsort(latitudes)
        # the whole circle is drawn from 180 W to 180 E, a region as it comes
        step = float(np.median(np.diff(np.sort(longitudes)))) if len(longitudes) > 1 else 1.0
        self.circle = bool(np.ptp(longitudes) + 1.5 * step >= 360)
        shifted = (longitudes + 180) % 360 - 180 if self.circle else longitudes
        self.rows, self.columns = order, np.argsort(shifted)
        self.latitudes, self.longitudes = latitudes[order], shifted[self.columns]
        self.globe = self.circle and float(np.ptp(latitudes)) > 120
        self.crs = None if cartopy is False else _crs(required=bool(cartopy))

    def draw(
        self,
        panels: int,
        place: int,
        heading: str,
        values: Array,
        colours: str,
        limits: tuple[float, float],
        label: str,
        contours: Array | None,
    ) -> None:
        values = values[self.rows][:, self.columns]
        edges = [_edges(self.longitudes, None), _edges(self.latitudes, 90.0)]
        options: dict[str, Any] = {}
        if self.crs is not None:
            options["projection"] = self.crs.Robinson() if self.globe else self.crs.PlateCarree()
        axes = self.figure.add_subplot(panels, 1, place + 1, **options)
        drawing = {"cmap": colours, "vmin": limits[0], "vmax": limits[1], "shading": "flat", "rasterized": True}
        if self.crs is not None:
            mesh = axes.pcolormesh(*edges, values, transform=self.crs.PlateCarree(), **drawing)
            if self.globe:
                axes.set_global()
            _coastlines(axes)
            lines = axes.gridlines(
                draw_labels={"bottom": "x"} if self.globe else {"bottom": "x", "left": "y"},
                linewidth=0.5, color="black", alpha=0.35,
                xlocs=np.arange(-120, 121, 60) if self.globe else None,
                ylocs=np.arange(-60, 61, 30) if self.globe else None,
            )  # fmt: skip
            lines.xlabel_style = lines.ylabel_style = {"size": 11}
            for latitude in (-60, -30, 0, 30, 60) if self.globe else ():  # gridlines leaves some out at a curved edge
                text = f"{abs(latitude)}°{'N' if latitude > 0 else 'S' if latitude < 0 else ''} "
                where = {"transform": self.crs.PlateCarree(), "ha": "right", "va": "center"}
                axes.text(-180, latitude, text, fontsize=11, **where)
        else:
            mesh = axes.pcolormesh(*edges, values, **drawing)
            axes.set_xlim(edges[0][0], edges[0][-1])  # lines of contours go on beyond the last cell
            axes.autoscale(False)
            _degrees(axes, self.globe)
        if contours is not None:
            self._contours(axes, values, contours)
        axes.set_title(heading, fontsize=13)
        outside = limits[0] < 0 < limits[1] and float(np.nanmax(np.abs(values))) > limits[1] * (1 + 1e-9)
        bar = self.figure.colorbar(mesh, ax=axes, shrink=0.85, pad=0.02, extend="both" if outside else "neither")
        bar.set_label(label, fontsize=11)
        bar.ax.tick_params(labelsize=11)

    def _contours(self, axes: Any, values: Array, levels: Array) -> None:
        longitudes = self.longitudes
        if self.circle:  # once around, so that lines do not end at the date line
            longitudes, values = np.append(longitudes, longitudes[0] + 360), np.hstack([values, values[:, :1]])
        options = {} if self.crs is None else {"transform": self.crs.PlateCarree()}
        style = {"colors": "black", "linewidths": 0.9, "alpha": 0.75}
        lines = axes.contour(longitudes, self.latitudes, values, levels=levels, **style, **options)
        axes.clabel(lines, fontsize=9, fmt="%g")


def _contour_levels(limits: tuple[float, float]) -> Array:
    from matplotlib.ticker import MaxNLocator

    return np.asarray(MaxNLocator(nbins=9, steps=[1, 2, 4, 5, 8, 10]).tick_values(*limits), dtype=np.float64)


def _edges(centres: Array, limit: float | None) -> Array:
    """Bounds of cells around ascending centres, of which one has 1 degree; not beyond `limit`."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    edges = np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])
    return edges if limit is None else np.clip(edges, -limit, limit)


def _degrees(axes: Any, globe: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    def hemisphere(positive: str, negative: str) -> Callable[[float, int], str]:
        def text(value: float, _: int) -> str:
            value = (value + 180) % 360 - 180 if positive == "E" and abs(value) != 180 else value
            return f"{abs(value):g}°{positive if value > 0 else negative if value < 0 else ''}"

        return text

    for axis, letters, step in ((axes.xaxis, ("E", "W"), 60), (axes.yaxis, ("N", "S"), 30)):
        axis.set_major_formatter(FuncFormatter(hemisphere(*letters)))
        if globe:
            axis.set_major_locator(MultipleLocator(step))
    axes.set_aspect("equal" if globe else "auto")
    axes.grid(color="black", alpha=0.3, linewidth=0.5)
    axes.tick_params(labelsize=11)


def _crs(*, required: bool) -> Any:
    """cartopy's projections, or None where they cannot be had."""
    reason = ""
    if "eccodes" in sys.modules and "pyproj" not in sys.modules:
        # each brings its own PROJ; loaded in this order, the second one aborts the process (eccodes 2.50, pyproj 3.7)
        reason = "ecCodes is loaded and cartopy's pyproj cannot be after it; import pyproj first"
    else:
        try:
            from cartopy import crs

            return crs
        except ImportError:
            reason = 'cartopy is not installed; run pip install "science-zoo[maps]"'
    if required:
        raise InputError(f"map: {reason}")
    return None


def _coastlines(axes: Any) -> None:
    """Coastlines from Natural Earth where cartopy has them already: drawing a map is no reason to download."""
    import cartopy

    folders = [cartopy.config.get(name) for name in ("pre_existing_data_dir", "data_dir", "repo_data_dir")]
    shape = Path("shapefiles", "natural_earth", "physical", "ne_110m_coastline.shp")
    if any(folder and (Path(folder) / shape).exists() for folder in folders):
        axes.coastlines(resolution="110m", linewidth=0.8)


def _field(array: xr.DataArray, where: str) -> Array:
    if set(array.dims) != {"latitude", "longitude"}:
        raise InputError(f"map: {where} has dimensions {array.dims}; select one (latitude, longitude) field")
    return np.asarray(array.transpose("latitude", "longitude").values, dtype=np.float64)


def _rmse(difference: Array, latitudes: Array) -> float:
    weights = np.where(np.isfinite(difference), latitude_weights(latitudes, "area")[:, None], 0.0)
    return float(np.sqrt((weights * np.nan_to_num(difference) ** 2).sum() / weights.sum()))
