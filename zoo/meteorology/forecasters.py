"""Weather models as a task uses them: with the fields that are given and wanted settled once, from a card.

Legend of shapes: `B` batch, `V` fields given, `O` fields wanted, `H` x `W` grid points.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from zoo.domain import Head
from zoo.errors import InputError
from zoo.meteorology.checkpoints import only_checkpoint, read_training_checkpoint
from zoo.meteorology.climax import ClimaX
from zoo.meteorology.climax import from_authors as climax_from_authors
from zoo.meteorology.stormer import Stormer
from zoo.meteorology.stormer import from_authors as stormer_from_authors
from zoo.meteorology.variables import Grid, variable_indices

if TYPE_CHECKING:
    from zoo.card import ModelCard


@dataclass(frozen=True)
class ForecastHead(Head):
    """The fields that are `given` and `wanted`, on a `grid` that begins at a `corner` (row, column) of the model's.

    `latitudes` and `longitudes` in degrees are those of the grid's rows and columns, empty where nobody knows them yet.
    """

    given: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    grid: Grid = (0, 0)
    corner: tuple[int, int] = (0, 0)
    latitudes: tuple[float, ...] = ()
    longitudes: tuple[float, ...] = ()


class ClimaXForecaster(ClimaX):
    """ClimaX for the fields of a head."""

    def __init__(self, head: ForecastHead, **facts: Any) -> None:
        super().__init__(**facts)
        self.head_fields = head

    def forward(self, fields: Tensor, hours: Tensor) -> Tensor:  # type: ignore[override]
        """Normalised fields (B V H W), lead times (B) in hours -> normalised fields wanted (B O H W)."""
        head = self.head_fields
        return super().forward(fields, hours, head.given, head.wanted, head.corner)


class StormerForecaster(Stormer):
    """Stormer for the fields of a head."""

    def __init__(self, head: ForecastHead, **facts: Any) -> None:
        super().__init__(**facts)
        self.head_fields = head

    def forward(self, fields: Tensor, hours: Tensor) -> Tensor:  # type: ignore[override]
        """Normalised fields (B V H W), intervals (B) in hours -> normalised differences of those wanted (B O H W)."""
        return super().forward(fields, hours, self.head_fields.given, self.head_fields.wanted)


def build_climax(card: ModelCard, head: Head) -> ClimaXForecaster:
    """The card's ClimaX. Raises what `_settled` raises."""
    settled, facts = _settled(card, head)
    return ClimaXForecaster(settled, **facts)


def build_stormer(card: ModelCard, head: Head) -> StormerForecaster:
    """The card's Stormer. Raises what `_settled` raises, and `InputError` for a part of its grid."""
    settled, facts = _settled(card, head)
    if settled.grid != facts["grid"]:
        raise InputError(
            f"{card.name}: a grid of {settled.grid[0]} x {settled.grid[1]} points, and the model is for "
            f"{facts['grid'][0]} x {facts['grid'][1]}; regrid the data, leave out the region, or choose another model"
        )
    return StormerForecaster(settled, **facts)


def _settled(card: ModelCard, head: Head) -> tuple[ForecastHead, dict[str, Any]]:
    """The head, and the facts of the card with which the model is made.

    A card whose ``variables`` or ``grid`` are None takes those of the head. A head of no fields asks for all that the
    card has. Raises ValueError for a head of another kind, `InputError` for fields that the model does not know.
    """
    if head.kind not in ("forecast", "masked_lm"):  # the second is what `zoo.load` asks for: the pretraining head
        raise ValueError(f"{card.name} has no head of kind {head.kind!r} (kinds: forecast)")
    facts = dict(card.config)
    del facts["predicts"]  # it is the task that makes targets of states
    asked = head if isinstance(head, ForecastHead) else ForecastHead("forecast", head.outputs)
    own = facts["variables"] or tuple(dict.fromkeys((*asked.given, *asked.wanted)))
    grid = facts["grid"] or asked.grid
    if grid == (0, 0):
        raise InputError(f"{card.name}: is made for the grid of the data, and no data is at hand; fetch it first")
    variable_indices(f"{card.name}: fields given", asked.given or own, own)
    variable_indices(f"{card.name}: fields wanted", asked.wanted or own, own)
    facts |= {"variables": own, "grid": tuple(grid)}
    whole = asked.grid if asked.grid != (0, 0) else tuple(grid)
    given, wanted = asked.given or own, asked.wanted or own
    return ForecastHead("forecast", len(wanted), given, wanted, whole, asked.corner), facts


def _climax(folder: Path, grid: Grid, patch_size: int) -> Mapping[str, Tensor]:
    return climax_from_authors(read_training_checkpoint(only_checkpoint(folder)), grid=grid, patch_size=patch_size)


def _stormer(folder: Path, grid: Grid, patch_size: int) -> Mapping[str, Tensor]:
    return stormer_from_authors(read_training_checkpoint(only_checkpoint(folder)), grid=grid, patch_size=patch_size)


climax_5_625deg = functools.partial(_climax, grid=(32, 64), patch_size=2)
"""Folder -> state dict of ClimaX at 5.625 degrees; positions of another grid are resized."""
climax_1_40625deg = functools.partial(_climax, grid=(128, 256), patch_size=4)
"""Folder -> state dict of ClimaX at 1.40625 degrees; positions of another grid are resized."""
stormer_1_40625deg = functools.partial(_stormer, grid=(128, 256), patch_size=2)
"""Folder -> state dict of Stormer at 1.40625 degrees; optimizer states and foreign classes are not read."""
