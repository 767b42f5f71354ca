"""Skill against lead time as a PNG: one panel per variable, one line per system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from zoo.errors import InputError, unknown
from zoo.meteorology.pictures import difference_unit, figure_at, sentence, shown_as

Array = npt.NDArray[np.float64]

SYSTEMS = {  # Okabe and Ito 2008: told apart with any colour vision; dashes and markers do so in grey
    "forecast": ("#0072B2", "-", "o"),
    "persistence": ("#D55E00", "--", "s"),
    "climatology": ("#595959", ":", "^"),
}
_OTHERS = (("#009E73", "-.", "D"), ("#CC79A7", "-", "v"), ("#E69F00", "--", "P"))
_METRIC_LABELS = {
    "rmse": "RMSE", "rmse_climax": "mean of single RMSE", "bias": "bias", "mae": "mean absolute error",
    "acc_uncentred": "anomaly correlation (uncentred)", "acc_climax": "anomaly correlation (ClimaX)",
    "crps_fair": "fair CRPS", "crps": "CRPS", "spread": "ensemble spread", "spread_skill_ratio": "spread / skill",
}  # fmt: skip
_WITHOUT_UNIT = ("acc_uncentred", "acc_climax", "spread_skill_ratio")


def draw_skill(
    path: Path | str,
    scores: xr.Dataset,
    panels: Sequence[tuple[str, float | None]],
    *,
    metric: str = "rmse",
    title: str = "",
) -> Path:
    """Draw a metric against lead time for every system, one panel for each (variable, level or None), as a PNG.

    `scores` is what `Verification.scores` gives. Raises `InputError` for variables, levels and metrics that it does
    not have, and for no panels; `ZooError` where it cannot be written.
    """
    if not panels:
        raise InputError("skill: no panels; give pairs of a variable and a level (or None)")
    drawn = [_curve(scores, name, level, metric) for name, level in panels]
    columns = 1 if len(panels) == 1 else 2
    rows = -(-len(panels) // columns)
    with figure_at(path, rows * (4.6 if columns == 1 else 3.5) + 0.9) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.ravel()[len(panels) :]:
            axes.set_visible(False)
        for axes, values, (name, level) in zip(grid.ravel(), drawn, panels, strict=False):
            shown = shown_as(name, str(scores[name].attrs.get("units", "")))
            unit = "" if metric in _WITHOUT_UNIT else f" ({difference_unit(shown)})"
            hours = values["prediction_timedelta"].values / np.timedelta64(1, "h")
            _lines(axes, values, hours, 1.0 if metric in _WITHOUT_UNIT else shown.factor)
            axes.set_title(sentence(shown.label) + ("" if level is None else f" at {level:g} hPa"), fontsize=13)
            axes.set_ylabel(_METRIC_LABELS.get(metric, metric) + unit, fontsize=12)
            axes.set_xlabel("lead time (days)" if hours.max() > 72 else "lead time (hours)", fontsize=12)
            if metric == "bias":
                axes.axhline(0, color="black", linewidth=0.8)
            elif not metric.startswith("acc"):
                axes.set_ylim(bottom=0)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=12, frameon=False)
        if title:
            figure.suptitle(title, fontsize=15, fontweight="bold")
    return Path(path)


def _curve(scores: xr.Dataset, name: str, level: float | None, metric: str) -> xr.DataArray:
    if name not in scores.data_vars:
        raise InputError(unknown("skill", "variable", name, map(str, scores.data_vars)))
    values = scores[name]
    if metric not in values["metric"].values:
        raise InputError(unknown("skill", "metric", metric, map(str, values["metric"].values)))
    values = values.sel(metric=metric)
    if ("level" in values.dims) != (level is not None) or (level is not None and level not in values["level"].values):
        known = values["level"].values.tolist() if "level" in values.dims else "none"
        raise InputError(f"skill: {name} has no level {level}; its levels are {known}")
    return values if level is None else values.sel(level=level)


def _lines(axes: Any, values: xr.DataArray, hours: Array, factor: float) -> None:
    others = iter(_OTHERS * 4)
    step = 24 if hours.max() > 72 else 1
    for system in values["system"].values:
        colour, dashes, marker = SYSTEMS.get(str(system)) or next(others)
        curve = values.sel(system=system).values * factor
        if np.isfinite(curve).any():
            axes.plot(
                hours / step, curve, dashes, color=colour, marker=marker, markersize=6, linewidth=2.2, label=str(system)
            )
    ticks = np.unique(hours)
    if step == 24:
        ticks = np.arange(0, hours.max() + 1, 24 * max(1, round(hours.max() / 24 / 10)))
    elif len(ticks) > 8:
        ticks = np.arange(0, hours.max() + 1, 12)
    axes.set_xticks(ticks / step)
    axes.set_xlim(left=0)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=11)
