"""What the baselines of all domains share: which tasks they know, and that there is something to learn from."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.errors import InputError, unknown

TASKS = ("sequence_classification", "sequence_regression")


def check_floor(name: str, inputs: str, task_name: str, train: Sequence[str], test: Sequence[str]) -> None:
    """Raise `InputError` where baseline `name` does not know the task, or has no `inputs` to learn from or predict."""
    if task_name not in TASKS:
        raise InputError(unknown(f"baseline {name}", "task of this baseline", task_name, TASKS))
    if not train or not test:
        raise InputError(
            f"baseline {name}: needs {inputs} to learn from and to predict, got {len(train)} and {len(test)}"
        )
