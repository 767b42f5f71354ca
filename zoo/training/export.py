"""The trained model in the formats of the ecosystem: PEFT's for adapters, else ``from_pretrained``'s or safetensors."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from zoo.errors import TrainingError
from zoo.resolve import Job
from zoo.step import Setup, build
from zoo.training.values import loader_of
from zoo.weights import initialise_and_load, read_state_dict

ADAPTER_FILE = "adapter_config.json"


def save_model(setup: Setup, folder: Path) -> None:
    """Write the trained model to `folder`, whole or not at all. Raises `TrainingError`."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        model: Any = setup.model
        if hasattr(model, "save_pretrained"):
            with _no_progress_bar():
                model.save_pretrained(str(partial))
        else:
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, str(partial / "model.safetensors"))
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(f"{folder} cannot be written: {error}") from error


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers draws one for writing its files."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_model(job: Job, folder: Path, device: torch.device, *, precision: str) -> nn.Module:
    """The model that `save_model` wrote, ready to predict, in the `precision` that the run's plan chose.

    `job.task` must know its head already (`restore`).
    """
    techniques = [t for t in job.choices["precision"] if t.describe() == precision]
    if (folder / ADAPTER_FILE).is_file():
        import peft

        load = loader_of(job.card, job.recipe.checkpoint, job.recipe.train.seed)
        base = build(job.card, job.task, techniques, device, seed=job.recipe.train.seed, load=load).model
        model: nn.Module = peft.PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False)
        return model.eval()

    def from_folder(setup: Setup) -> None:
        initialise_and_load(setup.model, read_state_dict(folder), job.recipe.train.seed)  # also what files do not hold

    return build(job.card, job.task, techniques, device, load=from_folder).model.eval()


def size_on_disk(setup: Setup) -> int:
    """Bytes that checkpoints and the saved model need at most, while a new checkpoint stands beside the old one."""
    trained = sum(p.numel() * p.element_size() for p in setup.trainable().values())
    masters = sum(p.numel() * 4 for p in setup.trainable().values()) if setup.master_weights else 0
    states = sum(p.numel() * 8 for p in setup.trainable().values())
    whole = sum(p.numel() * p.element_size() for p in setup.model.parameters())
    return 2 * (trained + masters + states) + 2 * trained + whole
