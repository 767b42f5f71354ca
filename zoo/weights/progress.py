"""One bar per file, or nothing at all: fetching code reports bytes and does not care who looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Bar:
    """The bytes of one file, or the steps of making it. Without a display every call does nothing."""

    def __init__(self, display: Any = None, task: Any = None) -> None:
        self._display, self._task = display, task

    def at(self, done: int, total: int | None = None) -> None:
        """`done` bytes or steps of `total` (None: as it was, or unknown) are here."""
        if self._display is not None:
            self._display.update(self._task, completed=done, total=total)


class Progress:
    """Hands out bars; a retry of a file goes on with its bar."""

    def __init__(self, display: Any = None) -> None:
        self._display = display
        self._bars: dict[str, Bar] = {}

    def file(self, name: str) -> Bar:
        if name not in self._bars:
            task = None if self._display is None else self._display.add_task(name, total=None)
            self._bars[name] = Bar(self._display, task)
        return self._bars[name]


@contextmanager
def shown(visible: bool, *, steps: bool = False) -> Iterator[Progress]:
    """Bars on standard error while the block runs, where `visible`; of `steps`, or else of bytes."""
    if not visible:
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Display

    counts = (MofNCompleteColumn(),) if steps else (DownloadColumn(), TransferSpeedColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), *counts)
    with Display(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as display:
        yield Progress(display)
