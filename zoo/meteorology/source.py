"""From files to series of fields: which file has what, put together along time and by variables, checked."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.errors import InputError
from zoo.meteorology.blocks import Handles, Part
from zoo.meteorology.contents import Contents, Stored, contents
from zoo.meteorology.fields import CACHE_BYTES, Fields, Group
from zoo.meteorology.files import File, expand, listed
from zoo.meteorology.grids import Box, Layout, layout
from zoo.meteorology.names import field_name, identify, parse_field, unknown_field, variable_named
from zoo.meteorology.times import TimeAxis, date_label, same_times, sort_times, time_axis

TWICE, NOT_IN_ALL = "times there more than once", "times that some files lack"
"""Notes of times of files that are not among the times of a series; of the first, one of each is."""

COMPUTED = ("lattitude",)
"""Fields that are made from the grid and need no file."""


def look(files: str | File | Sequence[str | File]) -> list[Contents]:
    """What files hold, without reading their values. Raises `InputError` with everything that is wrong in them."""
    return _look(files)[0]


def _look(files: str | File | Sequence[str | File]) -> tuple[list[Contents], Handles]:
    specifications = listed(files)
    problems: list[str] = []
    paths: list[tuple[str, File]] = []
    for file in specifications:
        try:
            paths += [(path, file) for path in expand(file)]
        except InputError as error:
            problems += error.problems
    handles = Handles({path: file.storage for path, file in paths})
    found = []
    for path, file in paths:
        try:
            found.append(contents(path, handles.get(path), file))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return found, handles


def open_fields(
    files: str | File | Sequence[str | File],
    names: Sequence[str],
    *,
    members: str | Sequence[int | str] = "each",
    latitude: str | None = None,
    west: float | None = None,
    box: Box | None = None,
    shape: tuple[int, int] | None = None,
    broken: str = "error",
    label: str | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> list[Fields]:
    """The series of some fields in files: one, or one for each member of an ensemble.

    Files with the same fields follow each other in time; files with different fields are merged and must have the
    same times. `names` are canonical (``geopotential_500``) or aliases. `members` are ``each`` or labels of those to
    take. `latitude` (``ascending``, ``descending``), `west` (first longitude), `box` and `shape` say how the grid is
    to be, see `zoo.meteorology.grids.layout`. `broken` is ``error`` or ``skip``: then times that are double, missing
    or not in all files are left out and counted in `Fields.notes`.

    Raises `InputError` with everything that is wrong: files, names, units, levels, grid, times, members.
    """
    if broken not in ("error", "skip"):
        raise InputError(f'unreadable: "{broken}" is not one of error, skip')
    found, handles = _look(files)
    wanted, problems = _wanted(found, names)
    one_grid = {c.grid: c.path for c in reversed(found)}
    if len(one_grid) > 1:
        problems += [
            f"{path}: the grid is {grid}, and that of {found[0].path} is {found[0].grid}; "
            "files of one series must share it"
            for grid, path in one_grid.items()
            if grid != found[0].grid
        ]
    chosen, member_problems = _members(found, members)
    problems += member_problems
    if problems:
        raise InputError(problems)
    where = label or _label(found)
    plan = _Plan(found, wanted, where, broken)
    place = layout(where, found[0].grid, latitude=latitude, west=west, box=box, shape=shape)
    axis, groups, constants = plan.build(place)
    return [
        Fields(
            wanted,
            axis,
            place,
            [_of_member(group, member) for group in groups],
            {p: None if part is None else _part_of_member(part, member) for p, part in constants.items()},
            handles,
            label=where if member is None else f"{where} member {found[0].members[member]}",
            cache_bytes=cache_bytes,
        )
        for member in chosen
    ]


def _label(found: Sequence[Contents]) -> str:
    names = [PurePosixPath(c.path).name for c in found]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _wanted(found: Sequence[Contents], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Canonical names of the fields, and what is wrong with them."""
    there = {name for c in found for name in c.fields}
    wanted, problems = [], []
    where = _label(found)
    for name in names:
        canonical = name if name in there else field_name(*parse_field(name))
        if canonical in wanted:
            problems.append(f"{where}: field {canonical} is asked for twice ({name}); give each once")
        elif canonical in there or canonical in COMPUTED:
            wanted.append(canonical)
        else:
            problems.append(unknown_field(where, canonical, there) + _reason(found, canonical))
    if not names:
        problems.append(f"{where}: no fields; name at least one of {', '.join(sorted(there))}")
    return wanted, problems


