"""Memory techniques: one file per recipe key, each option a small frozen class with `apply`.

A technique changes a `Setup` from outside the model, selects modules only by the roles of the card, and never
says how many bytes it saves: the ledger finds out. The modules of this package and those registered under
the entry-point group ``zoo.techniques`` are found by themselves; each lists its options in ``OPTIONS``,
default first.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, ClassVar

from zoo.card import Exactness, Frozen
from zoo.errors import InputError

if TYPE_CHECKING:
    from zoo.card import ModelCard
    from zoo.step import Setup

BEFORE_LOADING = 100
"""Techniques of a lower `stage` see the storage-free model, before its weights exist; the others the loaded one."""
BEFORE_FORWARD, BEFORE_OPTIMIZER = 200, 300
"""Those between change how a forward or backward pass is done, and neither weights nor what an optimizer keeps."""


class Technique(Frozen):
    """One option of one recipe key; its fields are its parameters.

    - `key` and `name`: as a recipe spells them, ``adapter: lora``.
    - `source`: the paper or document it implements.
    - `stage`: order of application, lowest first; see `BEFORE_LOADING`.
    - `exactness`: ``bitwise`` (training is the same to the bit), ``rounding`` (the same up to `tolerance`, relative
      to a float64 reference), ``changes-model`` (another model or other trained parameters).
    - `arithmetic`: number formats that the device must have for the planner to choose this by itself.
    - `automatic`: whether the planner tries this where a recipe leaves the key open; else a recipe has to name it.
    - `departure`: for one that changes the model, how far from training all of it as published; the planner goes no
      farther than it must (sums count).
    - `freezes_trunk`: whether nothing but the task head and what it adds itself is trained.
    - `loads_on_host`: whether the model is loaded in host memory, from where `apply` brings it to the device.
    - `moves_to_host`: whether it takes the host's memory in place of the device's, which are the same on a CPU.
    - `affine`: whether all it allocates is an affine function of the micro-batch's rows, so that one trace tells all.
    - `passes`: how many micro-batches a step must have to show all that one of more does: the first, the others.
    """

    key: ClassVar[str]
    name: ClassVar[str]
    source: ClassVar[str]
    stage: ClassVar[int]
    exactness: ClassVar[Exactness]
    tolerance: ClassVar[float] = 0.0
    arithmetic: ClassVar[frozenset[str]] = frozenset()
    automatic: ClassVar[bool] = True
    departure: ClassVar[int] = 1
    affine: ClassVar[bool] = True
    passes: ClassVar[int] = 2
    freezes_trunk: ClassVar[bool] = False
    loads_on_host: ClassVar[bool] = False
    moves_to_host: ClassVar[bool] = False

    def why_not(self, setup: Setup) -> str | None:
        """Why this cannot be applied to `setup` (whose model is not loaded yet), or None."""
        return None

    def apply(self, setup: Setup) -> None:
        raise NotImplementedError(f"{type(self).__name__}.apply")

    @property
    def period(self) -> int:
        """In how many blocks its pattern repeats: depths that differ by a multiple of it are of one kind."""
        return 1

    def automatic_for(self, card: ModelCard | None) -> bool:
        """Whether the planner tries this for a model where a recipe leaves the key open."""
        return self.automatic

    def describe(self) -> str:
        """``lora(rank=8)``: the name with the parameters that differ from their defaults."""
        changed = [
            f"{field}={getattr(self, field)}"
            for field, info in type(self).model_fields.items()
            if getattr(self, field) != info.default
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


@functools.cache
def registry() -> Mapping[str, tuple[type[Technique], ...]]:
    """Every technique key and its options, default first. Raises `InputError` for two modules with one key."""
    modules = [f"{__name__}.{info.name}" for info in pkgutil.iter_modules(__path__) if info.name[0] != "_"]
    modules += [entry.value for entry in entry_points(group="zoo.techniques")]
    found: dict[str, tuple[type[Technique], ...]] = {}
    for name in modules:
        try:
            options: tuple[type[Technique], ...] = importlib.import_module(name).OPTIONS
        except Exception as error:  # a stranger's package may fail in any way; say whose it is
            raise InputError(f'technique module "{name}" cannot be loaded: {error}') from error
        keys = {option.key for option in options}
        if len(keys) != 1 or keys & set(found):
            raise InputError(f'technique module "{name}" must bring the options of one new key, not {sorted(keys)}')
        found[keys.pop()] = options
    return dict(sorted(found.items(), key=lambda item: item[1][0].stage))
