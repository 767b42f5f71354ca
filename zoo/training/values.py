"""Values for a built model: pretrained, random, or from a finished run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from zoo.card import ModelCard, Source, load_ref
from zoo.errors import WeightsError
from zoo.step import Loader, Setup
from zoo.weights import LoadReport, fetch, initialise_and_load, read_state_dict

# what a run saves is in the model's own names, however its published checkpoint is laid out
_OWN_LAYOUT = ("model.safetensors", "model.safetensors.index.json")


def loader_of(card: ModelCard, checkpoint: str, seed: int, *, progress: bool = False) -> Loader:
    """What fills a setup of `card` as a recipe's ``checkpoint`` says: ``pretrained``, ``random``, or a source's URI.

    What was converted, skipped and newly initialised becomes a note of the setup. Raises `WeightsError`.
    """

    def load(setup: Setup) -> None:
        report = values_for(setup.model, card, checkpoint, seed, progress=progress, reference=setup.reference)
        setup.notes.append(f"{checkpoint} weights: {report.summary}")

    return load


def values_for(
    model: nn.Module,
    card: ModelCard,
    checkpoint: str,
    seed: int,
    *,
    progress: bool = False,
    reference: dict[nn.Parameter, torch.Tensor] | None = None,
) -> LoadReport:
    """Fill a materialised `model` of `card` in place. See `loader_of`."""
    if checkpoint == "random":
        return initialise_and_load(model, None, seed)
    source = card.source if checkpoint == "pretrained" else Source(uri=checkpoint)
    if source is None:
        raise WeightsError(card.no_weights)
    state = _read(card, source, fetch(source, progress=progress, name=card.name))
    return initialise_and_load(model, state, seed, reference=reference)


_OF_TRAINING = re.compile(r"(?<!token_)dropout|initializer")
"""Entries of a configuration that do not change what a trained model computes."""


def _check_config(card: ModelCard, path: Path) -> None:
    """Refuse weights whose own configuration, where there is one beside them, is not that of the card.

    What has another number of heads, or another epsilon, can have the same tensors, and would be another model.
    """
    try:
        own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable configuration ({error})") from error
    other = [
        f"{key} is {own[key]!r}, not {value!r}"
        for key, value in card.config.items()
        if isinstance(own, dict) and key in own and own[key] != value and not _OF_TRAINING.search(key)
    ]
    if other:
        raise WeightsError(
            f"{path}: these weights are not of {card.name}: {'; '.join(other)}; plan and train them as a model of "
            "their own, whose card has this configuration (docs/extending.md)"
        )


def _read(card: ModelCard, source: Source, folder: Path) -> Mapping[str, torch.Tensor]:
    if (folder / "adapter_config.json").is_file():
        raise WeightsError(
            f"{folder}: is an adapter, and a checkpoint must be a whole model; go on with its run through "
            "zoo train --resume, or merge it into its model first (PEFT: merge_and_unload, save_pretrained)"
        )
    if foreign := source != card.source:
        _check_config(card, folder / "config.json")
    own = foreign and any((folder / name).is_file() for name in _OWN_LAYOUT)
    if card.convert is not None and not own:
        converted: Mapping[str, torch.Tensor] = load_ref(card.convert)(folder)
        return converted
    weights = [f.path for f in source.files if f.path.endswith((".safetensors", ".bin", ".pt", ".ckpt", ".index.json"))]
    return read_state_dict(folder, weights or None)
