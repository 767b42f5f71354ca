"""Errors that a user can act on: where, what was got, what is allowed, what to do.

Every error that the zoo raises on purpose is a `ZooError`; its `exit_code` is what the command line
returns. Anything else that escapes is a defect of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence


class ZooError(Exception):
    """A run that cannot go on for a reason the user can see. Exit code 1."""

    exit_code = 1


class InputError(ZooError):
    """Bad input: a recipe, a file, a name or an argument. Carries every problem found, not only the first.

    Exit code 2. `problems` are complete sentences, each starting with where it was found, for example
    ``recipes/biology/esm2.yaml:14 techniques.adapter.lora.targets: "attn" is not a role of esm2_t33_650m
    (roles: attention, mlp, head)``.
    """

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class DoesNotFit(ZooError):
    """No allowed plan stays inside the budget. The message names the smallest budget that would do."""


class WeightsError(ZooError):
    """A checkpoint could not be fetched, verified, read or matched to its model."""


class TrainingError(ZooError):
    """Training stopped: a loss that is not finite, a full disk, an unwritable folder."""


class Interrupted(ZooError):
    """Ctrl-C during training: the state was saved and `--resume` goes on from it. Exit code 130 by custom."""

    exit_code = 130


def nearest(got: str, allowed: Sequence[str]) -> str | None:
    """The allowed spelling closest to `got`, or None where nothing is close."""
    close = difflib.get_close_matches(got.lower(), [a.lower() for a in allowed], n=1, cutoff=0.6)
    return next((a for a in allowed if close and a.lower() == close[0]), None)


def counted(reasons: Mapping[str, int]) -> str:
    """What was left out, in words: how many and why, for each reason that there is."""
    return "; ".join(f"{count} {reason}" for reason, count in reasons.items() if count)


def unknown(where: str, what: str, got: str, allowed: Iterable[str]) -> str:
    """One sentence for a name that does not exist: what was got, the nearest spelling, what is allowed."""
    names = sorted(allowed)
    close = nearest(got, names)
    hint = f'; did you mean "{close}"?' if close else ""
    listed = ", ".join(names) if names else "none"
    return f'{where}: "{got}" is not a known {what}{hint} (known: {listed})'
