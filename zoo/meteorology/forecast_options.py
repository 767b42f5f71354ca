"""Options of a forecast, checked before any file is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zoo.errors import InputError, unknown
from zoo.meteorology.archive import Files
from zoo.meteorology.forcings import FORCINGS
from zoo.meteorology.grids import Box
from zoo.meteorology.names import field_name, parse_field, variable_named


def canonical(name: str) -> str:
    if name in FORCINGS:
        return name
    return field_name(*parse_field(name))


def changing(names: Sequence[str]) -> list[str]:
    """The fields that change with time; all of them where none does, which is for others to refuse."""
    known = {name: None if name in FORCINGS else variable_named(parse_field(name)[0]) for name in names}
    return [name for name, variable in known.items() if variable is None or not variable.constant] or list(names)


def wrong_options(
    variables: Sequence[str],
    targets: Sequence[str] | None,
    lead_hours: Sequence[float] | None,
    lead_steps: Sequence[int] | None,
    rollout: int,
    forcings: Sequence[str] | None,
    every: int,
) -> list[str]:
    """What is wrong with options of a forecast."""
    problems = [f"{what}: none" for what, names in (("variables", variables), ("targets", targets)) if names == []]
    if (lead_hours is None) == (lead_steps is None):
        problems.append("give either lead_hours or lead_steps (for data whose step is a month or a year)")
    for what, leads in (("lead_hours", lead_hours), ("lead_steps", lead_steps)):
        if leads is not None and (not leads or min(leads) <= 0 or len(set(leads)) < len(leads)):
            problems.append(f"{what}: {leads}; give different numbers above 0")
    problems += [f"{what}: got {n}; it is 1 or more" for what, n in (("rollout", rollout), ("every", every)) if n < 1]
    for what, names in (("variables", variables), ("targets", targets or [])):
        known = [canonical(name) for name in names]
        twice = [name for place, name in enumerate(names) if canonical(name) in known[:place]]
        problems += [f"{what}: {name} ({canonical(name)}) is there twice; give each once" for name in twice]
    problems += [unknown("forcings", "forcing", name, FORCINGS) for name in forcings or () if name not in FORCINGS]
    return problems


_EDGES = ("north", "south", "west", "east")


def region(box: Mapping[str, float] | None) -> Box | None:
    """The region of a recipe. Raises `InputError` for other edges than its four, and for a box that is none."""
    if box is None:
        return None
    if problems := [unknown("box", "edge", edge, _EDGES) for edge in box if edge not in _EDGES]:
        raise InputError(problems)
    if lacking := [edge for edge in _EDGES if edge not in box]:
        raise InputError(f"box: no {', '.join(lacking)}; give all of {', '.join(_EDGES)} in degrees")
    return Box(**box)


_FACTS = ("name", "level", "unit", "select")


def checked(files: Files) -> Files:
    problems = [
        unknown(f"files: {pattern}: {variable}", "fact", fact, _FACTS)
        for pattern, variables in files.items()
        for variable, facts in variables.items()
        for fact in facts
        if fact not in _FACTS
    ]
    if problems:
        raise InputError(problems)
    return files
