"""The states that a recipe's task reads: files opened, samples divided among the parts, and checked."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from zoo.card import ModelCard, Source
from zoo.domain import DataRequest
from zoo.errors import InputError
from zoo.meteorology.fields import Fields
from zoo.meteorology.files import File, Meaning, expand
from zoo.meteorology.grids import Box, Grid, layout
from zoo.meteorology.leaks import find_leaks
from zoo.meteorology.samples import (
    PARTS,
    Samples,
    Window,
    make_samples,
    parts_by_fractions,
    parts_by_series,
    parts_by_years,
)
from zoo.meteorology.source import open_fields

Files = Mapping[str, Mapping[str, Mapping[str, Any]]]
SPLITS = ("time", "series")
"""Ways to divide times: in their order (fractions or years), or whole series."""
LATITUDE, WEST = "ascending", 0.0
"""How the released models were given the globe: rows from south to north, columns from longitude 0 to the east."""


@dataclass(frozen=True)
class Wanted:
    """What to read: fields, a region, what files do not say about themselves, and how the times are divided.

    `files`: pattern of file names -> variable in the file -> ``name``, ``level`` (hPa), ``unit``; or dimension in the
    file -> ``unit``, or the coordinate's value to ``select`` (``expver: {select: 1}``). `years` and `series` divide the
    times in other ways than the fractions of the recipe.
    """

    fields: tuple[str, ...]
    box: Box | None = None
    files: Files = field(default_factory=dict)
    years: Mapping[str, tuple[int, int]] | None = None
    series: Mapping[str, str] | None = None


def open_archive(request: DataRequest, fetch: Callable[[Source], Path], wanted: Wanted) -> list[Fields]:
    """The series of a recipe's data: one for each file of a dataset, or for each member of an ensemble.

    Raises `InputError` with everything that is wrong in the files.
    """
    spec = request.recipe.data
    if request.dataset is None:
        places = {"": str(spec.path)}
    else:
        folder = fetch(request.dataset.source)
        places = {key: str(folder / name) for key, name in request.dataset.files.items()}
    found: list[Fields] = []
    for key, path in places.items():
        label = f"{request.dataset.name} {key}" if request.dataset and len(places) > 1 else None
        files = describe_files(path, wanted.files, spec.columns, training=spec.split.method in SPLITS)
        found += open_series(files, wanted.fields, request.card, wanted.box, broken=spec.unreadable, label=label)
    return found


def open_series(
    files: list[File],
    names: Sequence[str],
    card: ModelCard,
    box: Box | None,
    *,
    broken: str,
    label: str | None = None,
) -> list[Fields]:
    """Fields on the whole grid that the card's model is made for, or in a box, in the models' orientation.

    Raises `InputError` with everything that is wrong in the files, values that cannot have the unit that they say too.
    """
    grid = card.config.get("grid")
    found = open_fields(
        files,
        names,
        latitude=LATITUDE,
        west=WEST if box is None else None,
        box=box,
        shape=tuple(grid) if grid and box is None else None,
        broken=broken,
        label=label,
    )
    for fields in found:
        fields.check_units()
    return found


def describe_files(path: str, files: Files, columns: Mapping[str, str], *, training: bool) -> list[File]:
    """What a path or a pattern stands for, with what the recipe says of its files that they do not say themselves.

    Raises `InputError` in `training` for a pattern of file names that is not used; other files may have other names,
    and need not be spoken of.
    """
    named = {name: Meaning(name=variable) for variable, name in columns.items()}
    if not files:
        return [File(path, named, lenient=not training)]
    found, unused = [], set(files)
    for place in expand(File(path)):
        patterns = [pattern for pattern in files if fnmatch.fnmatch(Path(place).name, pattern)]
        unused -= set(patterns)
        told, select = dict(named), {}
        for name, facts in (pair for pattern in patterns for pair in files[pattern].items()):
            if "select" in facts:
                select[name] = facts["select"]
            if meaning := {fact: value for fact, value in facts.items() if fact != "select"}:
                told[name] = Meaning(**meaning)
        found.append(File(place, told, select, lenient=not training))
    if unused and training:
        raise InputError(f"task: files: {', '.join(sorted(unused))}: no file of {path} has such a name")
    return found


def _asked(request: DataRequest, wanted: Wanted, part: str) -> bool:
    """Whether a recipe's way to divide the data has such a part."""
    split = request.recipe.data.split
    if split.method == "series":
        return part in (wanted.series or {}).values()
    if wanted.years is not None:
        return part in wanted.years
    return split.fractions[PARTS.index(part)] > 0


