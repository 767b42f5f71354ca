"""Sapiens, converted, computes what the fairseq model computed."""

from __future__ import annotations

import argparse

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from zoo.biology import DOMAIN
from zoo.biology.fasta import read_fasta
from zoo.card import load_ref
from zoo.domain import Head, datasets
from zoo.weights import fetch, read_pickle

CARDS = {card.name: card for card in DOMAIN.models}
# Trastuzumab, a humanized antibody: VH and VL (Carter et al. 1992, PNAS 89, 4285).
VARIABLE = {
    "sapiens_vh": (
        "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYC"
        "SRWGGDGFYAMDYWGQGTLVTVSS"
    ),
    "sapiens_vl": (
        "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK"
    ),
}


def _fairseq_logits(name: str, ids: torch.Tensor) -> torch.Tensor:
    """Logits (B, L, 25) of the original from its own tensors, through `nn.TransformerEncoder`.

    Liu et al. 2019 (RoBERTa) as fairseq builds it: learned positions from padding id + 1, a norm after the embedding,
    post-norm layers with exact GELU, and a head of dense, GELU, norm and the tied embedding.
    """
    card = CARDS[name]
    file = fetch(card.source) / card.source.files[0].path
    tensors = read_pickle(file, allow=(argparse.Namespace,))["model"]
    trunk = {k.removeprefix("decoder.sentence_encoder."): v for k, v in tensors.items() if "sentence_encoder" in k}
    head = {k.removeprefix("decoder.lm_head."): v for k, v in tensors.items() if "lm_head" in k}
    layer = nn.TransformerEncoderLayer(128, 8, 256, activation="gelu", batch_first=True, norm_first=False)
    encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval()
    state = {}
    for i in range(4):
        old, new = f"layers.{i}.", f"layers.{i}."
        for kind in ("weight", "bias"):
            packed = [trunk[f"{old}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            state[f"{new}self_attn.in_proj_{kind}"] = torch.cat(packed)
            state[f"{new}self_attn.out_proj.{kind}"] = trunk[f"{old}self_attn.out_proj.{kind}"]
            state[f"{new}linear1.{kind}"] = trunk[f"{old}fc1.{kind}"]
            state[f"{new}linear2.{kind}"] = trunk[f"{old}fc2.{kind}"]
            state[f"{new}norm1.{kind}"] = trunk[f"{old}self_attn_layer_norm.{kind}"]
            state[f"{new}norm2.{kind}"] = trunk[f"{old}final_layer_norm.{kind}"]
    encoder.load_state_dict(state)
    real = ids.ne(1)
    positions = torch.cumsum(real, dim=1) * real + 1
    x = F.embedding(ids, trunk["embed_tokens.weight"]) + F.embedding(positions, trunk["embed_positions.weight"])
    x = F.layer_norm(x, (128,), trunk["emb_layer_norm.weight"], trunk["emb_layer_norm.bias"])
    x = encoder(x, src_key_padding_mask=~real)
    x = F.gelu(F.linear(x, head["dense.weight"], head["dense.bias"]))
    x = F.layer_norm(x, (128,), head["layer_norm.weight"], head["layer_norm.bias"])
    return F.linear(x, trunk["embed_tokens.weight"], head["bias"])


def _converted(name: str) -> nn.Module:
    card = CARDS[name]
    model: nn.Module = load_ref(card.build)(card, Head("masked_lm")).eval()
    model.load_state_dict(load_ref(card.convert)(fetch(card.source)))
    return model


def _ids(name: str, texts: list[str]) -> torch.Tensor:
    tokenizer = load_ref(CARDS[name].tokenizer)(None)
    rows = [torch.tensor(tokenizer.encode(text)) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_id)


@torch.no_grad()
@pytest.mark.parametrize("name", VARIABLE)
def test_logits_equal_the_original_also_beside_padding(name):
    whole = VARIABLE[name]
    ids = _ids(name, [whole, whole[:40], "X" + whole[1:]])
    ours = _converted(name)(input_ids=ids, attention_mask=ids.ne(1).long()).logits
    difference = (ours - _fairseq_logits(name, ids))[ids.ne(1)].abs().max().item()
    assert difference < 1e-4  # fp32, two orders of summation; logits are of order 10


@torch.no_grad()
def _accuracy(model: nn.Module, name: str, texts: list[str]) -> float:
    """Masked-residue accuracy as Devlin et al. 2019 mask: 15 %, of which 80 % hidden, 10 % changed, 10 % left."""
    tokenizer = load_ref(CARDS[name].tokenizer)(None)
    ids = _ids(name, texts)
    dice = torch.Generator().manual_seed(0)
    asked = (torch.rand(ids.shape, generator=dice) < 0.15) & ids.gt(3)
    fate = torch.rand(ids.shape, generator=dice)
    other = torch.randint(4, 24, ids.shape, generator=dice)
    shown = torch.where(asked & (fate < 0.8), tokenizer.mask_id, ids)
    shown = torch.where(asked & (fate >= 0.8) & (fate < 0.9), other, shown)
    logits = model(input_ids=shown, attention_mask=ids.ne(1).long()).logits
    return (logits.argmax(-1) == ids)[asked].float().mean().item()


def test_human_model_knows_a_humanized_chain_better_than_mouse_heavy_genes_and_those_better_than_light_ones():
    card = datasets()["mouse_v_genes"]
    genes = read_fasta(fetch(card.source) / card.files["all"])
    heavy = genes[genes.field1 == "IGH"].sequence.tolist()
    light = genes[genes.field1 != "IGH"].sequence.tolist()
    model = _converted("sapiens_vh")
    assert _accuracy(model, "sapiens_vh", 40 * [VARIABLE["sapiens_vh"]]) > 0.7
    # 0.60 is what the study measured that this recipe repeats; split and masks differ.
    assert _accuracy(model, "sapiens_vh", heavy) == pytest.approx(0.60, abs=0.05)
    assert _accuracy(model, "sapiens_vh", light) < 0.45
