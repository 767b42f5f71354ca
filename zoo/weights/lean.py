"""What importing a model's code takes beside it, left out or put off: two thirds of a plan's seconds are imports."""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import itertools
import operator
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

_SYMBOLS = "torch.fx.experimental.symbolic_shapes"
_FUNCTIONS = "torch.utils._sympy.functions"
_COMPILER = tuple(f"torch._dynamo{part}" for part in ("", "._trace_wrapped_higher_order_op", ".eval_frame", ".utils"))

_only_plans = False


def only_plans() -> None:
    """For a program that plans and ends: what a trace without storage does not use is not imported.

    That is torch's compiler, its distributed tensors and sizes that are symbols, and the list of every model that
    `transformers` has: two thirds of what a model's code imports. What stands for them stays: a program that goes on
    to train, or that is used from Python, must not call this.
    """
    global _only_plans
    _only_plans = True


def before_traces() -> None:
    """What `only_plans` is for, to be done once the data has been looked at: other libraries may need the real ones."""
    import torch.compiler

    if not _only_plans or "transformers.modeling_utils" in sys.modules:
        return
    if "transformers" not in sys.modules and (spec := importlib.util.find_spec("transformers")) and spec.origin:
        _list_when_asked(spec, Path(spec.origin).parent)
    sys.modules.update(_beside())
    torch.distributed.is_available = lambda: False
    # Where an operator was registered, for messages, is looked for in every module that there is.
    setattr(torch._library.utils, "get_source", lambda stacklevel: "")  # noqa: B010  (as below)
    if "torch.distributed.tensor" not in sys.modules:  # asked for at the first tensor of a class of its own, by torch
        sys.modules["torch.distributed.tensor"] = _Imported("torch.distributed.tensor", DTensor=type("DTensor", (), {}))
    if "sympy" not in sys.modules:  # sizes are numbers here: nothing is an expression
        sys.modules["sympy"] = _Imported("sympy", Basic=type("Basic", (), {}))
        sys.modules[_SYMBOLS] = _Imported(_SYMBOLS, needs="sympy", **_of_numbers())
        sys.modules[_FUNCTIONS] = _Imported(_FUNCTIONS, needs="sympy", Max=max)
    if "torch._dynamo" not in sys.modules:
        for name in _COMPILER:
            sys.modules[name] = _Undecorating(name)
        # its options are its own: tensors without storage and torch.utils.checkpoint read them
        sys.modules["torch._dynamo"].__path__ = [str(Path(torch.__file__).parent / "_dynamo")]
        import torch._dynamo.config

        setattr(torch.compiler, "disable", _undecorated)  # noqa: B010  (its type is another function's)


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
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
        found[models].__spec__ = importlib.machinery.ModuleSpec(models, None, is_package=True)
    if optimize not in sys.modules and importlib.util.find_spec("scipy"):
        found[optimize] = _Imported(optimize, linear_sum_assignment=_linear_sum_assignment)
    return found


def _linear_sum_assignment(*args: Any, **options: Any) -> Any:
    return importlib.import_module("scipy.optimize._lsap").linear_sum_assignment(*args, **options)


def _list_when_asked(spec: importlib.machinery.ModuleSpec, package: Path) -> None:
    """Have the names of models that `transformers` has looked for when they are asked for, not when it is imported.

    To list them it reads all its 1600 files, which takes a third as long as ``import torch``.
    """
    bare = ModuleType("transformers")
    bare.__path__ = [str(package)]
    bare.__dict__.update(__spec__=spec, __version__=importlib.metadata.version("transformers"))
    sys.modules["transformers"] = bare
    utils: Any = importlib.import_module("transformers.utils.import_utils")
    del sys.modules["transformers"]
    if not hasattr(utils, "define_import_structure") or not hasattr(utils, "_LazyModule"):
        return  # a version that goes about it in another way
    listed, models = utils.define_import_structure, package / "models"
    kept, known = utils._LazyModule.__getattr__, utils._LazyModule.__dir__

    def not_all(place: Any, prefix: str | None = None) -> Any:
        return {frozenset(): {}} if Path(place) in (models, models / "__init__.py") else listed(place, prefix=prefix)

    def named(self: Any, name: str) -> Any:
        try:
            return kept(self, name)
        except AttributeError:
            if self.__name__ not in ("transformers", "transformers.models") or name.startswith("__"):
                raise
            if importlib.util.find_spec(f"{self.__name__}.{name}"):
                return importlib.import_module(f"{self.__name__}.{name}")
            if (found := _file_of(name, models, listed)) is None:
                raise
        setattr(self, name, getattr(importlib.import_module(f"transformers.{found}"), name))
        return self.__dict__[name]

    def names(self: Any) -> list[str]:
        if self.__name__ != "transformers":
            return list(known(self))
        every = (found for files in listed(models, prefix="models").values() for found in files.values())
        return sorted({*known(self), *itertools.chain(*every)})

    utils._LazyModule.__getattr__, utils._LazyModule.__dir__ = named, names
    utils.define_import_structure = not_all
    importlib.import_module("transformers.models")


