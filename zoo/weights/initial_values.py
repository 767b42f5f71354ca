"""First values of a model that was built without storage, from a seed, and proof that nothing was left out."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import nn

from zoo.errors import WeightsError


def is_pretrained(model: nn.Module) -> bool:
    """Whether `model` follows the conventions of `transformers` (which is not imported to find out)."""
    transformers = sys.modules.get("transformers.modeling_utils")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def initialise(model: nn.Module, seed: int, *, known: frozenset[int] = frozenset()) -> None:
    """Initialise what is not marked as loaded, non-persistent buffers always; the global random state stays as it was.

    Models of `transformers`, wherever they sit, initialise themselves; other modules through ``reset_parameters()``,
    children before parents. `known` are ids of tensors that will be loaded afterwards and need no value now.

    Raises `WeightsError` for a tensor that nobody gave a value: every fresh one is first filled with NaN (the
    smallest integer where it has integers), and looked at again afterwards.
    """
    fresh = {name: tensor for name, tensor in _all(model) if not getattr(tensor, "_is_hf_initialized", False)}
    devices = {tensor.device for tensor in fresh.values()}
    with torch.no_grad(), torch.random.fork_rng([d for d in devices if d.type == "cuda"]):
        torch.manual_seed(seed)
        for tensor in fresh.values():
            _blank(tensor)
        _initialise(model)
        left = [name for name, tensor in fresh.items() if id(tensor) not in known and _is_blank(tensor)]
    if left:
        owners = {name.rpartition(".")[0] for name in left}
        kinds = sorted({type(model.get_submodule(owner)).__name__ for owner in owners})
        raise WeightsError(
            f"{type(model).__name__}: no initial value for {', '.join(left[:5])}"
            f"{f' and {len(left) - 5} more' if len(left) > 5 else ''}; give {', '.join(kinds)} a reset_parameters() "
            "that sets all of its own parameters and buffers"
        )


def _initialise(module: nn.Module) -> None:
    if is_pretrained(module):
        for part in module.modules():  # a module built or loaded before may call itself finished: judge by its tensors
            tensors = [*part.parameters(), *part.buffers()]
            part._is_hf_initialized = all(getattr(t, "_is_hf_initialized", False) for t in tensors)  # type: ignore[assignment]
        module.initialize_weights()  # type: ignore[operator]
        return
    for child in module.children():
        _initialise(child)
    for name in ("reset_parameters", "_reset_parameters"):  # the underscore is MultiheadAttention's
        if callable(reset := getattr(module, name, None)):
            reset()
            return


def _all(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _blank(tensor: torch.Tensor) -> None:
    if tensor.is_floating_point() or tensor.is_complex():
        tensor.fill_(float("nan"))
    elif tensor.dtype in (torch.int16, torch.int32, torch.int64):
        tensor.fill_(torch.iinfo(tensor.dtype).min)


def _is_blank(tensor: torch.Tensor) -> bool:
    if tensor.numel() == 0:
        return False
    if tensor.is_floating_point() or tensor.is_complex():
        return bool(tensor.isnan().any())
    if tensor.dtype in (torch.int16, torch.int32, torch.int64):
        return bool((tensor == torch.iinfo(tensor.dtype).min).any())
    return False