def corner_of(fields: Fields, box: Box | None, card: ModelCard) -> tuple[int, int]:
    """Row and column of the card's globe where a region begins; of a model for any grid, or that is told coordinates,
    the first.

    Raises `InputError` where the files have not the whole of that globe, of which a region could be told.
    """
    wanted = card.config.get("grid")
    if box is None or not wanted or card.config.get("coordinates"):
        return 0, 0
    globe = layout(fields.label, fields.layout.file, latitude=LATITUDE, west=WEST).grid
    if globe.shape != tuple(wanted):
        raise InputError(
            f"{fields.label}: the grid of the file is {globe}; {card.name} takes a region of its own globe of "
            f"{wanted[0]} x {wanted[1]} points: regrid the file to that, with all of the globe in it"
        )
    first = fields.grid.latitudes[0], fields.grid.longitudes[0] % 360
    row = int(np.argmin(np.abs(np.array(globe.latitudes) - first[0])))
    return row, int(np.argmin(np.abs(np.array(globe.longitudes) - first[1])))


def check_grid(fields: Fields, grid: Grid) -> None:
    """Raises `InputError` where fields are not on the grid that a model was trained on."""
    mine = fields.grid
    if mine.shape != grid.shape or not (
        np.allclose(mine.latitudes, grid.latitudes, atol=1e-3)
        and np.allclose(mine.longitudes, grid.longitudes, atol=1e-3)
    ):
        raise InputError(f"{fields.label}: is on {mine}, and the model was trained on {grid}; regrid the data")


def check_alone(fields: Fields, grid: Grid, step: tuple[float, str]) -> None:
    """Raises `InputError` where a file that is scored alone has another grid or step than what was trained on."""
    check_grid(fields, grid)
    if (fields.axis.step, fields.axis.unit) != step:
        raise InputError(
            f"{fields.label}: has a step of {fields.axis.step_name}, and the model was trained on data with a step of "
            f"{step[0]:g} {step[1]}; give data with that step"
        )


def _check_alike(series: Sequence[Fields]) -> None:
    """Raises `InputError` where series differ in their grid or in the step of their times."""
    first = series[0]
    problems = [
        f"{fields.label}: {what} {mine}, and {first.label} {own}; series of one task must share it"
        for fields in series[1:]
        for what, mine, own in (
            ("is on", fields.grid, first.grid),
            ("has a step of", fields.axis.step_name, first.axis.step_name),
        )
        if mine != own
    ]
    if problems:
        raise InputError(problems)


