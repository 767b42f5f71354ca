"""The program ``zoo``: runs the command line, says what went wrong in a line, and ends."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import signal
import sys
import threading
import warnings

from zoo.cli import app


def main() -> None:
    """Run the command line; errors made for users are printed without a traceback."""
    from zoo.errors import ZooError

    # Threads that wait must not keep a core busy: beside one other busy process, a training step of the quickstart
    # took 2 s this way and 11 to 20 s the other. Read by OpenMP when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _without_noise()
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else somebody wants Ctrl-C to do something else, or nothing
        signal.signal(signal.SIGINT, _stop)
    try:
        app()
    except _Stopped:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except ZooError as error:
        for problem in getattr(error, "problems", None) or (str(error),):
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        from zoo.domain import extra_that_brings

        extra = extra_that_brings(error.name or "")
        if extra is None:
            raise
        print(f"error: {error.name} is not installed; get it with: pip install '{extra}'", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        sys.exit(_code_of(error))
    finally:
        if "zoo.domain" in sys.modules:
            sys.modules["zoo.domain"].note_left_out()
        signal.signal(signal.SIGINT, before)
        gc.freeze()  # at its end the interpreter would look through torch and transformers for garbage, for 1.5 s


def command() -> None:
    """The program ``zoo``: `main`, and out, without the third of a second that taking torch apart takes."""
    code = 0
    try:
        main()
    except SystemExit as left:
        if not isinstance(left.code, int):
            raise
        code = left.code
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join(PATIENCE)
            if thread.is_alive():
                sys.exit(code)
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:
        code = code or _code_of(error)
    os._exit(code)


def _code_of(error: OSError) -> int:
    """The exit code where output could not be written, which is said unless its reader has gone. Raises others."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        print(f"error: {error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
    elif not isinstance(error, BrokenPipeError):
        raise error
    return 1


PATIENCE = 5.0
"""Seconds for a thread that is still at work to come to its end."""


class _Stopped(BaseException):
    """Ctrl-C. Not a `KeyboardInterrupt`, of which typer would say nothing."""


def _stop(number: int, frame: object) -> None:
    raise _Stopped


def _without_noise() -> None:
    """Silence what libraries warn of that no user can do anything about: each by its words, and nothing else."""
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # PEFT's own doing
    warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor is deprecated", UserWarning)  # torch's
    # PEFT warns of merging; its adapters are saved and loaded beside the base, and never merged into it
    warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter")