def _file_of(name: str, models: Path, listed: Any) -> str | None:
    """The module that defines `name`: in the directories that its name begins with, or else anywhere."""
    begins = [d for d in models.iterdir() if name.lower().startswith(d.name.replace("_", ""))]
    begins.sort(key=lambda d: len(d.name), reverse=True)
    for place, prefix in (*((d, f"models.{d.name}") for d in begins), (models, "models")):
        for files in listed(place, prefix=prefix).values():
            for file, names in files.items():
                if name in names:
                    return str(file)
    return None


def _of_numbers() -> dict[str, Any]:
    """What torch asks about sizes that may be symbols, as `torch.fx.experimental.symbolic_shapes` says of numbers."""

    def itself(x: Any) -> Any:
        return x

    def never(x: Any) -> bool:
        return False

    def none_of(x: Any) -> Iterator[Any]:
        return iter(())

    def equal(x: Any, y: Any) -> bool:
        if isinstance(x, (tuple, list)):
            return len(x) == len(y) and all(map(equal, x, y))
        return bool(x == y)

    guards = ("guard_int", "guard_or_false", "guard_or_true", "guard_size_oblivious", "guarding_hint_or_throw")
    return {
        **dict.fromkeys((*guards, "expect_true", "statically_known_true"), itself),
        "statically_known_false": operator.not_,
        "sym_and": lambda *xs: functools.reduce(operator.and_, xs),
        "sym_or": lambda *xs: functools.reduce(operator.or_, xs),
        "sym_eq": equal,
        **dict.fromkeys(("is_nested_int", "is_symbolic", "has_free_symbols", "has_free_unbacked_symbols"), never),
        **dict.fromkeys(("free_symbols", "free_unbacked_symbols", "_iterate_exprs", "_iterate_nodes"), none_of),
        "compute_unbacked_bindings": lambda *args, **kwargs: None,
        "GuardOnDataDependentSymNode": type("GuardOnDataDependentSymNode", (RuntimeError,), {}),
        "has_guarding_hint": lambda x: True,
    }


class _Undecorating(ModuleType):
    """Stands for a package whose functions decorate others, which are left as they are.

    Nothing is an instance of its classes, and its answers to questions are no.
    """

    __path__: list[str] = []  # noqa: RUF012  (a package's path)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if part := sys.modules.get(f"{self.__name__}.{name}"):
            return part
        if name[0].isupper():
            setattr(self, name, type(name, (), {}))
            return self.__dict__[name]
        return _no if name.startswith("is_") else _undecorated


def _undecorated(function: Any = None, *arguments: Any, **options: Any) -> Any:
    return function if callable(function) else _undecorated


def _no(*arguments: Any) -> bool:
    return False


class _Imported(ModuleType):
    """Stands for a module until more is asked of it than it has, and is the real one from then on.

    Args:
        name: the module.
        needs: one that may have a stand-in, too, and that the real one imports.
        known: what it has.
    """

    def __init__(self, name: str, needs: str | None = None, **known: Any) -> None:
        super().__init__(name)
        spec = importlib.util.find_spec(name)
        place = spec.submodule_search_locations if spec is not None else None
        self.__dict__.update(known, __spec__=spec, _needs=needs, _place=place)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and not (name == "__path__" and self._place is not None):
            raise AttributeError(name)
        # Who imports names from a package asks for its path, and so does, for a part of it, the import system.
        if name == "__path__" and sys._getframe(1).f_globals.get("__name__") != "importlib._bootstrap":
            return self._place
        if isinstance(needed := sys.modules.get(self._needs or ""), _Imported):
            needed.become_real()
        return getattr(self.become_real(), name)

    def become_real(self) -> ModuleType:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
            if not any(isinstance(finder, _Already) for finder in sys.meta_path):
                sys.meta_path.insert(0, _Already())
        real = importlib.import_module(self.__name__)
        self.__dict__.update(real.__dict__)  # for those who hold this one
        return real


class _Already(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that there are: who began to import a part of a package that became real meanwhile gets that."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in sys.modules else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        pass