def _reason(found: Sequence[Contents], name: str) -> str:
    """Why a variable that may be the missing one was left aside."""
    variable = parse_field(name)[0]
    for c in found:
        for ignored, reason in c.ignored.items():
            known = identify(ignored, {}, on_levels=False, height_m=None)
            if ignored == variable or (known and known.name == variable):
                short = reason.removeprefix(f"{c.path}: variable {ignored}: ")
                return f"; variable {ignored} of {c.path} is not used: {short}"
    return ""


def _members(found: Sequence[Contents], members: str | Sequence[int | str]) -> tuple[list[int | None], list[str]]:
    """Indices of the members to make series of; [None] where there are none."""
    labels = next((c.members for c in found if c.members), ())
    problems = [
        f"{c.path}: members {', '.join(map(str, c.members))}, and in the other files {', '.join(map(str, labels))}"
        for c in found
        if c.members not in ((), labels)
    ]
    if members == "each":
        return (list(range(len(labels))) if labels else [None]), problems
    if isinstance(members, str):
        return [], [f'members: "{members}" is not each, nor a list of members']
    if not labels:
        return [], [f"members: {', '.join(map(str, members))} are asked for, and the files have no ensemble"]
    absent = [str(m) for m in members if m not in labels]
    if absent or not members:
        problems.append(f"members: {', '.join(absent) or 'none'} (there: {', '.join(map(str, labels))})")
    return [labels.index(m) for m in members if m in labels], problems


def _of_member(group: Group, member: int | None) -> Group:
    parts = tuple(tuple(_part_of_member(part, member) for part in piece) for piece in group.parts)
    return Group(parts, group.piece, group.local)


def _part_of_member(part: Part, member: int | None) -> Part:
    return Part(**{**part.__dict__, "member": member if "member" in part.stored.kinds else None})


