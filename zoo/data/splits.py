"""Train, validation and test parts, by row or by group."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from zoo.errors import InputError

PARTS = ("train", "valid", "test")


def by_groups(groups: Sequence[Hashable], fractions: tuple[float, float, float], seed: int) -> list[str]:
    """A part for every row such that rows of one group share it.

    Largest groups first (equal ones in random order), each goes to the part that is furthest below its share. With
    one group per row this is a random split with sizes within one row of `fractions`.
    """
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    order = np.random.default_rng(seed).permutation(len(members))
    shuffled = [list(members.values())[i] for i in order]
    shuffled.sort(key=len, reverse=True)  # stable: equal sizes stay in random order
    wanted = np.array(fractions) * len(groups)
    filled = np.zeros(3)
    parts = [""] * len(groups)
    for rows in shuffled:
        part = int(np.argmax(np.where(wanted > 0, wanted - filled, -np.inf)))
        filled[part] += len(rows)
        for row in rows:
            parts[row] = PARTS[part]
    return parts


def by_rows(count: int, fractions: tuple[float, float, float], seed: int) -> list[str]:
    """A random part for each of `count` rows."""
    return by_groups(range(count), fractions, seed)


def by_column(values: Sequence[str], where: str) -> list[str]:
    """Parts as a column names them. Raises `InputError` for a word that is not train, valid or test."""
    wrong = sorted({value for value in values if value not in PARTS})
    if wrong:
        raise InputError(
            f"{where}: the split column may hold train, valid and test, not {', '.join(map(repr, wrong[:5]))}"
        )
    return list(values)
