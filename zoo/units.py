"""Bytes and how people write them."""

from __future__ import annotations

import re

from zoo.errors import InputError

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

_FACTORS = {
    "b": 1, "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)?\s*")


def parse_bytes(text: str | int) -> int:
    """Bytes in ``"8GiB"`` (2^30), ``"24 GB"`` (10^9) or a plain number of bytes.

    Raises `InputError` for anything else, a negative, a zero or an absurd amount included.
    """
    match = _SIZE.fullmatch(str(text))
    factor = _FACTORS.get((match[2] or "b").lower()) if match else None
    if match is None or factor is None or not 1 <= float(match[1]) * factor < 2**63:
        raise InputError(f'"{text}" is not an amount of memory; write for example 8GiB, 24GB or 512MiB')
    return int(float(match[1]) * factor)


def format_bytes(count: int | float) -> str:
    """``8.00 GiB``, ``512 MiB``, ``17 B``: three significant digits in the unit that reads best."""
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(count) >= unit:
            value = count / unit
            return (
                f"{value:.2f} {name}" if value < 10 else f"{value:.1f} {name}" if value < 100 else f"{value:.0f} {name}"
            )
    return f"{int(count)} B"
