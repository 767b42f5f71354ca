"""Where data lies: a path of this machine, or the address of a store, which a `Path` cannot hold: of ``//`` it makes
one slash."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from zoo.errors import InputError

Place = Path | str
"""A path, or a text that is a path or an address (``s3://bucket/era5.zarr``)."""

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


def is_url(text: str) -> bool:
    return _URL.match(text) is not None


def local(given: Place) -> Path | None:
    """The path on this machine, also of an address that begins with ``file://``; None for any other address."""
    if isinstance(given, Path) or not is_url(given):
        return Path(given)
    return Path(unquote(given.removeprefix("file://"))) if given.startswith("file:///") else None


def target(given: Place) -> Path:
    """What a user names to be written. Raises `InputError` for an address."""
    if isinstance(given, Path) or not is_url(given):
        return Path(given)
    mine = local(given)
    instead = f"say {mine}" if mine else "write to this machine, and copy what was written"
    raise InputError(f"{given}: nothing is written to an address; {instead}")


def path(given: Place, what: str) -> Path:
    """An input that is read from this machine alone; `what` names it. Raises `InputError` for an address."""
    if isinstance(given, Path) or not is_url(given):
        return Path(given)
    mine = local(given)
    raise InputError(
        f"{given}: {what} are not read from an address; {f'say {mine}' if mine else 'copy the file to this machine'}"
    )
