"""AntiBERTy, an antibody language model of 26 M parameters (Ruffolo et al. 2021)."""

from __future__ import annotations

from zoo.biology.models._tasks import TASKS
from zoo.card import ModelCard, Source, SourceFile

CARDS = (
    ModelCard(
        name="antiberty",
        domain="biology",
        title="AntiBERTy, antibody language model (BERT)",
        parameters=25_759_769,
        licence="MIT",
        paper="Ruffolo et al. 2021, Deciphering antibody affinity maturation with language models and weakly "
        "supervised learning, arXiv:2112.07782",
        homepage="https://github.com/jeffreyruffolo/AntiBERTy",
        config={
            "model_type": "bert",
            "vocab_size": 25,
            "hidden_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "intermediate_size": 2048,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-12,
            "pad_token_id": 0,
        },
        build="zoo.weights.hf:build",
        tokenizer="zoo.biology.tokenizers:antiberty",
        source=Source(
            uri="pypi:antiberty==0.1.3/antiberty/trained_models",
            files=(
                SourceFile(
                    path="AntiBERTy_md_smooth/pytorch_model.bin",
                    sha256="f1ae33eac8cc8784a7d4be5a600141d2fa7bc7d8d5b3f5324d64a6a63bd0f137",
                ),
                SourceFile(
                    path="AntiBERTy_md_smooth/config.json",
                    sha256="e199c1692b5f0246ebc5522102044d6e900ffc7d56fa5932fdd5b3d56ef487e9",
                ),
                SourceFile(path="vocab.txt", sha256="6db8c6cd6361eb233005b2dfe665d40d7f1ba78951bdf0fe61fa670ce192419a"),
            ),
            sha256="30d910992b190013871bac49cdc032e01a19339f7d2b958ab99b0eb44638352a",
        ),
        max_length=512,
        special_tokens=2,
        roles={
            "embedding": ("bert.embeddings",),
            "block": ("bert.encoder.layer.*",),
            "attention": (
                "bert.encoder.layer.*.attention.self.query",
                "bert.encoder.layer.*.attention.self.key",
                "bert.encoder.layer.*.attention.self.value",
                "bert.encoder.layer.*.attention.output.dense",
            ),
            "mlp": ("bert.encoder.layer.*.intermediate.dense", "bert.encoder.layer.*.output.dense"),
            "head": ("classifier", "bert.pooler", "cls"),
        },
        depth="num_hidden_layers",
        tasks=TASKS,
        notes="parameters is the authors' own count: BERT trunk and masked-LM head. The checkpoint (legacy "
        "architecture AntiBERTy) also holds bert.pooler (262,656, used by sequence heads) and, unused here, the heads "
        "cls.species (6 species), cls.chain (heavy, light), cls.graft (2 classes) and the buffer "
        "bert.embeddings.position_ids.",
    ),
)
