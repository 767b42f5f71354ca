"""Counting bytes: the ledger that sees every allocation of a step, and what is predicted from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.memory.predict import Prediction, predict_peak

__all__ = ["Prediction", "predict_peak"]


def __getattr__(name: str) -> Any:
    """`predict_peak` and `Prediction` are imported when they are first asked for, as torch is heavy."""
    if name in __all__:
        from zoo.memory import predict

        return getattr(predict, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
