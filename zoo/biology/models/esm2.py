"""ESM-2, protein language models of 8 M to 15 B parameters (Lin et al., Science 2023)."""

from __future__ import annotations

from zoo.biology.models._tasks import TASKS
from zoo.card import ModelCard, Source, SourceFile

_NOTES = (
    "parameters counts the masked-LM model as built, the contact head (layers x heads weights and one bias) included; "
    "it predicts contacts only and no task trains it. The files also hold position embeddings, rotary frequencies and "
    "position ids of older layouts, which rotary models do not use. Trained on sequences of at most 1024 tokens."
)


def _single(sha256: str) -> tuple[SourceFile, ...]:
    return (SourceFile(path="model.safetensors", sha256=sha256),)


def _shards(count: int) -> tuple[SourceFile, ...]:
    """The publisher offers the two largest models as pickled shards only; their checksums are not published facts."""
    names = [f"pytorch_model-{i:05d}-of-{count:05d}.bin" for i in range(1, count + 1)]
    return tuple(SourceFile(path=name) for name in ("pytorch_model.bin.index.json", *names))


def _card(
    size: str,
    *,
    repository: str,
    revision: str,
    files: tuple[SourceFile, ...],
    parameters: int,
    hidden: int,
    layers: int,
    heads: int,
) -> ModelCard:
    return ModelCard(
        name=f"esm2_t{layers}_{size.lower()}",
        domain="biology",
        title=f"ESM-2 {size}, protein language model",
        parameters=parameters,
        licence="MIT",
        paper="Lin et al. 2023, Evolutionary-scale prediction of atomic-level protein structure with a language model, "
        "Science 379, doi:10.1126/science.ade2574",
        homepage=f"https://huggingface.co/{repository}",
        config={
            "model_type": "esm",
            "vocab_size": 33,
            "mask_token_id": 32,
            "pad_token_id": 1,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": 4 * hidden,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "max_position_embeddings": 1026,
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-5,
            "position_embedding_type": "rotary",
            "emb_layer_norm_before": False,
            "token_dropout": True,
        },
        build="zoo.weights.hf:build",
        tokenizer="zoo.biology.tokenizers:esm",
        source=Source(uri=f"hf:{repository}@{revision}", files=files),
        max_length=1024,
        special_tokens=2,
        roles={
            "embedding": ("esm.embeddings",),
            "block": ("esm.encoder.layer.*",),
            "attention": (
                "esm.encoder.layer.*.attention.self.query",
                "esm.encoder.layer.*.attention.self.key",
                "esm.encoder.layer.*.attention.self.value",
                "esm.encoder.layer.*.attention.output.dense",
            ),
            "mlp": ("esm.encoder.layer.*.intermediate.dense", "esm.encoder.layer.*.output.dense"),
            "head": ("classifier", "lm_head"),
        },
        depth="num_hidden_layers",
        tasks=TASKS,
        notes=_NOTES,
    )


CARDS = (
    _card(
        "8M",
        repository="facebook/esm2_t6_8M_UR50D",
        revision="c731040fcd8d73dceaa04b0a8e6329b345b0f5df",
        files=_single("24c5fa474c48f3b754b86efe752d5f189d2bcd88190fa2270fc92b2ef3034189"),
        parameters=7_512_474,
        hidden=320,
        layers=6,
        heads=20,
    ),
    _card(
        "35M",
        repository="facebook/esm2_t12_35M_UR50D",
        revision="6fbf070e65b0b7291e7bbcd451118c216cff79d8",
        files=_single("e35647818e0e064351d4531ed480d225a002567b4b2b93ad3a9246d753150fc0"),
        parameters=33_501_394,
        hidden=480,
        layers=12,
        heads=20,
    ),
    _card(
        "150M",
        repository="facebook/esm2_t30_150M_UR50D",
        revision="a695f6045e2e32885fa60af20c13cb35398ce30c",
        files=_single("c3f1da8aea53bddd32c246c86168c23b9fd72341fb9db9a94436f855f5053566"),
        parameters=148_140_154,
        hidden=640,
        layers=30,
        heads=20,
    ),
    _card(
        "650M",
        repository="facebook/esm2_t33_650M_UR50D",
        revision="08e4846e537177426273712802403f7ba8261b6c",
        files=_single("a08adabb949fa67ad3c14b509d04fd60368b35007b0095e3358f81200c4f4db0"),
        parameters=651_043_254,
        hidden=1280,
        layers=33,
        heads=20,
    ),
    _card(
        "3B",
        repository="facebook/esm2_t36_3B_UR50D",
        revision="476b639933c8baad5ad09a60ac1a87f987b656fc",
        files=_shards(2),
        parameters=2_839_005_634,
        hidden=2560,
        layers=36,
        heads=40,
    ),
    _card(
        "15B",
        repository="facebook/esm2_t48_15B_UR50D",
        revision="5fbca39631164edc1d402a5aa369f982f72ee282",
        files=_shards(7),
        parameters=15_129_100_194,
        hidden=5120,
        layers=48,
        heads=40,
    ),
)