@dataclass
class _Plan:
    """Where each field comes from. Fields on levels of one variable are read together."""

    found: Sequence[Contents]
    wanted: Sequence[str]
    where: str
    broken: str

    def build(self, place: Layout) -> tuple[TimeAxis, list[Group], dict[int, Part | None]]:
        constants = {name: self._constant(name) for name in self.wanted if self._is_constant(name)}
        moving = [name for name in self.wanted if name not in constants]
        if not moving:
            raise InputError(f"{self.where}: no field depends on time ({', '.join(self.wanted)}); add one that does")
        pieces: dict[frozenset[str], list[Contents]] = defaultdict(list)
        for c in self.found:
            if mine := frozenset(name for name in moving if name in c.fields and c.times is not None):
                pieces[mine].append(c)
        self._overlaps(pieces)
        notes: Counter[str] = Counter()
        orders = {key: self._order(group, notes) for key, group in pieces.items()}
        times, places = self._common(pieces, orders, notes)
        axis = time_axis(self.where, times, broken=self.broken, notes=notes)
        problems: list[str] = []
        groups = []
        for key, group in pieces.items():
            piece, local = places[key]
            parts = tuple(self._parts(c, sorted(key, key=self.wanted.index), place, problems) for c in group)
            groups.append(Group(parts, piece, local))
        fixed: dict[int, Part | None] = {}
        for name, source in constants.items():
            found = () if source is None else self._parts(source, [name], place, problems)
            fixed[self.wanted.index(name)] = next(iter(found), None)
        if problems:
            raise InputError(problems)
        return axis, groups, fixed

    def _is_constant(self, name: str) -> bool:
        """Constant by the table, or without a time wherever it is stored."""
        known = variable_named(parse_field(name)[0])
        if name in COMPUTED or (known and known.constant):
            return True
        return all(
            c.times is None or ("time" not in f[0].kinds and any("time" in s.kinds for s in c.stored))
            for c in self.found
            if (f := c.find(name))
        )

    def _constant(self, name: str) -> Contents | None:
        return next((c for c in self.found if c.find(name)), None)

    def _overlaps(self, pieces: dict[frozenset[str], list[Contents]]) -> None:
        keys = list(pieces)
        problems = [
            f"{pieces[one][0].path} and {pieces[other][0].path} both hold {', '.join(sorted(one & other))}, and "
            f"otherwise different fields ({', '.join(sorted(one ^ other))}); give files that hold the same fields at "
            "different times, or different fields at the same times"
            for i, one in enumerate(keys)
            for other in keys[i + 1 :]
            if one & other
        ]
        if problems:
            raise InputError(problems)

    def _order(self, group: Sequence[Contents], notes: Counter[str]) -> tuple[npt.NDArray[Any], ...]:
        """Times of a group in order, the file and the place in it of each."""
        lengths = [len(c.times) for c in group if c.times is not None]
        kinds = {type(c.times[0]) for c in group if c.times is not None and len(c.times)}
        if len(kinds) > 1 or not sum(lengths):
            what = "files differ in their calendar" if kinds else "there is no time in it"
            raise InputError(f"{self.where}: {what}; give files of one calendar with at least one time each")
        times = np.concatenate([c.times for c in group if c.times is not None])
        piece = np.repeat(np.arange(len(group)), lengths)
        local = np.concatenate([np.arange(n) for n in lengths])
        undated = np.array([value != value for value in times])  # NaT is not equal to itself
        if undated.any():
            raise InputError(f"{group[int(piece[undated][0])].path}: {int(undated.sum())} times have no date")
        kept, repeated = sort_times(times)
        if len(repeated):
            first = date_label(times[repeated[0]])
            both = sorted({group[int(piece[i])].path for i in np.flatnonzero(times == times[repeated[0]])})
            if self.broken == "error":
                raise InputError(
                    f"{self.where}: {len(repeated)} times are there more than once, first {first} in "
                    f"{' and '.join(both)}; remove one of each, or set unreadable: skip to use the first"
                )
            notes[TWICE] += len(repeated)
        return times[kept], piece[kept], local[kept]

    def _common(
        self, pieces: Any, orders: dict[frozenset[str], tuple[npt.NDArray[Any], ...]], notes: Counter[str]
    ) -> tuple[npt.NDArray[Any], dict[frozenset[str], tuple[Any, Any]]]:
        """The times that all groups have."""
        axes = {key: order[0] for key, order in orders.items()}
        times = next(iter(axes.values()))
        if not all(same_times(times, other) for other in axes.values()):
            everything = {t for axis in axes.values() for t in axis.tolist()}
            shared = set.intersection(*(set(axis.tolist()) for axis in axes.values()))
            if self.broken == "error" or not shared:
                raise InputError(
                    f"{self.where}: {len(everything) - len(shared)} of {len(everything)} times are not in all files: "
                    + "; ".join(
                        f"{pieces[key][0].path} has {len(axis)} from {date_label(axis[0])} to {date_label(axis[-1])}"
                        for key, axis in axes.items()
                    )
                    + (". Complete them, or set unreadable: skip to use the times that all have" if shared else "")
                )
            notes[NOT_IN_ALL] += len(everything) - len(shared)
            keep = {key: np.array([t in shared for t in axis.tolist()]) for key, axis in axes.items()}
            times = next(axis[keep[key]] for key, axis in axes.items())
            return times, {key: (o[1][keep[key]], o[2][keep[key]]) for key, o in orders.items()}
        return times, {key: (o[1], o[2]) for key, o in orders.items()}

    def _parts(self, c: Contents, names: Sequence[str], place: Layout, problems: list[str]) -> tuple[Part, ...]:
        return parts_of(c, {name: self.wanted.index(name) for name in names}, place, problems)


def left_out(fields: Fields) -> dict[str, int]:
    """How many times of the files are none of a series, by reason; what is merely missing in them is not told."""
    return {note.removeprefix("times "): fields.notes[note] for note in (TWICE, NOT_IN_ALL) if fields.notes[note]}


def parts_of(c: Contents, places: Mapping[str, int], layout: Layout, problems: list[str]) -> tuple[Part, ...]:
    """What to read of a file that has some fields, each with its place among those wanted: a part for each variable."""
    grouped: dict[str, tuple[Stored, list[tuple[int, int]]]] = {}
    for name, place in places.items():
        found = c.find(name)
        assert found is not None  # the file was chosen because it has it
        grouped.setdefault(found[0].variable, (found[0], []))[1].append((found[1], place))
    parts = []
    for stored, pairs in grouped.values():
        try:
            scale, offset = stored.conversion(c.path)
        except InputError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        levels, where = zip(*sorted(pairs, key=lambda pair: pair[1]), strict=True)
        times = len(c.times) if c.times is not None else 1
        parts.append(Part(c.path, stored, levels, where, scale, offset, layout, None, times))
    return tuple(parts)
