"""What a run must remember to go on as if it had never stopped."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from zoo.errors import TrainingError, WeightsError
from zoo.step import Setup
from zoo.training.files import write_atomically


@dataclass
class Progress:
    """Where a run is. `log_bytes` is the length of the metrics log at that moment: what came after it is cut off.

    `measured` are the peaks of the first steps by phase in bytes, `reserved` what a GPU's allocator had taken by then.
    `micro_batch_size` is the plan's, or what it was lowered to when memory ran out; `ran_out` tells where it did.
    """

    step: int = 0
    best_metric: float | None = None
    best_step: int = 0
    evaluations_without_improvement: int = 0
    seconds: float = 0.0
    log_bytes: int = 0
    measured: dict[str, int] = field(default_factory=dict)
    reserved: int = 0
    finished: bool = False
    micro_batch_size: int | None = None
    ran_out: list[str] = field(default_factory=list)


def trained_tensors(setup: Setup) -> dict[str, torch.Tensor]:
    """What training changes: trainable parameters, and buffers that belong to the state."""
    tensors: dict[str, torch.Tensor] = {name: p.detach() for name, p in setup.trainable().items()}
    state = setup.model.state_dict()
    tensors.update({name: b for name, b in setup.model.named_buffers() if name in state})
    return tensors


def random_state() -> dict[str, Any]:
    """Where the random numbers of every device are."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Bring the random numbers to where `random_state` found them."""
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


def save(path: Path, setup: Setup, progress: Progress) -> None:
    """One file with everything, put in place whole or not at all."""
    assert setup.optimizer is not None
    content = {
        "tensors": trained_tensors(setup),
        "optimizer": setup.optimizer.state_dict(),
        "progress": asdict(progress),
        "rng": random_state(),
    }
    write_atomically(path, lambda partial: torch.save(content, partial))


def save_tensors(path: Path, setup: Setup) -> None:
    """Only the trained tensors: the best model so far."""
    write_atomically(path, lambda partial: torch.save(trained_tensors(setup), partial))


def progress_in(path: Path) -> Progress:
    """Where the run was when the checkpoint at `path` was written."""
    return Progress(**_read(path, torch.device("cpu"), mmap=True)["progress"])


def restore(path: Path, setup: Setup) -> Progress:
    """Bring `setup` and the random state to where `save` left them. Raises `WeightsError` if the model is another,
    `TrainingError` for a file that cannot be read."""
    assert setup.optimizer is not None
    content = _read(path, torch.device("cpu"))  # everything is copied to where it belongs, some of it to the host
    restore_tensors(setup, content["tensors"], path)
    setup.optimizer.load_state_dict(content["optimizer"])
    set_random_state(content["rng"])
    return Progress(**content["progress"])


def restore_best(path: Path, setup: Setup) -> None:
    """Bring `setup` to the tensors that `save_tensors` wrote. Raises as `restore` does."""
    restore_tensors(setup, _read(path, torch.device("cpu")), path)


def _read(path: Path, device: torch.device, *, mmap: bool = False) -> dict[str, Any]:
    try:
        return dict(torch.load(path, map_location=device, weights_only=True, mmap=mmap))
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        raise TrainingError(
            f"{path}: is damaged or missing ({reason}); delete the folder {path.parent} and resume, "
            "which trains from the first step again"
        ) from error


@torch.no_grad()
def restore_tensors(setup: Setup, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    current = trained_tensors(setup)
    if current.keys() != tensors.keys():
        differing = sorted(current.keys() ^ tensors.keys())
        raise WeightsError(
            f"{path}: is of another model or adapter; {', '.join(differing[:5])} are in only one of them"
        )
    for name, value in tensors.items():
        current[name].copy_(value)
