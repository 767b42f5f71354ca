"""Sapiens, human antibody language models for heavy and light chains (Prihoda et al. 2022)."""

from __future__ import annotations

from zoo.biology.models._tasks import TASKS
from zoo.card import ModelCard, Source, SourceFile

_DICTIONARY = SourceFile(path="dict.txt", sha256="8ff5c1d10c4e921ffb6c4ef6161e55880c1d9efb1c7c74fa3b39654470118dcd")


def _card(chain: str, *, title: str, sha256: str, max_tokens: int, parameters: int) -> ModelCard:
    """One chain's card. fairseq numbers positions from padding id + 1 = 2, so the table has two rows no token uses."""
    return ModelCard(
        name=f"sapiens_{chain}",
        domain="biology",
        title=title,
        parameters=parameters,
        licence="MIT",
        paper="Prihoda et al. 2022, BioPhi: A platform for antibody design, humanization, and humanness evaluation "
        "based on natural antibody repertoires and deep learning, mAbs 14:1, doi:10.1080/19420862.2021.2020203",
        homepage="https://github.com/Merck/Sapiens",
        config={
            "model_type": "roberta",
            "vocab_size": 25,
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "intermediate_size": 256,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "max_position_embeddings": max_tokens + 2,
            "type_vocab_size": 1,
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-5,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
        },
        build="zoo.weights.hf:build",
        tokenizer="zoo.biology.tokenizers:sapiens",
        source=Source(
            uri="pypi:sapiens==1.0.5/sapiens/models/v1",
            files=(SourceFile(path=f"checkpoint_{chain}.pt", sha256=sha256), _DICTIONARY),
            sha256="af1a8d445e9d7ab9f5f04512cf325acdfd9dd0930eb957b63ec234df1f141a8b",
        ),
        convert=f"zoo.biology.sapiens:{chain}_to_transformers",
        max_length=max_tokens,
        special_tokens=2,
        roles={
            "embedding": ("roberta.embeddings",),
            "block": ("roberta.encoder.layer.*",),
            "attention": (
                "roberta.encoder.layer.*.attention.self.query",
                "roberta.encoder.layer.*.attention.self.key",
                "roberta.encoder.layer.*.attention.self.value",
                "roberta.encoder.layer.*.attention.output.dense",
            ),
            "mlp": ("roberta.encoder.layer.*.intermediate.dense", "roberta.encoder.layer.*.output.dense"),
            "head": ("classifier", "lm_head"),
        },
        depth="num_hidden_layers",
        tasks=TASKS,
        notes=f"Reads {max_tokens} tokens: <s>, at most {max_tokens - 2} residues, </s>. parameters counts one row of "
        "zeros (128) that transformers adds for token types, which the fairseq model does not have.",
    )


CARDS = (
    _card(
        "vh",
        title="Sapiens VH, human antibody heavy chain language model (RoBERTa)",
        sha256="43254666e9ac0d5aa8fc120f12ac02b6ff082cd1f107c389023c1b947f214825",
        max_tokens=144,
        parameters=568_985,
    ),
    _card(
        "vl",
        title="Sapiens VL, human antibody light chain language model (RoBERTa)",
        sha256="570a63a6bdd60750c2cc2d280a419c300fafff8ab83f343f8e3847fd07903f6e",
        max_tokens=128,
        parameters=566_937,
    ),
)
