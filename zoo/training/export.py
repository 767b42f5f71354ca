"""The trained model in the formats of the ecosystem: PEFT's for adapters, else ``from_pretrained``'s or safetensors."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from zoo.errors import TrainingError
from zoo.resolve import Job
from zoo.step import Setup, build
from zoo.training.model_card import name_base, name_classes, readme
from zoo.training.values import loader_of
from zoo.weights import initialise_and_load, read_state_dict

ADAPTER_FILE = "adapter_config.json"


def save_model(setup: Setup, folder: Path, checkpoint: str = "pretrained") -> None:
    """Write the trained model to `folder`, whole or not at all. Raises `TrainingError`.

    `checkpoint` is what the recipe says, for the model to say where it comes from.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        model: Any = setup.model
        name_classes(setup)
        full = {} if hasattr(model, "peft_config") else _in_full(model)
        if hasattr(model, "save_pretrained"):
            with _no_progress_bar():
                model.save_pretrained(str(partial), **({"state_dict": full} if full else {}))
        else:
            state = full or model.state_dict()
            save_file({k: v.contiguous() for k, v in state.items()}, str(partial / "model.safetensors"))
        if (partial / ADAPTER_FILE).is_file():
            name_base(setup, checkpoint, partial / ADAPTER_FILE)
        (partial / "README.md").write_text(readme(setup, checkpoint), encoding="utf-8")
        for file in partial.iterdir():  # safetensors makes files for their owner alone, whatever the umask says
            file.chmod(partial.stat().st_mode & 0o666)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(f"{folder} cannot be written: {error}") from error


def _in_full(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model some of whose weights are held in codes, dequantized into host memory; else nothing.

    A trained head must not depend on whoever reads it having the codes: they are what was computed with, to the bit.
    """
    codes = {name: module for name, module in model.named_modules() if _in_codes(module)}
    if not codes:
        return {}
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    for name, module in codes.items():
        for key in [key for key in state if key.startswith(f"{name}.") and key != f"{name}.bias"]:
            del state[key]  # codes and scales
        state[f"{name}.weight"] = module.full_weight().cpu()
    return state


def _in_codes(module: nn.Module) -> bool:
    """Whether a layer holds its weight in codes; whole models of transformers have a method `dequantize`, too."""
    return isinstance(module, nn.Linear) and hasattr(module, "full_weight")


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


def load_model(job: Job, folder: Path, device: torch.device, *, chosen: Mapping[str, str]) -> nn.Module:
    """The model that `save_model` wrote, ready to predict, as the run's plan (its techniques by key) computed it.

    Adapters are put beside the same base, quantized again where it was, and never merged into it. `job.task` must know
    its head already (`restore`).
    """
    adapted = (folder / ADAPTER_FILE).is_file()
    keys = ("precision", "quantization") if adapted else ("precision",)  # what is whole was saved dequantized
    techniques = [t for key in keys for t in job.choices[key] if t.describe() == chosen.get(key)]
    if adapted:
        load = loader_of(job.card, job.recipe.checkpoint, job.recipe.train.seed)
        base = build(job.card, job.task, techniques, device, seed=job.recipe.train.seed, load=load).model
        adapter: Any = next(t for t in job.choices["adapter"] if t.describe() == chosen["adapter"])
        model: nn.Module = adapter.read(base, folder)
        return model.eval()

    def from_folder(setup: Setup) -> None:
        initialise_and_load(setup.model, read_state_dict(folder), job.recipe.train.seed)  # also what files do not hold

    return build(job.card, job.task, techniques, device, load=from_folder).model.eval()


def size_on_disk(setup: Setup) -> int:
    """Bytes that checkpoints and the saved model need at most, while a new checkpoint stands beside the old one."""
    trained = sum(p.numel() * p.element_size() for p in setup.trainable().values())
    has_masters = setup.master_weights or setup.steps_on_host
    masters = sum(p.numel() * 4 for p in setup.trainable().values()) if has_masters else 0
    states = sum(p.numel() * 8 for p in setup.trainable().values())
    whole = sum(p.numel() * p.element_size() for p in setup.model.parameters())
    layers: list[Any] = [m for m in setup.model.modules() if _in_codes(m)]  # these may be saved in full
    whole += sum(int(m.in_features * m.out_features * m.compute_dtype.itemsize) for m in layers)
    return 2 * (trained + masters + states) + 2 * trained + whole
