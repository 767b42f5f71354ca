"""Recipes and dataset cards that travel with the package, from a checkout and from a wheel alike."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def shared() -> Path:
    """The folder that holds ``recipes/`` and ``datasets/``: inside an installed wheel, or the checkout's top."""
    package = Path(__file__).resolve().parent
    installed = package / "_shared"
    return installed if installed.is_dir() else package.parent


def find_recipe(path: str | Path) -> Path:
    """`path` itself where it exists, else the shipped recipe of that path, else `path` (for the error)."""
    given = Path(path)
    shipped = shared() / given
    return shipped if not given.exists() and not given.is_absolute() and shipped.is_file() else given
