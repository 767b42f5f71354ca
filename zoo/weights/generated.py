"""Files that a generator makes on this machine: simulated data, placed in the cache as if it had been downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from zoo.card import load_ref
from zoo.errors import WeightsError
from zoo.weights.cache import Shelf, sha256_of, shelf
from zoo.weights.progress import Progress
from zoo.weights.source import GeneratedSource


class Generator(Protocol):
    """Makes one file at `path` from parameters: the same file for the same parameters and `version`.

    `version` is raised whenever that changes; it is part of the cache's key. `progress` (None: nobody looks) is told
    how many of how many steps are done. What goes wrong is a `ZooError`.
    """

    version: str

    def __call__(self, path: Path, progress: Callable[[int, int], None] | None, **parameters: Any) -> None: ...


def find_generator(source: GeneratedSource) -> Generator:
    """The generator that a source names. Raises `WeightsError` where there is none, or something else of that name."""
    try:
        found = load_ref(source.ref)
    except (ImportError, AttributeError) as error:
        raise WeightsError(f"{source}: there is no generator {source.ref} ({error})") from error
    if not callable(found) or not isinstance(getattr(found, "version", None), str):
        raise WeightsError(f"{source}: {source.ref} is not a generator: it has no version, or cannot be called")
    return found  # type: ignore[no-any-return]


def place_of(source: GeneratedSource) -> Shelf:
    """Where the cache keeps what this version of the generator makes of these parameters."""
    return shelf("generated", f"{source.ref.replace(':', '.')}@{find_generator(source).version}-{source.digest}")


def generate(source: GeneratedSource, place: Shelf, path: str, sha256: str | None, progress: Progress) -> None:
    """Make the file and place it as `path` in `place`. Raises `WeightsError` where its checksum is not `sha256`."""
    shutil.rmtree(place.parts, ignore_errors=True)  # what a killed process left behind
    try:
        made = place.parts / path
        made.parent.mkdir(parents=True, exist_ok=True)
        bar = progress.file(path)
        find_generator(source)(made, bar.at, **source.parameters)
        digest = sha256_of(made)
        if sha256 is not None and digest != sha256.lower():
            raise WeightsError(
                f"{source}: checksum differs: expected sha256 {sha256}, got {digest}; "
                "another machine or another version of a library made the expected one"
            )
        place.place({path: (made, digest)}, generator=str(source))
    finally:
        shutil.rmtree(place.parts, ignore_errors=True)
