"""A checkpoint's tensors into a model's: in place, every name accounted for, the rest initialised from a seed.

The order of a build: the model is made under ``torch.device("meta")``, every parameter and buffer is replaced by
``torch.empty`` on the device (one new tensor for each old one, so that ties stay), then `initialise_and_load`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from zoo.errors import WeightsError
from zoo.weights.initial_values import initialise, is_pretrained

# A pooler sits on the trunk and is trained for one task: masked-language checkpoints come without one.
MAY_BE_NEW = ("*pooler.*",)
_LEGACY = ((".gamma", ".weight"), (".beta", ".bias"))  # LayerNorm of checkpoints converted from TensorFlow
# buffers that models compute: checkpoints carry them under the names of other releases, or not at all
_COMPUTED = (r"(^|\.)position_ids$", r"rotary_emb\w*\.inv_freq$")


@dataclass(frozen=True)
class LoadReport:
    """What became of every name. `loaded` and `newly_initialised` are the model's, the other two the checkpoint's.

    `unused` has no place in the model (another task's head); `ignored` is computed by the model itself.
    """

    loaded: tuple[str, ...] = ()
    newly_initialised: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    in_checkpoint: int = 0

    @property
    def summary(self) -> str:
        """One line: ``converted 105 of 107, skipped 2 (cls.seq...), new 2 (classifier.weight, classifier.bias)``."""
        skipped = (*self.unused, *self.ignored)
        parts = [f"converted {self.in_checkpoint - len(skipped)} of {self.in_checkpoint}"]
        parts.append(f"skipped {len(skipped)}{_brackets(skipped)}")
        if new := tuple(n for n in self.newly_initialised if not any(re.search(p, n) for p in _COMPUTED)):
            parts.append(f"new {len(new)}{_brackets(new)}")
        return ", ".join(parts)


def initialise_and_load(
    model: nn.Module,
    state: Mapping[str, torch.Tensor] | None,
    seed: int,
    *,
    allow_missing: Sequence[str] = MAY_BE_NEW,
    allow_unused: Sequence[str] = (),
    prefixes: Mapping[str, str] | None = None,
    reference: dict[nn.Parameter, torch.Tensor] | None = None,
) -> LoadReport:
    """Give every parameter and buffer of a materialised `model` its value: from `state`, else from `seed`.

    With `state` None all is random. The result depends on nothing but `state` and `seed` (and the kind of device).
    Raises `WeightsError` as `load_into` does, and where something in the model knows no initial value.
    """
    if state is None:
        initialise(model, seed)
        return LoadReport(newly_initialised=tuple(model.state_dict(keep_vars=True)))
    options = {"allow_missing": allow_missing, "allow_unused": allow_unused}
    if is_pretrained(model):  # leaves alone what is marked as loaded, which saves drawing billions of numbers
        report = load_into(model, state, prefixes=prefixes, reference=reference, **options)
        initialise(model, seed)
        return report
    initialise(model, seed, known=_groups(model).loaded_by(_translated(model, state, prefixes).values()))
    return load_into(model, state, prefixes=prefixes, reference=reference, **options)


def load_into(
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    *,
    allow_missing: Sequence[str] = MAY_BE_NEW,
    allow_unused: Sequence[str] = (),
    prefixes: Mapping[str, str] | None = None,
    reference: dict[nn.Parameter, torch.Tensor] | None = None,
) -> LoadReport:
    """Copy `state` into the parameters and persistent buffers of `model`, cast to the dtype that they have there.

    For a model of `transformers` names are matched as ``from_pretrained`` does: with or without ``base_model_prefix``,
    ``gamma``/``beta`` of old LayerNorms, one name of several tied ones is enough; the head may be new, the trunk must
    be complete except for `allow_missing` (shell patterns of the model's names). Any other module needs exactly its
    names, except for `allow_missing` and `allow_unused` (patterns of the checkpoint's). `prefixes` (old -> new) are
    replaced first. What was loaded is marked so that `initialise` leaves it alone. `reference` receives, for each
    parameter whose dtype rounds the checkpoint's values, those values: master weights start from them.

    Raises `WeightsError`, with all problems at once and the model untouched: nothing matches, shapes or kinds of
    number differ, tied or doubled names disagree, the trunk misses something, blocks of the checkpoint are left over.
    """
    groups = _groups(model)
    names = _translated(model, state, prefixes)
    problems: list[str] = []
    sources: dict[int, str] = {}  # id of a tensor of the model -> the checkpoint's name for it
    for name, target_name in names.items():
        target, value = groups.tensors[target_name], state[name]
        problems.extend(_misfit(name, value, target_name, target))
        first = sources.setdefault(id(target), name)
        if first != name and value.shape == state[first].shape and not torch.equal(value, state[first]):
            problems.append(f"{first} and {name} differ, but the model has one tensor for both ({target_name})")
    if not names:
        raise WeightsError(
            f"{type(model).__name__}: none of the checkpoint's {len(state)} names fits. "
            f"It has {_some(state)}; the model has {_some(groups.tensors)}"
        )
    missing = [name for name, tensor in groups.tensors.items() if id(tensor) not in sources]
    ignored, unused = _left_over(model, [name for name in state if name not in names])
    problems.extend(_incomplete(model, missing, allow_missing))
    problems.extend(_surplus(model, unused, allow_unused, groups.tensors))
    if problems:
        raise WeightsError(f"{type(model).__name__}: the checkpoint does not fit\n" + "\n".join(problems))
    with torch.no_grad():
        for tensor_id, name in sources.items():
            target = groups.by_id[tensor_id]
            target.copy_(state[name])
            target._is_hf_initialized = True  # type: ignore[attr-defined]
            rounds = torch.promote_types(state[name].dtype, target.dtype) != target.dtype
            if reference is not None and rounds and isinstance(target, nn.Parameter):
                reference[target] = state[name]
    loaded = tuple(name for name, tensor in groups.tensors.items() if id(tensor) in sources)
    return LoadReport(loaded, tuple(missing), tuple(unused), tuple(ignored), len(state))


@dataclass(frozen=True)
class _Groups:
    """All names of the model's parameters and persistent buffers; tied names share one tensor."""

    tensors: dict[str, torch.Tensor]
    by_id: dict[int, torch.Tensor]

    def loaded_by(self, names: Iterable[str]) -> frozenset[int]:
        return frozenset(id(self.tensors[name]) for name in names)


def _groups(model: nn.Module) -> _Groups:
    state = model.state_dict(keep_vars=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if bare := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise WeightsError(f"{type(model).__name__}: {_some(bare)} have no storage yet; materialise the model first")
    return _Groups(tensors, {id(tensor): tensor for tensor in tensors.values()})


def _base(model: nn.Module) -> str:
    """The prefix of the trunk's names, empty for a module without the convention."""
    prefix = getattr(model, "base_model_prefix", "") if is_pretrained(model) else ""
    return f"{prefix}." if isinstance(prefix, str) and prefix else ""


def _is_trunk_itself(model: nn.Module) -> bool:
    return not isinstance(getattr(model, _base(model).removesuffix("."), None), nn.Module)


def _translated(
    model: nn.Module, state: Mapping[str, torch.Tensor], prefixes: Mapping[str, str] | None
) -> dict[str, str]:
    """Checkpoint's name -> model's name, for those that the model has."""
    known = set(model.state_dict(keep_vars=True))
    base = _base(model)
    found: dict[str, str] = {}
    for name in state:
        new = name
        for old in sorted(prefixes or (), key=len, reverse=True):
            if name.startswith(old):
                new = (prefixes or {})[old] + name.removeprefix(old)
                break
        spellings = [new, *(new.removesuffix(old) + now for old, now in _LEGACY if new.endswith(old))]
        if base:
            spellings += [base + s for s in spellings] + [s.removeprefix(base) for s in spellings if s.startswith(base)]
        target = next((s for s in spellings if s in known), None)
        if target is not None:
            found[name] = target
    return found


def _misfit(name: str, value: torch.Tensor, target_name: str, target: torch.Tensor) -> list[str]:
    if value.shape != target.shape:
        return [f"{name} has shape {tuple(value.shape)}, but {target_name} of the model has {tuple(target.shape)}"]
    if value.is_floating_point() != target.is_floating_point():
        return [f"{name} is {value.dtype}, but {target_name} of the model is {target.dtype}"]
    return []


def _left_over(model: nn.Module, names: list[str]) -> tuple[list[str], list[str]]:
    patterns = [*_COMPUTED, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())]
    ignored = [name for name in names if is_pretrained(model) and any(re.search(p, name) for p in patterns)]
    return ignored, [name for name in names if name not in ignored]


def _incomplete(model: nn.Module, missing: list[str], allowed: Sequence[str]) -> list[str]:
    base = _base(model)
    patterns = [*(getattr(model, "_keys_to_ignore_on_load_missing", None) or ())]
    patterns += _COMPUTED if is_pretrained(model) else ()
    needed = [
        name
        for name in missing
        if (not base or _is_trunk_itself(model) or name.startswith(base))
        and not any(fnmatch.fnmatch(name, pattern) for pattern in allowed)
        and not any(re.search(pattern, name) for pattern in patterns)
    ]
    part = "trunk" if base else "model"
    return [f"the checkpoint lacks {len(needed)} weights of the {part}: {_some(needed)}"] if needed else []


def _surplus(model: nn.Module, unused: list[str], allowed: Sequence[str], known: Mapping[str, object]) -> list[str]:
    """Names left over that are refused: all of a plain module's; of transformers', blocks beyond the model's depth."""
    refused = [name for name in unused if not any(fnmatch.fnmatch(name, pattern) for pattern in allowed)]
    base = _base(model)
    if not base:
        return [f"the model has no place for {len(refused)} names: {_some(refused)}"] if refused else []
    lists = {parent for name in known for parent in _numbered(name)}
    stems = {parent.rpartition(".")[0] for parent in lists}
    beyond = [
        name
        for name in refused
        for full in (name, base + name, name.removeprefix(base))
        if any(p not in lists and p.rpartition(".")[0] in stems for p in _numbered(full))
    ]
    if not beyond:
        return []
    return [f"the checkpoint has blocks that the model lacks, its depth is another: {_some(sorted(set(beyond)))}"]


def _numbered(name: str) -> list[str]:
    """``a.3.b.0.w`` -> ``a.3`` and ``a.3.b.0``: the members of lists on the way to a name."""
    return [name[: match.end()] for match in re.finditer(r"(?<=\.)\d+(?=\.)", name)]


def _some(names: Iterable[str], count: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:count]) + (f" and {len(listed) - count} more" if len(listed) > count else "")


def _brackets(names: Sequence[str]) -> str:
    return f" ({_some(names, 3)})" if names else ""
