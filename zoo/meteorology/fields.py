"""Fields of opened files as arrays: chosen by name, in the table's units, in the orientation that a model wants.

Legend of shapes: `T` times, `V` fields, `H` x `W` grid points (latitude x longitude).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.errors import InputError, unknown
from zoo.meteorology.blocks import Handles, Part, Reader
from zoo.meteorology.grids import Grid, Layout
from zoo.meteorology.names import parse_field, usual, variable_named
from zoo.meteorology.times import TimeAxis

Floats = npt.NDArray[np.float32]
CACHE_BYTES = 64 * 2**20  # more is slower where it is not needed: fresh pages cost as much as decompressing
LOOKS = 8
"""Files whose values are compared with their unit, spread evenly over those that there are."""


@dataclass(frozen=True, eq=False)
class Group:
    """Files that hold the same fields at different times: for each of T times its file and the index in it."""

    parts: tuple[tuple[Part, ...], ...]
    piece: npt.NDArray[np.int64]
    local: npt.NDArray[np.int64]


class Fields:
    """One series of states: `names` (V) at the times of `axis` (T) on `grid` (H W), read when they are asked for.

    `units` are those of the table of names, `file_units` those of the files. `label` names the series in errors and
    reports. Can be pickled and used after a fork: files are opened anew in each process, and blocks that were read
    are not taken along. At most `cache_bytes` of them are kept, or two of each variable. Made by
    `zoo.meteorology.source.open_fields`.
    """

    def __init__(
        self,
        names: Sequence[str],
        axis: TimeAxis,
        layout: Layout,
        groups: Sequence[Group],
        constants: Mapping[int, Part | None],
        handles: Handles,
        *,
        label: str,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.names = tuple(names)
        self.axis = axis
        self.label = label
        self.layout = layout
        self._groups = tuple(groups)
        self._constant_parts = dict(constants)
        self._reader = Reader(handles, cache_bytes)
        self._constants: dict[int, Floats] = {}

    def __len__(self) -> int:
        return len(self.axis)

    def __repr__(self) -> str:
        return f"<{self.label}: {len(self.names)} fields, {len(self)} times, {self.grid}>"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_constants": {}}

    @property
    def grid(self) -> Grid:
        """The grid of what is read."""
        return self.layout.grid

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one state: V, H and W."""
        return len(self.names), *self.grid.shape

    @property
    def paths(self) -> tuple[str, ...]:
        """Files that states are read from."""
        parts = [part for group in self._groups for piece in group.parts for part in piece]
        parts += [part for part in self._constant_parts.values() if part is not None]
        return tuple(dict.fromkeys(part.path for part in parts))

    @property
    def constant(self) -> tuple[str, ...]:
        """Names of the fields that do not depend on time."""
        return tuple(self.names[place] for place in sorted(self._constant_parts))

    @property
    def units(self) -> dict[str, str]:
        """Unit of each field as it is read; empty where neither the table nor the file knows one."""
        own = self._units(lambda part: part.stored.known.unit if part.stored.known else part.stored.unit)
        known = {name: variable_named(parse_field(name)[0]) for name in self.names}
        return {name: variable.unit if variable else own[name] for name, variable in known.items()}

    @property
    def file_units(self) -> dict[str, str]:
        """Unit of each field as it is stored (of the first file that has it)."""
        return self._units(lambda part: part.stored.unit)

    def _units(self, of: Any) -> dict[str, str]:
        found = dict.fromkeys(self.names, "")
        for place, part in self._first_parts().items():
            found[self.names[place]] = of(part) or ""
        return found

    def _first_parts(self) -> dict[int, Part]:
        parts = [part for group in self._groups for part in group.parts[0]]
        parts += [part for part in self._constant_parts.values() if part is not None]
        return {place: part for part in parts for place in part.places}

    def places(self, names: Sequence[str]) -> list[int]:
        """Where fields are among `names`. Raises `InputError` for one that is not."""
        problems = [unknown(self.label, "field of this selection", n, self.names) for n in names if n not in self.names]
        if problems:
            raise InputError(problems)
        return [self.names.index(name) for name in names]

    def read(
        self,
        times: int | slice | Sequence[int] | npt.NDArray[Any],
        names: Sequence[str] | None = None,
        *,
        nan: str = "error",
    ) -> Floats:
        """States by index of time: (V H W) of one, (T V H W) of several, float32, in the table's units.

        `names` chooses and orders fields (None: all). Raises `InputError` where a value is not finite, unless `nan`
        is ``allow``, where a file is damaged, for a name that is not a field and for an index beyond the times.
        """
        chosen = list(range(len(self.names))) if names is None else self.places(names)
        if isinstance(times, int | np.integer):
            return self._state(self._index(int(times)), chosen, nan)
        indices = range(len(self))[times] if isinstance(times, slice) else [int(t) for t in times]
        found = np.empty((len(indices), len(chosen), *self.grid.shape), dtype=np.float32)
        for i, index in enumerate(indices):
            self._state(self._index(index), chosen, nan, out=found[i])
        return found

    def _index(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise InputError(f"{self.label}: no time {index}; there are {len(self)} times, counted from 0")
        return index % len(self)

    def _state(self, index: int, chosen: Sequence[int], nan: str, out: Floats | None = None) -> Floats:
        state = np.empty((len(chosen), *self.grid.shape), dtype=np.float32) if out is None else out
        wanted = {place: i for i, place in enumerate(chosen)}
        broken: list[str] = []
        for group in self._groups:
            piece, local = int(group.piece[index]), int(group.local[index])
            for part in group.parts[piece]:
                if wanted.keys().isdisjoint(part.places):
                    continue
                values, finite = self._reader.block(part, local).state(local)
                if len(part.places) == len(chosen) and list(part.places) == list(chosen):
                    state[...] = values
                else:
                    for k, place in enumerate(part.places):
                        if place in wanted:
                            state[wanted[place]] = values[k]
                broken += [self.names[p] for k, p in enumerate(part.places) if p in wanted and not finite[k]]
        for place in self._constant_parts:
            if place in wanted:
                state[wanted[place]] = self._constant(place)
        if broken and nan != "allow":
            count = {n: int((~np.isfinite(state[chosen.index(self.names.index(n))])).sum()) for n in broken}
            raise InputError(
                f"{self.label}: at {self.axis.label(index)} values are missing or not finite: "
                f"{', '.join(f'{name} ({n} of {state[0].size} points)' for name, n in count.items())}; "
                "mend the data, or set unreadable: skip to leave such times out"
            )
        return state

    def _constant(self, place: int) -> Floats:
        if place not in self._constants:
            part = self._constant_parts[place]
            if part is None:  # of the grid itself
                rows = np.array(self.grid.latitudes, dtype=np.float32)
                self._constants[place] = np.broadcast_to(rows[:, None], self.grid.shape)
            else:
                block = part.read(self._reader.handles, 0, 1)[0]
                self._constants.update({p: block[k] for k, p in enumerate(part.places)})
            if not np.isfinite(self._constants[place]).all():
                raise InputError(f"{self.label}: {self.names[place]} has missing values, and it is used at every time")
        return self._constants[place]

    def check_units(self) -> None:
        """Raises `InputError` where values cannot be what the unit in their file says, of a file's first time.

        At most `LOOKS` files are looked into. What the recipe says of a unit is believed, and so is a time that cannot
        be read.
        """
        firsts = {int(i) for group in self._groups for i in np.unique(group.piece, return_index=True)[1]}
        looks = sorted(firsts)[:: -(-len(firsts) // LOOKS)] if firsts else []
        problems: dict[str, str] = {}
        for variable, problem in (found for index in looks for found in self._implausible(index)):
            problems.setdefault(variable, problem)
        if problems:
            raise InputError(list(problems.values()))

    def _implausible(self, index: int) -> Iterator[tuple[str, str]]:
        """Variables with what is wrong with their values at a time."""
        parts = [part for group in self._groups for part in group.parts[int(group.piece[index])]]
        parts += [part for part in self._constant_parts.values() if part is not None]
        try:
            state = self.read(index, nan="allow")
        except InputError:
            return
        for place, part in {place: found for found in parts for place in found.places}.items():
            name, stored, values = self.names[place], part.stored, state[place][np.isfinite(state[place])]
            if (between := usual(name)) is None or stored.told or not len(values):
                continue
            if between[0] <= (mean := float(values.mean(dtype=np.float64))) <= between[1]:
                continue
            yield (
                stored.variable,
                f'{part.path}: variable {stored.variable} has the unit "{stored.unit}": {name} would be {mean:.4g} '
                f"{self.units[name]} on average at {self.axis.label(index)}, and on Earth it is between "
                f"{between[0]:.4g} and {between[1]:.4g}; the values have another unit, or are anomalies: correct the "
                f"file, or say the unit in the recipe's task, for example files: "
                f'{{"{PurePosixPath(part.path).name}": {{{stored.variable}: {{unit: UNIT}}}}}} (that is believed)',
            )

    def broken_fields(self, index: int) -> list[str]:
        """Names of the fields with a value that is missing or not finite at a time."""
        state = self.read(index, nan="allow")
        return [name for name, values in zip(self.names, state, strict=True) if not np.isfinite(values).all()]

    def unreadable(self) -> dict[int, str]:
        """Reads everything once: index -> reason, for each time with values that are missing or cannot be read."""
        found = {}
        for index in range(len(self)):
            try:
                broken = self.broken_fields(index)
            except InputError as error:
                found[index] = f"{self.axis.label(index)}: {error}"
                continue
            if broken:
                found[index] = f"{self.axis.label(index)}: values missing or not finite in {', '.join(broken)}"
        return found

    def restore(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Arrays (... H W) as this class delivers them, in the orientation of the file (`layout.back_grid`)."""
        return self.layout.back(values)

    def to_file_units(self, values: npt.NDArray[Any], names: Sequence[str] | None = None) -> npt.NDArray[Any]:
        """Arrays (... V H W) in the table's units, in the units of the files."""
        chosen = self.places(self.names if names is None else names)
        parts = self._first_parts()
        pairs = [(parts[p].scale, parts[p].offset) if p in parts else (1.0, 0.0) for p in chosen]
        scale, offset = (np.array(column, dtype=np.float64)[:, None, None] for column in zip(*pairs, strict=True))
        converted: npt.NDArray[Any] = ((values - offset) / scale).astype(values.dtype)
        return converted

    def close(self) -> None:
        """Close files and let go of what was read; reading opens them again."""
        self._reader.forget()

    @property
    def notes(self) -> Counter[str]:
        """What was left out or is missing in the times."""
        return self.axis.notes
