"""A trace put together from parts of others.

Some techniques act on forward and backward passes, others on the optimizer's states and step. Where neither kind
touches what the other acts on, the trace of one of each is known from traces of both apart: passes are those of the
one, and what lies before and after them is that of the other. Whether it is so is not assumed but seen. Of passes whose
trace has ended early, so has what is put together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zoo.memory.scaling import Family, Segment, Tape


def spliced(base: Family, passes: Family, steps: Family) -> Family | None:
    """The family with the passes of `passes` and with the states and the optimizer's step of `steps`.

    `base` lies between: it differs from `passes` in what acts on passes alone, and from `steps` in what acts on the
    optimizer alone. None where the traces do not bear that out.
    """
    shallow = _spliced(base.shallow, passes.shallow, steps.shallow)
    if shallow is None or base.depth != passes.depth or base.depth != steps.depth:
        return None
    if base.deeper is None or passes.deeper is None or steps.deeper is None:
        return Family(shallow, None, base.depth) if base.deeper is passes.deeper is steps.deeper else None
    deeper = _spliced(base.deeper, passes.deeper, steps.deeper)
    return None if deeper is None else Family(shallow, deeper, base.depth)


def _spliced(base: Tape, passes: Tape, steps: Tape) -> Tape | None:
    if base.ended or steps.ended:
        return None
    names = tuple(sorted({*base.names, *passes.names, *steps.names}))
    before, between, after = _parts(base, names)
    others_before, others_passes, others_after = _parts(passes, names)
    first, own_passes, last = _parts(steps, names)
    if passes.ended:
        after, last = others_after, []
    borne_out = _same(before, others_before) and _same(after, others_after) and _same(between, own_passes)
    return Tape((*first, *others_passes, *last), names, passes.ended) if borne_out else None


def _parts(tape: Tape, names: tuple[str, ...]) -> tuple[list[Segment], list[Segment], list[Segment]]:
    """Segments before the first forward pass, up to the optimizer's step, and from there on."""
    codes = np.array([names.index(name) for name in tape.names], dtype=np.int64)
    segments = [Segment(s.phase, s.events, codes[s.categories], s.costs, s.beside) for s in tape.segments]
    phases = [segment.phase for segment in segments]
    first = phases.index("forward") if "forward" in phases else len(phases)
    last = phases.index("optimizer") if "optimizer" in phases else len(phases)
    return segments[:first], segments[first:last], segments[last:]


def _same(ones: Sequence[Segment], others: Sequence[Segment]) -> bool:
    return len(ones) == len(others) and all(map(_alike, ones, others))


def _alike(one: Segment, other: Segment) -> bool:
    pairs = [(one.events, other.events), (one.categories, other.categories), (one.costs, other.costs)]
    same = one.phase == other.phase and all(np.array_equal(mine, theirs) for mine, theirs in pairs)
    return same and np.array_equal(_beside(one), _beside(other))


def _beside(segment: Segment) -> NDArray[np.bool_]:
    return np.zeros(len(segment.events), dtype=bool) if segment.beside is None else segment.beside
