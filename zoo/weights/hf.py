"""Models whose architecture `transformers` already has: built from a card's exact configuration, without weights."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from zoo.card import ModelCard
    from zoo.domain import Head

_CLASSES = {
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "masked_lm": "AutoModelForMaskedLM",
}


def build(card: ModelCard, head: Head) -> nn.Module:
    """The transformers model that `card.config` (with ``model_type``) describes, with the head that a task asks for.

    Raises ValueError for a kind of head that transformers has no class for.
    """
    import transformers

    if head.kind not in _CLASSES:
        raise ValueError(f"{card.name} has no head of kind {head.kind!r} (kinds: {', '.join(sorted(_CLASSES))})")
    with _unhurried():
        model: nn.Module = getattr(transformers, _CLASSES[head.kind]).from_config(_config(card, head))
    return model


@contextlib.contextmanager
def _unhurried() -> Iterator[None]:
    """What `transformers` imports beside a model's code, imported when it is used: it takes as long as a plan."""
    beside = _beside()
    sys.modules.update(beside)
    try:
        yield
    finally:
        for name, module in beside.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _beside() -> dict[str, ModuleType]:
    """Modules to stand for two that are slow to import, where they are installed and not yet imported.

    ``transformers.models`` lists its 1600 files, as ``import transformers`` has just done: until somebody asks for the
    package itself, it is a place to find modules in. `scipy.optimize` has one function of the losses of object
    detection.
    """
    models, optimize = "transformers.models", "scipy.optimize"
    found: dict[str, ModuleType] = {}
    if models not in sys.modules and (spec := importlib.util.find_spec("transformers")) and spec.origin:
        found[models] = ModuleType(models)
        found[models].__path__ = [str(Path(spec.origin).parent / "models")]
    if optimize not in sys.modules and importlib.util.find_spec("scipy"):
        found[optimize] = _Deferred(optimize)
    return found


_only_plans = False


def only_plans() -> None:
    """For a program that plans and ends: `transformers` is imported without torch's compiler and distributed tensors.

    They are two thirds of what a model's code imports, and a trace without storage uses neither. What stands for them
    stays: a program that goes on to train, or that is used from Python, must not call this.
    """
    global _only_plans
    _only_plans = True


def before_traces() -> None:
    """What `only_plans` is for, to be done once the data has been looked at: other libraries may need the real ones."""
    import torch.compiler

    if not _only_plans or "transformers.modeling_utils" in sys.modules:
        return
    sys.modules.update(_beside())
    torch.distributed.is_available = lambda: False
    # Where an operator was registered, for messages, is looked for in every module that there is.
    setattr(torch._library.utils, "get_source", lambda stacklevel: "")  # noqa: B010  (as below)
    if "torch.distributed.tensor" not in sys.modules:  # asked for at the first tensor of a class of its own, by torch
        sys.modules["torch.distributed.tensor"] = _Imported("torch.distributed.tensor", DTensor=type("DTensor", (), {}))
    if "torch._dynamo" not in sys.modules:
        for name in ("torch._dynamo", "torch._dynamo._trace_wrapped_higher_order_op"):
            sys.modules[name] = _Undecorating(name)
        # its options are its own: tensors without storage and torch.utils.checkpoint read them
        sys.modules["torch._dynamo"].__path__ = [str(Path(torch.__file__).parent / "_dynamo")]
        import torch._dynamo.config

        setattr(torch.compiler, "disable", _undecorated)  # noqa: B010  (its type is another function's)


class _Undecorating(ModuleType):
    """Stands for a package whose functions decorate others, which are left as they are."""

    __path__: list[str] = []  # noqa: RUF012  (a package's path)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _undecorated


def _undecorated(function: Any = None, *arguments: Any, **options: Any) -> Any:
    return function if callable(function) else _undecorated


class _Imported(ModuleType):
    """Stands for a package until more is asked of it than it has."""

    def __init__(self, name: str, **known: Any) -> None:
        super().__init__(name)
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class _Deferred(ModuleType):
    """Stands for a module of functions, which is imported when one of them is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **options: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*args, **options)

        return call


def build_mean_pooled(card: ModelCard, head: Head) -> nn.Module:
    """As `build`, but one output per sequence is read off the mean over its tokens.

    For models that were pretrained by masked-language modelling alone, whose pooler of the first token has never
    been trained: a fresh pooler learns slowly and ends worse.
    """
    if head.kind != "sequence":
        return build(card, head)
    from zoo.weights.pooled import mean_pooled

    return mean_pooled(_config(card, head))


def _config(card: ModelCard, head: Head) -> Any:
    import transformers

    facts: dict[str, Any] = dict(card.config)
    config = transformers.AutoConfig.for_model(facts.pop("model_type"), **facts, num_labels=head.outputs)
    config._attn_implementation = "sdpa"
    return config
