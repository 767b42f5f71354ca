"""`zoo` in processes of its own, to be killed at chosen moments.

They are forked from one server that has imported everything heavy and computed nothing, so that each starts at once.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

Moment = tuple[str, str, int]
"""What, of which, and the how manieth: see `_armed`."""

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([
    "zoo.training.run", "zoo.console", "zoo.biology.tokenizers", "zoo.biology.clusters", "peft", "sklearn.metrics",
    "scipy.stats", "pandas", "torch.utils.tensorboard", "transformers.models.roberta.modeling_roberta",
])  # fmt: skip


def zoo(arguments: list[str], said: Path, moment: Moment | None = None) -> int:
    """Exit code of the command line, minus the signal where one ended it; `said` gets its output."""
    process = _CONTEXT.Process(target=_main, args=(arguments, str(said), moment))
    process.start()
    process.join(timeout=120)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"zoo {' '.join(arguments)} hangs")
    return process.exitcode


def _main(arguments: list[str], said: str, moment: Moment | None) -> None:
    with open(said, "wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.argv = ["zoo", *arguments]
    if moment is not None:
        _armed(*moment)
    from zoo.program import main

    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _armed(kind: str, what: str, number: int) -> None:
    """Die of SIGKILL (``interrupt``: get SIGINT) at one moment, the `number`-th (from 1) of its kind in this process.

    ``step``: before update `number` of the run. ``half``: while torch writes the partial file of `what`. ``replace``:
    when `what` is complete, beside its old version. ``replaced``: when it is in place. ``call``: when the method
    `what` of the watcher is called.
    """
    from zoo.console import TrainingView
    from zoo.training import loop

    seen = 0

    def due() -> bool:
        nonlocal seen
        seen += 1
        return seen == number

    if kind in ("step", "interrupt"):
        plain = loop.learning_rate

        def rate(train: Any, step: int, steps: int) -> float:
            if step == number - 1:
                _die() if kind == "step" else os.kill(os.getpid(), signal.SIGINT)
            return plain(train, step, steps)

        loop.learning_rate = rate
    elif kind == "half":
        _half(what, due)
    elif kind in ("replace", "replaced"):
        move = Path.replace

        def replace(self: Path, target: Any) -> Any:
            if Path(target).name != what or not due():
                return move(self, target)
            if kind == "replaced":
                move(self, target)
            return _die()

        mock.patch.object(Path, "replace", replace).start()
    else:
        setattr(TrainingView, what, lambda *_: _die() if due() else None)


def _half(what: str, due: Callable[[], bool]) -> None:
    import torch

    plain = torch.save

    def save(content: Any, path: Path) -> None:
        if Path(path).name != f".{what}.partial" or not due():
            plain(content, path)
            return
        whole = io.BytesIO()
        plain(content, whole)
        Path(path).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
        _die()

    torch.save = save
