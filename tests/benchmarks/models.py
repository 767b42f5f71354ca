"""Models that only benchmarks and tests need: a decoder and an encoder of T5's shape, small, as a foreign domain.

`registered` makes them known for a while, as the entry point of an installed package would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, MutableMapping
from typing import Any, cast

from zoo.card import ModelCard, Source
from zoo.domain import Domain, domains, find_model
from zoo.domain import models as known_models

_NOWHERE = Source(uri="file:/nowhere")  # there are no weights: recipes say checkpoint: random


def _card(name: str, title: str, **facts: Any) -> ModelCard:
    return ModelCard(
        name=name, domain="bench", title=title, licence="CC0-1.0", paper="-", build="zoo.weights.hf:build",
        tokenizer="zoo.biology.tokenizers:esm", source=_NOWHERE, **facts,
    )  # fmt: skip


LLAMA = _card(
    "llama_small", "A decoder of Llama's shape: grouped key and value heads, gated MLP, RMS norms",
    parameters=4_600_000,
    config={
        "model_type": "llama", "vocab_size": 33, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8,
        "num_key_value_heads": 2, "intermediate_size": 688, "max_position_embeddings": 512, "pad_token_id": 1,
        "bos_token_id": 0, "eos_token_id": 2, "attention_dropout": 0.1, "use_cache": False,
    },
    max_length=512,
    roles={
        "embedding": ("model.embed_tokens",),
        "block": ("model.layers.*",),
        "attention": tuple(f"model.layers.*.self_attn.{part}_proj" for part in "qkvo"),
        "mlp": tuple(f"model.layers.*.mlp.{part}_proj" for part in ("gate", "up", "down")),
        "head": ("score",),
    },
    depth="num_hidden_layers",
    tasks=("sequence_regression", "sequence_classification"),
)  # fmt: skip

T5 = _card(
    "t5_encoder_small", "An encoder of T5's shape: relative positions, gated MLP whose last product is in fp32",
    parameters=6_300_000,
    config={
        "model_type": "t5", "vocab_size": 33, "d_model": 256, "d_kv": 32, "num_heads": 8, "d_ff": 1024,
        "num_layers": 6, "feed_forward_proj": "gated-gelu", "dropout_rate": 0.1, "classifier_dropout": 0.1,
        "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0, "use_cache": False,
    },
    max_length=512,
    roles={
        "embedding": ("transformer.shared",),
        "block": ("transformer.encoder.block.*",),
        "attention": tuple(f"transformer.encoder.block.*.layer.0.SelfAttention.{part}" for part in "qkvo"),
        "mlp": tuple(f"transformer.encoder.block.*.layer.1.DenseReluDense.{part}" for part in ("wi_0", "wi_1", "wo")),
        "head": ("classifier",),
    },
    fp32_modules=("transformer.encoder.block.*.layer.1.DenseReluDense.wo",),
    depth="num_layers",
    tasks=("token_classification",),
)  # fmt: skip


def shallow(name: str, depth: int) -> ModelCard:
    """A published model with fewer blocks, random weights and a name of its own: quick to train."""
    card = find_model(name)
    return card.shallow(depth).model_copy(update={"name": f"{name}_of_{depth}", "domain": "bench"})


@contextlib.contextmanager
def registered(*more: ModelCard) -> Iterator[Domain]:
    """While entered, the domain ``bench`` has these models and `more`."""
    domain = Domain("bench", "Models for benchmarks", (LLAMA, T5, *more))
    known = cast("MutableMapping[str, Domain]", domains())
    known[domain.name] = domain
    known_models.cache_clear()
    try:
        yield domain
    finally:
        del known[domain.name]
        known_models.cache_clear()
