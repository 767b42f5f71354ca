"""Sapiens' checkpoint, a fairseq RoBERTa, in the names of transformers' `RobertaForMaskedLM`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import WeightsError

if TYPE_CHECKING:
    import torch

# In order: the first pattern that matches a whole name renames it.
_NAMES = (
    (r"sentence_encoder\.embed_tokens\.weight", r"roberta.embeddings.word_embeddings.weight"),
    (r"sentence_encoder\.embed_positions\.weight", r"roberta.embeddings.position_embeddings.weight"),
    (r"sentence_encoder\.emb_layer_norm\.(\w+)", r"roberta.embeddings.LayerNorm.\1"),
    (
        r"sentence_encoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)",
        r"roberta.encoder.layer.\1.attention.self.query.\2",
    ),
    (r"sentence_encoder\.layers\.(\d+)\.self_attn\.k_proj\.(\w+)", r"roberta.encoder.layer.\1.attention.self.key.\2"),
    (
        r"sentence_encoder\.layers\.(\d+)\.self_attn\.v_proj\.(\w+)",
        r"roberta.encoder.layer.\1.attention.self.value.\2",
    ),
    (
        r"sentence_encoder\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)",
        r"roberta.encoder.layer.\1.attention.output.dense.\2",
    ),
    (
        r"sentence_encoder\.layers\.(\d+)\.self_attn_layer_norm\.(\w+)",
        r"roberta.encoder.layer.\1.attention.output.LayerNorm.\2",
    ),
    (r"sentence_encoder\.layers\.(\d+)\.fc1\.(\w+)", r"roberta.encoder.layer.\1.intermediate.dense.\2"),
    (r"sentence_encoder\.layers\.(\d+)\.fc2\.(\w+)", r"roberta.encoder.layer.\1.output.dense.\2"),
    (r"sentence_encoder\.layers\.(\d+)\.final_layer_norm\.(\w+)", r"roberta.encoder.layer.\1.output.LayerNorm.\2"),
    (r"lm_head\.weight", r"lm_head.decoder.weight"),
    (r"lm_head\.(bias|(?:dense|layer_norm)\.\w+)", r"lm_head.\1"),
)


def vh_to_transformers(folder: Path) -> dict[str, torch.Tensor]:
    """`to_transformers` for the heavy chain's checkpoint, ``checkpoint_vh.pt`` in `folder`."""
    return to_transformers(folder / "checkpoint_vh.pt")


def vl_to_transformers(folder: Path) -> dict[str, torch.Tensor]:
    """`to_transformers` for the light chain's checkpoint, ``checkpoint_vl.pt`` in `folder`."""
    return to_transformers(folder / "checkpoint_vl.pt")


def to_transformers(checkpoint: Path) -> dict[str, torch.Tensor]:
    """State dict for `RobertaForMaskedLM` from a checkpoint of Sapiens.

    Two facts of the layouts are added: the token type table, which fairseq does not have, is one row of zeros, and
    ``lm_head.decoder.bias`` is the same tensor as ``lm_head.bias``. Raises `WeightsError` for a file that is missing
    or unsafe and for a tensor whose place is not known. Source: fairseq, ``models/roberta/model.py``.
    """
    import torch

    from zoo.weights import read_state_dict

    # Namespace holds fairseq's training options: plain attributes, nothing that runs when it is read.
    tensors = read_state_dict(checkpoint, allow=(argparse.Namespace,))
    state = {_renamed(name, checkpoint): tensor for name, tensor in tensors.items()}
    hidden = state["roberta.embeddings.word_embeddings.weight"].shape[1]
    state["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(1, hidden)
    state["lm_head.decoder.bias"] = state["lm_head.bias"]
    return state


def _renamed(name: str, path: Path) -> str:
    inner = name.removeprefix("decoder.")
    for pattern, replacement in _NAMES:
        if match := re.fullmatch(pattern, inner):
            return match.expand(replacement)
    raise WeightsError(f'{path}: tensor "{name}" has no place in a RoBERTa; this is not a Sapiens checkpoint')
