"""Recipes and dataset cards that travel with the package, from a checkout and from a wheel alike."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path

from zoo.errors import InputError


@functools.cache
def shared() -> Path:
    """The folder that holds ``recipes/`` and ``datasets/``: inside an installed wheel, or the checkout's top."""
    package = Path(__file__).resolve().parent
    installed = package / "_shared"
    return installed if installed.is_dir() else package.parent


def find_recipe(path: str | Path) -> Path:
    """`path` itself where it exists, else the shipped recipe of that path, else `path` (for the error).

    Raises `InputError` for what is no path.
    """
    if not isinstance(path, (str, Path)):
        raise InputError(f"recipe: got a {type(path).__name__}; needs the path of a recipe file")
    given = Path(path)
    shipped = shared() / given
    return shipped if not given.exists() and not given.is_absolute() and shipped.is_file() else given


def hide_datasets_folder() -> None:
    """Keep Python from taking a checkout's ``datasets/`` (cards, no code) for a package.

    Run in the checkout's top folder, or with it on the path as editable installs have it, Python finds a namespace
    package there; transformers then believes that Hugging Face's `datasets` is installed and fails on what is not
    there. Where that is installed it is found first, and nothing is done.
    """
    if "datasets" in sys.modules or (Path(__file__).parent / "_shared").is_dir():
        return
    spec = importlib.util.find_spec("datasets")
    if spec is not None and spec.origin is None:
        own = Path(__file__).resolve().parents[1] / "datasets"
        if {Path(place).resolve() for place in spec.submodule_search_locations or ()} == {own}:
            sys.modules["datasets"] = None  # type: ignore[assignment]  # how Python says: not to be found
