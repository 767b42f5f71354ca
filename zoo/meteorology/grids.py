"""Latitude-longitude grids: what a file has, the part and the order that a model wants, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.errors import InputError

Indices = npt.NDArray[np.int64]
_CLOSE = 1e-4  # degrees: coordinates in float32 are about this exact


@dataclass(frozen=True)
class Grid:
    """`H` latitudes and `W` longitudes in degrees, in the order of the data."""

    latitudes: tuple[float, ...]
    longitudes: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.latitudes), len(self.longitudes)

    @property
    def is_global(self) -> bool:
        """Whether the longitudes go around, so that the last is a neighbour of the first."""
        count = len(self.longitudes)
        return count > 1 and abs((self.longitudes[1] - self.longitudes[0]) * count - 360) < 1e-2 * 360 / count

    def __str__(self) -> str:
        def axis(values: tuple[float, ...]) -> str:
            return f"{values[0]:g} to {values[-1]:g}"

        rows, columns = self.shape
        return f"{rows} x {columns} points, latitude {axis(self.latitudes)}, longitude {axis(self.longitudes)}"


@dataclass(frozen=True)
class Box:
    """A region in degrees, edges included. `west` > `east` is not allowed; east of 180 both ways of counting are.

    A box over the date line or the zero meridian counts on: ``west=350, east=370`` or ``west=-10, east=10``.
    """

    north: float
    south: float
    west: float
    east: float

    def __post_init__(self) -> None:
        if not -90 <= self.south < self.north <= 90 or not self.west < self.east <= self.west + 360:
            raise InputError(
                f"box: north {self.north:g}, south {self.south:g}, west {self.west:g}, east {self.east:g}; needed are "
                "-90 <= south < north <= 90 and west < east <= west + 360 (over the date line: west=170, east=190)"
            )


@dataclass(frozen=True, eq=False)
class Layout:
    """Which points of a file make the grid that is delivered: `rows` and `columns` are indices into the file's axes."""

    file: Grid
    grid: Grid
    rows: Indices
    columns: Indices

    @property
    def row_slice(self) -> slice:
        """The rows to read: the smallest run that has all of them."""
        return slice(int(self.rows.min()), int(self.rows.max()) + 1)

    @property
    def column_slice(self) -> slice:
        return slice(int(self.columns.min()), int(self.columns.max()) + 1)

    def forward(self, block: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What was read of `row_slice` x `column_slice` (... h w) as the grid (... H W); a view where it can be."""
        return _take(_take(block, self.rows - self.rows.min(), -2), self.columns - self.columns.min(), -1)

    def back(self, fields: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Fields (... H W) in the file's own orientation; of a region, its points in the file's order."""
        if fields.shape[-2:] != self.grid.shape:
            raise InputError(f"fields of {fields.shape[-2:]} points; the grid is {self.grid}")
        return _take(_take(fields, np.argsort(self.rows), -2), np.argsort(self.columns), -1)

    @property
    def back_grid(self) -> Grid:
        """The grid of what `back` returns."""
        return Grid(
            tuple(self.file.latitudes[i] for i in sorted(self.rows)),
            tuple(self.file.longitudes[i] for i in sorted(self.columns)),
        )


def _take(values: npt.NDArray[Any], indices: Indices, axis: int) -> npt.NDArray[Any]:
    taken: npt.NDArray[Any]
    count = values.shape[axis]
    key: list[Any] = [slice(None)] * values.ndim
    if len(indices) == count and (np.diff(indices) == 1).all():
        return values
    if len(indices) == count and (np.diff(indices) == -1).all():
        key[axis] = slice(None, None, -1)
        taken = values[tuple(key)]
    else:
        taken = np.take(values, indices, axis)
    return taken


def file_grid(where: str, latitudes: npt.ArrayLike, longitudes: npt.ArrayLike) -> Grid:
    """The grid of a file; longitudes that begin anew once are counted on.

    Raises `InputError` for axes that are not in one dimension, not in order, or no degrees.
    """
    axes = [np.asarray(values, dtype=np.float64) for values in (latitudes, longitudes)]
    if axes[1].ndim == 1:
        axes[1] = _counted_on(axes[1])
    problems = []
    for name, axis in zip(("latitude", "longitude"), axes, strict=True):
        if axis.ndim != 1 or not axis.size:
            problems.append(
                f"{where}: {name} has shape {axis.shape}; only grids of latitudes x longitudes are read, "
                "regrid the data first"
            )
        elif not np.isfinite(axis).all() or not ((np.diff(axis) > 0).all() or (np.diff(axis) < 0).all()):
            problems.append(
                f"{where}: {name} neither rises nor falls all the way ({axis[0]:g} to {axis[-1]:g})"
                f'; put the data in order, for example with xarray: data.sortby("{name}")'
            )
    if not problems and np.abs(axes[0]).max() > 90 + _CLOSE:
        problems.append(f"{where}: latitude goes from {axes[0][0]:g} to {axes[0][-1]:g}, beyond the poles")
    if not problems and np.ptp(axes[1]) > 360 - _CLOSE:
        problems.append(
            f"{where}: longitude goes from {axes[1][0]:g} to {axes[1][-1]:g}, so the last repeats the first; "
            "select the longitudes to use with a box"
        )
    if problems:
        raise InputError(problems)
    latitude, longitude = (tuple(float(f"{v:.7g}") for v in axis) for axis in axes)
    return Grid(latitude, longitude)


def _counted_on(longitudes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Longitudes that begin anew once, as 180 to 350 and 0 to 170, or 0 to 180 and -170 to -10, counted on from there;
    any others as they are."""
    steps = np.sign(np.diff(longitudes))
    for way in (1, -1):
        again = np.flatnonzero(steps != way)
        if len(again) == 1 and len(steps) > 1 and steps[again[0]] == -way:
            found = longitudes.copy()
            found[again[0] + 1 :] += 360 * way
            # a real turn of the circle goes on where it broke off, with no point of it twice
            if (np.sign(np.diff(found)) == way).all() and np.ptp(found) < 360 - _CLOSE:
                return found
    return longitudes


def even_globe(shape: tuple[int, int]) -> Grid:
    """Cells of one size in degrees over the whole globe, from south to north and from longitude 0 to the east."""
    rows, columns = shape
    return Grid(
        tuple(float(v) for v in (np.arange(rows) + 0.5) * 180 / rows - 90),
        tuple(float(v) for v in np.arange(columns) * 360 / columns),
    )


def layout(
    where: str,
    file: Grid,
    *,
    latitude: str | None = None,
    west: float | None = None,
    box: Box | None = None,
    shape: tuple[int, int] | None = None,
) -> Layout:
    """The part and order of a file's grid that is wanted.

    `latitude` is ``ascending`` or ``descending`` (None: as in the file); longitudes rise from `west` on (None: as in
    the file, or from the box's west), counted on from there: west=-180 gives -180 to 180. `shape` is the number of
    rows and columns that a model needs. Raises `InputError` where the box is empty or the shape another.
    """
    if latitude not in (None, "ascending", "descending"):
        raise InputError(f'{where}: latitude order "{latitude}"; it is ascending or descending')
    rows = np.arange(len(file.latitudes))
    columns = np.arange(len(file.longitudes))
    latitudes, longitudes = np.array(file.latitudes), np.array(file.longitudes)
    if box is not None:
        rows = rows[(latitudes >= box.south - _CLOSE) & (latitudes <= box.north + _CLOSE)]
        west = box.west if west is None else west
        east_of_box = _east_of(longitudes, box.west)
        columns = columns[east_of_box <= box.east + _CLOSE]
        if not len(rows) or not len(columns):
            raise InputError(
                f"{where}: no point of the file in north {box.north:g}, south {box.south:g}, west {box.west:g}, "
                f"east {box.east:g}; the file has {file}"
            )
    if latitude and len(rows) > 1 and (latitudes[rows[1]] > latitudes[rows[0]]) != (latitude == "ascending"):
        rows = rows[::-1]
    if west is not None:
        counted = _east_of(longitudes, west)
        columns = columns[np.argsort(counted[columns], kind="stable")]
        longitudes = counted
    found = Grid(tuple(float(v) for v in latitudes[rows]), tuple(float(f"{v:.7g}") for v in longitudes[columns]))
    if shape is not None and found.shape != shape:
        raise InputError(
            f"{where}: the grid is {found}; wanted are {shape[0]} x {shape[1]}. Regrid the data, cut it with a box, "
            "or choose a model for this grid"
        )
    return Layout(file, found, rows.astype(np.int64), columns.astype(np.int64))


def matching(where: str, file: Grid, grid: Grid) -> Layout:
    """The points of a file's grid that are those of another. Raises `InputError` where it has not all of them."""
    latitudes = np.abs(np.array(file.latitudes)[None] - np.array(grid.latitudes)[:, None])
    apart = np.mod(np.array(file.longitudes)[None] - np.array(grid.longitudes)[:, None], 360)
    distances = latitudes, np.minimum(apart, 360 - apart)
    if any(distance.min(axis=1).max() > 1e-3 for distance in distances):
        raise InputError(f"{where}: the grid is {file}, which has not all of {grid}; regrid the file")
    rows, columns = (distance.argmin(axis=1).astype(np.int64) for distance in distances)
    return Layout(file, grid, rows, columns)


def _east_of(longitudes: npt.NDArray[Any], west: float) -> npt.NDArray[Any]:
    """Longitudes counted on from `west`: west <= value < west + 360."""
    moved = west + np.mod(longitudes - west, 360)
    return np.where(moved > west + 360 - _CLOSE, moved - 360, moved)
