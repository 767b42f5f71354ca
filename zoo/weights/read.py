"""Checkpoints as plain tensors on the CPU: safetensors, or pickles that are not allowed to run anything."""

from __future__ import annotations

import fnmatch
import json
import pickle
import pickletools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from zoo.errors import WeightsError
from zoo.weights.source import check_relative

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# what training leaves beside a checkpoint, and what no model is read from
_NOT_WEIGHTS = ("training_args*", "optimizer*", "scheduler*", "rng_state*", "*.index.json", "*adapter_model*")
_HARMLESS = ("collections.OrderedDict", "torch._utils._rebuild_tensor_v2")
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # Lightning, plain PyTorch loops, fairseq


def read_state_dict(
    folder_or_file: str | Path, files: Sequence[str] | None = None, *, allow: tuple[type, ...] = ()
) -> dict[str, torch.Tensor]:
    """Name -> tensor of a checkpoint, on the CPU and mapped from the disk where the format allows it.

    In a folder `files` names what to read (files of other kinds among them are passed over, safetensors are
    preferred to pickles); without it the usual names are looked for: ``model.safetensors``, its shards listed in
    ``model.safetensors.index.json``, then the same of ``pytorch_model.bin``, then the only checkpoint there is. A
    pickle that wraps the tensors in ``state_dict``, ``model_state_dict`` or ``model`` is unwrapped.

    A pickle is read with ``weights_only``: no name in it is called, except tensors and the harmless types of `allow`
    (``argparse.Namespace``). Raises `WeightsError` that names the class a refused pickle asked for, and for files
    that are missing, ambiguous, damaged, or hold something that is not a tensor.
    """
    path = Path(folder_or_file)
    if not path.exists():
        raise WeightsError(f"{path}: no such checkpoint")
    chosen = _choose(path, files) if path.is_dir() else [path]
    if len(chosen) == 1 and chosen[0].name.endswith(".index.json"):
        return _read_sharded(chosen[0], allow)
    state: dict[str, torch.Tensor] = {}
    for file in chosen:
        _merge(state, _read_file(file, allow), file)
    return state


def read_pickle(path: str | Path, *, allow: tuple[type, ...] = ()) -> Any:
    """All that ``torch.save`` put into a file, configuration included; refuses what `read_state_dict` refuses."""
    path = Path(path)
    try:
        with torch.serialization.safe_globals(list(allow)):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)  # the format before 2020
    except pickle.UnpicklingError as error:
        raise WeightsError(_refused(path, str(error), allow)) from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # damaged bytes surface as whatever the unpickler stumbled over
        line = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(f"{path}: not a readable PyTorch checkpoint ({line[0]}); fetch it again") from error


def _refused(path: Path, message: str, allow: tuple[type, ...]) -> str:
    named = re.search(
        r"GLOBAL ([\w.]+)|function <[\w-]+ (?:function |class )?'?([\w.]+)|got <class '([\w.]+)'>", message
    )
    reason = re.search(r"WeightsUnpickler error: (.*)", message)
    asked = next((group for group in named.groups() if group), None) if named else _asked(path)
    allowed = ", ".join(f"{t.__module__}.{t.__qualname__}" for t in allow) or "nothing"
    if not asked:
        why = (reason[1] if reason else "").strip() or "it has codes that PyTorch's checkpoints do not have"
        return f"{path}: refused, it is not a pickle of tensors only ({why})"
    return (
        f"{path}: refused, the pickle asks for {asked}, and a checkpoint that names code may run it (allowed beside "
        f"tensors: {allowed}); ask its publisher for safetensors, or convert it where you trust it"
    )


def _asked(path: Path) -> str:
    """Names that a pickle not made by ``torch.save`` asks for, read off its opcodes: nothing is executed."""
    names: list[str] = []
    strings = ["", ""]
    try:
        with path.open("rb") as file:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    names.append(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    names.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    except Exception:  # not a pickle, or one cut short: what was seen so far is all there is to name
        pass
    return ", ".join(dict.fromkeys(name.removeprefix("builtins.") for name in names if name not in _HARMLESS))


def _read_file(path: Path, allow: tuple[type, ...]) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error
    return _tensors(read_pickle(path, allow=allow), path)


def _tensors(content: Any, path: Path) -> dict[str, torch.Tensor]:
    if isinstance(content, Mapping) and not all(isinstance(value, torch.Tensor) for value in content.values()):
        inner = [name for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
        if len(inner) == 1:
            content = content[inner[0]]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, expected a state dict (name -> tensor)")
    other = [
        f"{name} ({type(value).__name__})" for name, value in content.items() if not isinstance(value, torch.Tensor)
    ]
    if other:
        raise WeightsError(f"{path}: holds values that are not tensors: {', '.join(other[:5])}{_more(other)}")
    if not content:
        raise WeightsError(f"{path}: holds no tensors")
    return {str(name): value.detach() for name, value in content.items()}


def _read_sharded(index: Path, allow: tuple[type, ...]) -> dict[str, torch.Tensor]:
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({check_relative(shard, str(index)) for shard in where.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: not an index of shards (no weight_map: {error!r}); fetch it again") from error
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise WeightsError(f"{index}: {len(missing)} of {len(shards)} shards are missing: {', '.join(missing)}")
    state: dict[str, torch.Tensor] = {}
    for shard in shards:
        _merge(state, _read_file(index.parent / shard, allow), index.parent / shard)
    if lost := sorted(set(where) - set(state)):
        raise WeightsError(f"{index}: tensors that it lists are in no shard: {', '.join(lost[:5])}{_more(lost)}")
    return state


def _merge(state: dict[str, torch.Tensor], more: Mapping[str, torch.Tensor], file: Path) -> None:
    if twice := sorted(set(state) & set(more)):
        raise WeightsError(
            f"{file}: tensors that another file has already brought: {', '.join(twice[:5])}{_more(twice)}"
        )
    state.update(more)


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 5} more" if len(names) > 5 else ""


def _choose(folder: Path, files: Sequence[str] | None) -> list[Path]:
    """The files to read: an index alone, or one or several checkpoints of one kind."""
    if files is not None:
        names = [check_relative(name, str(folder)) for name in files]
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise WeightsError(f"{folder}: {', '.join(missing)} is missing")
    else:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    for ending, usual in ((".safetensors", "model.safetensors"), (PICKLES, "pytorch_model.bin")):
        weights = [n for n in names if n.endswith(ending) and not _matches(n, _NOT_WEIGHTS)]
        indices = [n for n in names if n.endswith(".index.json") and n.removesuffix(".index.json").endswith(ending)]
        plain = [n for n in weights if Path(n).name == usual]
        if files is None and plain and weights != plain:
            return [folder / usual]
        if len(indices) == 1:
            return [folder / indices[0]]
        if weights and (files is not None or len(weights) == 1):
            return [folder / name for name in weights]
        if weights or indices:
            raise WeightsError(
                f"{folder}: several checkpoints ({', '.join(weights or indices)}); say which one to read"
            )
    kinds = ", ".join((".safetensors", *PICKLES))
    raise WeightsError(f"{folder}: no checkpoint ({kinds}) among {', '.join(names) or 'its files: it is empty'}")


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(Path(name).name, pattern) for pattern in patterns)
