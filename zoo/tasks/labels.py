"""What tasks with a fixed set of labels share."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zoo.data.prepare import Data, Example
from zoo.errors import InputError
from zoo.tasks.sequence import SequenceTask


class LabelTask(SequenceTask):
    """A task over classes: those given, or else those of the training part in sorted order.

    `classes` may be given, so that a plan without data knows how many there are.
    """

    lower_is_better = False

    def __init__(self, classes: Sequence[str] | None = None) -> None:
        super().__init__()
        if classes is not None and (isinstance(classes, str) or len(classes) < 2):
            raise ValueError("classes must list at least two labels")
        if twice := sorted(label for label, count in Counter(map(str, classes or ())).items() if count > 1):
            raise ValueError(f"classes must differ from each other, and {', '.join(twice)} is listed more than once")
        self.classes: tuple[str, ...] = tuple(str(c) for c in classes) if classes else ()

    @abstractmethod
    def labels_of(self, example: Example) -> Iterable[str]:
        """The labels of one example that count."""

    def learn(self, data: Data) -> None:
        """Take the classes from the training part. Raises `InputError` for fewer than two, and for labels elsewhere."""
        self.classes = self.classes or tuple(sorted({label for e in data.train for label in self.labels_of(e)}))
        if len(self.classes) < 2:
            raise InputError(f"{self.name}: the training part has fewer than two classes: {', '.join(self.classes)}")
        everywhere = {
            label for part in (data.train, data.valid, data.test) for e in part for label in self.labels_of(e)
        }
        strange = everywhere - set(self.classes)
        if strange:
            raise InputError(
                f"{self.name}: labels {', '.join(sorted(strange))} are not among the classes "
                f"of the training part ({', '.join(self.classes)})"
            )

    def state(self) -> dict[str, Any]:
        return {"classes": list(self.classes)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.classes = tuple(state["classes"])