class Archive:
    """Series of states and the samples of each part; with the notes of what was left out.

    `whole`: every sample is of the part ``train``, as for scoring a file that no model was trained on.
    """

    def __init__(self, series: Sequence[Fields], window: Window, request: DataRequest, wanted: Wanted) -> None:
        self.series = list(series)
        spec = request.recipe.data
        axes = [fields.axis for fields in self.series]
        self.bad: list[dict[int, str]] = [{} for _ in self.series]
        if spec.unreadable == "skip":
            self.bad = [fields.unreadable() for fields in self.series]
        self.whole = spec.split.method not in SPLITS
        _check_alike(self.series)
        for option, method in (("years", "time"), ("series", "series")):
            if getattr(wanted, option) is not None and not self.whole and spec.split.method != method:
                raise InputError(
                    f"task: {option}: is for data.split.method: {method}, and the recipe says {spec.split.method}; "
                    "change one of them"
                )
        if self.whole:
            parts = [np.zeros(len(axis), dtype=np.int64) for axis in axes]
        elif spec.split.method == "series":
            parts = parts_by_series(axes, self._series_parts(request, wanted))
        elif wanted.years is not None:
            parts = parts_by_years(axes, wanted.years)
        else:
            parts = parts_by_fractions(axes, spec.split.fractions)
        self.split = "whole file" if self.whole else spec.split.method
        self.samples: dict[str, Samples] = make_samples(axes, parts, window, [set(bad) for bad in self.bad])
        self.notes: dict[str, int] = {}
        self._count(request, wanted)

    def _series_parts(self, request: DataRequest, wanted: Wanted) -> list[str]:
        keys = list(request.dataset.files) if request.dataset else []
        parts = dict(wanted.series or {})
        if set(parts) != set(keys) or len(keys) != len(self.series):
            raise InputError(
                f"task: series: {parts or 'not given'}; with data.split.method: series say for each of "
                f"{', '.join(keys) or 'the files of a dataset'} whether it is train, valid, test or none"
            )
        return [parts[key] for key in keys]

    def _count(self, request: DataRequest, wanted: Wanted) -> None:
        """Notes of all that is left out, and of what parts share. Raises `InputError` for a part that is empty."""
        leaked = request.recipe.data.leaked
        for fields, bad in zip(self.series, self.bad, strict=True):
            for reason, count in (*fields.notes.items(), ("times with values that are missing", len(bad))):
                self.notes[reason] = self.notes.get(reason, 0) + count
        if len(self.series) > 1:
            leaks = find_leaks(self.series, self.samples)
            for (one, other), count in leaks.states.items():
                removed = ", samples of the first removed" if leaked == "remove" else ""
                self.notes[f"states of {one} that are also in {other}{removed}"] = count
            if leaked == "remove":
                self.samples = leaks.remove(self.samples)
        if not len(self.samples["train"]):
            raise InputError(
                f"data.split: no sample is left in the train part (left out: {dict(self.samples['train'].lost)}); "
                "divide the data in another way, or say data.leaked: report"
            )
        for part in PARTS:
            if not (self.whole or len(self.samples[part])) and _asked(request, wanted, part):
                lost = dict(self.samples[part].lost) or "nothing"
                more = "give it more times, or use shorter leads"
                raise InputError(f"data.split: no sample in the {part} part (left out: {lost}); {more}")
        for part, samples in self.samples.items():
            for reason, count in samples.lost.items():
                self.notes[f"initial times of {part} left out {reason}"] = count
        self.notes = {note: count for note, count in self.notes.items() if count}

    @property
    def files(self) -> dict[str, int]:
        """Sizes in bytes of the files by path, as far as they lie on this machine: what tells other data from this."""
        places = dict.fromkeys(path for fields in self.series for path in fields.paths)
        return {path: Path(path).stat().st_size if Path(path).is_file() else 0 for path in places}

    @cached_property
    def training_times(self) -> list[list[int]]:
        """Indices of time, for each series, of the states that training samples touch."""
        found: list[set[int]] = [set() for _ in self.series]
        for number, index in self.samples["train"].states():
            found[number].add(index)
        return [sorted(times) for times in found]

    def check_values(self) -> None:
        """Raises `InputError` for the first values that are missing, where they are not to be skipped."""
        problems = [
            f"{fields.label}: {reason}"
            for fields, bad in zip(self.series, self.bad, strict=True)
            if not bad
            for reason in fields.unreadable().values()
        ]
        if problems:
            more = f"{len(problems)} times cannot be used; mend them, or say data.unreadable: skip"
            raise InputError([*problems[:10], more])

    def read(self, part: str, number: int, lead: int) -> tuple[Fields, int, list[int]]:
        """Series, index of the initial time, and indices of the targets of a sample."""
        samples = self.samples[part]
        given, targets = samples.indices(number, lead)
        return self.series[int(samples.series[number])], given[-1], targets
