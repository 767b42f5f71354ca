"""The task of downscaling: fields on a coarse grid in, the same or other fields of the same time on a fine grid out.

Legend of shapes: `H` x `W` points of the fine grid, `F` the factor between the grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional

from zoo.errors import InputError
from zoo.meteorology.archive import Archive, check_grid
from zoo.meteorology.fields import Fields
from zoo.meteorology.forecasting import Forecast, Weighting
from zoo.meteorology.grids import Grid
from zoo.meteorology.inputs import Inputs
from zoo.meteorology.learned import Learned, Predicts
from zoo.meteorology.scores import latitude_weights
from zoo.meteorology.statistics import Statistics, measure


def coarse_grid(grid: Grid, factor: int) -> Grid:
    """The grid of cells of F x F points. Raises `InputError` for a grid that they do not tile."""
    rows, columns = grid.shape
    if rows % factor or columns % factor:
        raise InputError(
            f"task: factor: {factor}: cells of {factor} x {factor} points do not tile the grid of {rows} x {columns}; "
            "give a factor of both, or cut the grid with a box"
        )
    axes = (np.reshape(axis, (-1, factor)).mean(axis=1) for axis in (grid.latitudes, grid.longitudes))
    latitudes, longitudes = (tuple(float(value) for value in axis) for axis in axes)
    return Grid(latitudes, longitudes)


def area_means(fields: Any, grid: Grid, factor: int) -> Any:
    """Means over cells of F x F points by their area: (... H W) -> (... H/F W/F)."""
    weights = latitude_weights(grid.latitudes, "area").reshape(-1, factor, 1, 1)
    rows, columns = grid.shape
    cells = fields.reshape(*fields.shape[:-2], rows // factor, factor, columns // factor, factor)
    return ((cells * weights).sum(axis=(-3, -1)) / (weights.sum(axis=1)[..., 0] * factor)).astype(np.float32)


def interpolated(fields: Any, factor: int, *, around: bool) -> Any:
    """Bilinear in latitude and longitude, as ClimaX is given coarse fields: (... H/F W/F) -> (... H W).

    Values are those of the middle of their cells; `around` says that the last column is a neighbour of the first.
    Beyond the middle of the outermost cells they stay the same.
    """
    values = torch.from_numpy(np.ascontiguousarray(fields, dtype=np.float32))
    flat = values.reshape(1, -1, *values.shape[-2:])
    if around:
        flat = torch.cat([flat[..., -1:], flat, flat[..., :1]], dim=-1)
    fine = functional.interpolate(flat, scale_factor=factor, mode="bilinear", align_corners=False)
    if around:
        fine = fine[..., factor:-factor]
    return fine.reshape(*values.shape[:-2], *fine.shape[-2:]).numpy()


class Seen:
    """Fields of a fine or of the coarse grid as they look after they were on the coarse one: on the fine one again."""

    def __init__(self, fields: Fields, grid: Grid, factor: int) -> None:
        self.fields, self.grid, self.factor = fields, grid, factor
        self.names, self.axis, self.label, self.units = fields.names, fields.axis, fields.label, fields.units

    def read(self, times: Any, names: Sequence[str] | None = None) -> Any:
        """As `Fields.read`."""
        values = self.fields.read(times, names)
        if self.fields.grid.shape == self.grid.shape:
            values = area_means(values, self.grid, self.factor)
        return interpolated(values, self.factor, around=self.grid.is_global)


class Lost(Seen):
    """What the coarse grid cannot hold: the fields less `Seen`."""

    def read(self, times: Any, names: Sequence[str] | None = None) -> Any:
        """As `Fields.read`."""
        return self.fields.read(times, names) - super().read(times, names)


class LearnedDetail(Learned):
    """What downscaling takes from its training data: differences are those from the interpolated fields."""

    factor = 1

    def _measured(self, archive: Archive, lead: int) -> Statistics:
        lost = [cast("Fields", Lost(fields, fields.grid, self.factor)) for fields in archive.series]
        return measure(lost, archive.training_times, names=self.targets)


class Downscaling(Forecast):
    """Fine fields from coarse ones of the same time, scored against interpolation and climatology.

    The coarse fields are area means of the data over `factor` x `factor` points, brought back to the grid by bilinear
    interpolation; ``difference`` is what they lack. The other options are those of
    `zoo.meteorology.forecasting.Forecast`. Predicts from files on the fine grid, which are made coarse first, and from
    files on the coarse one.
    """

    name = "downscaling"
    systems = ("", "interpolation_", "climatology_")
    when_predicting = ("files",)

    def __init__(
        self,
        variables: list[str],
        factor: int,
        targets: list[str] | None = None,
        predicts: Predicts | None = None,
        weighting: Weighting = "cosine",
        target_weights: dict[str, float] | None = None,
        forcings: list[str] | None = None,
        box: dict[str, float] | None = None,
        files: dict[str, dict[str, dict[str, Any]]] | None = None,
        years: dict[str, tuple[int, int]] | None = None,
        series: dict[str, str] | None = None,
        climatology: str | None = None,
        every: int = 1,
    ) -> None:
        super().__init__(
            variables, targets, lead_steps=[1], predicts=predicts, weighting=weighting, target_weights=target_weights,
            forcings=forcings, box=box, files=files, years=years, series=series, climatology=climatology, every=every,
        )  # fmt: skip
        if factor < 2:
            raise InputError(f"factor: got {factor}; it is 2 or more, the coarse grid's step over the fine one's")
        self.factor, self.lead_steps = factor, [0]
        self.learned = LearnedDetail(self.learned.fields, self.learned.targets, self.learned.grouping)
        self.learned.factor = factor
        self.inputs = Inputs(self.learned, self.variables, self.targets_wanted, self.forcings, self.rollout)

    def seen(self, fields: Fields) -> Fields:
        """Fields as the model is given them."""
        coarse_grid(self.grid, self.factor)
        return cast("Fields", Seen(fields, self.grid, self.factor))

    def of_file(self, fields: Fields) -> Fields:
        """Fields of a file on the fine grid or on the coarse one. Raises `InputError` for another grid."""
        coarse = coarse_grid(self.grid, self.factor)
        check_grid(fields, coarse if fields.grid.shape == coarse.shape else self.grid)
        return self.seen(fields)
