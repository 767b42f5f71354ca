"""What a forecast takes from its training data: means, deviations and climatology, measured when first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from zoo.card import ModelCard, load_ref
from zoo.errors import InputError
from zoo.meteorology.archive import Archive
from zoo.meteorology.climatology import Climatology, Usual, load_climatology, measure_climatology, save_climatology
from zoo.meteorology.climatology_files import ClimatologyFiles, is_pattern
from zoo.meteorology.grids import Grid
from zoo.meteorology.statistics import Statistics, measure

Predicts = Literal["state", "difference", "anomaly"]
_FILE = "climatology.npz"


class Learned:
    """Statistics of `fields` and of the differences of `targets`, and a climatology by `grouping`, or from its files.

    Every point counts alike, as the released models were trained. With ``anomaly`` states are counted from climatology.
    Raises `InputError` at the first use for values that are missing in the data.
    """

    def __init__(self, fields: tuple[str, ...], targets: tuple[str, ...], grouping: str | None) -> None:
        self.fields, self.targets, self.grouping = fields, targets, grouping
        self.predicts: Predicts = "state"
        self.archive: Archive | None = None
        self._known: Statistics | None = None
        self._states: Statistics | None = None
        self._differences: dict[int, Statistics] = {}
        self._climatology: Usual | None = None

    def settle(self, card: ModelCard, predicts: Predicts | None) -> None:
        """What the card's model predicts, and what it normalises by where it was trained with constants of its own.

        Those are what ``statistics`` of its config names: a function of the fields' names. Raises `InputError` for
        fields that it has no constants for, and where they are of states and something else is to be predicted.
        """
        self.predicts = predicts or card.config.get("predicts", "state")
        own = card.config.get("statistics")
        if own and self.predicts != "state":
            raise InputError(
                f"predicts: {self.predicts}: {card.name} normalises states by constants of its own; say predicts: state"
            )
        self._known = load_ref(own)(self.fields) if own else None

    def from_archive(self, archive: Archive) -> None:
        """Measure on this archive from now on, and forget what was measured before.

        Raises `InputError` where the climatology is in files, and they are not there.
        """
        self.archive, self._states, self._differences = archive, None, {}
        self._climatology = files = self._in_files(archive.series[0].grid)
        if files is not None:
            for fields in archive.series:
                files.check(fields.axis)

    @property
    def _trained_on(self) -> Archive:
        if self.archive is None:
            raise ValueError("forecast: no data yet: call prepare first")
        return self.archive

    @property
    def states(self) -> Statistics:
        """Of the fields."""
        if self._states is None:
            archive = self._trained_on
            archive.check_values()
            times = archive.training_times
            self._states = self._known or measure(archive.series, times, names=self.fields, less=self.origin)
        return self._states

    def differences(self, lead: int) -> Statistics:
        """Of the differences of the targets over a lead in steps."""
        if lead not in self._differences:
            found = self._measured(self._trained_on, lead)
            if flat := [name for name, std in zip(found.names, found.std, strict=True) if not std > 0]:
                raise InputError(
                    f"targets: {', '.join(flat)} never changes in training, so its differences cannot be predicted; "
                    "leave it out of the targets, or say predicts: state"
                )
            self._differences[lead] = found
        return self._differences[lead]

    def _measured(self, archive: Archive, lead: int) -> Statistics:
        return measure(archive.series, archive.training_times, names=self.targets, difference_steps=lead)

    @property
    def climatology(self) -> Usual:
        """Of the fields."""
        if self._climatology is None:
            archive = self._trained_on
            times = archive.training_times
            found = measure_climatology(archive.series, times, names=self.fields, grouping=self.grouping)
            self._climatology = found
        return self._climatology

    def _in_files(self, grid: Grid) -> ClimatologyFiles | None:
        pattern = self.grouping if is_pattern(self.grouping) else None
        return None if pattern is None else ClimatologyFiles(pattern, self.fields, grid)

    @property
    def origin(self) -> Usual | None:
        """What states are counted from; None for zero."""
        return self.climatology if self.predicts == "anomaly" else None

    def to_json(self, leads: tuple[int, ...]) -> dict[str, Any]:
        """All but the climatology, which is large."""
        changes = {str(lead): self.differences(lead).to_json() for lead in leads if self.predicts == "difference"}
        return {"predicts": self.predicts, "statistics": self.states.to_json(), "differences": changes}

    def from_json(self, facts: Mapping[str, Any]) -> None:
        self.predicts = facts["predicts"]
        self._states = Statistics.from_json(facts["statistics"])
        self._differences = {int(lead): Statistics.from_json(one) for lead, one in facts["differences"].items()}

    def save(self, folder: Path) -> None:
        """Keep the climatology, unless it is in files of its own."""
        found = self.climatology
        if isinstance(found, Climatology):
            save_climatology(folder / _FILE, found)

    def load(self, folder: Path, grid: Grid) -> None:
        """Take up what `save` kept; `grid` is that of the fields."""
        self._climatology = self._in_files(grid) or load_climatology(folder / _FILE)
