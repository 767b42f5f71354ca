"""Aurora: the two pretrained models at 0.25 degrees."""

from __future__ import annotations

from typing import Any

from zoo.card import ModelCard, Source, SourceFile

_HPA = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
_ON_LEVELS = ("geopotential", "u_component_of_wind", "v_component_of_wind", "temperature", "specific_humidity")
FIELDS = (
    "land_sea_mask", "orography", "soil_type",  # these stay as they are; all others are forecast
    "2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind", "mean_sea_level_pressure",
    *(f"{name}_{level}" for name in _ON_LEVELS for level in _HPA),
)  # fmt: skip
"""The fields of pretraining on ERA5; levels in hPa."""

_BLOCKS = "backbone.*_layers.*.blocks.*"
_HEADS = ("decoder.surf_heads.*", "decoder.atmos_heads.*")
_ROLES = {
    "embedding": ("encoder.surf_token_embeds", "encoder.atmos_token_embeds"),
    # with the levels apart encoder and decoder hold more than many blocks, and are recomputed as they are; the decoder,
    # whose turn in the backward pass comes at once, piece by piece, and heads, whose inputs would be kept in fp32
    "block": (
        "encoder", _BLOCKS, "decoder.level_decoder.layers.*.0", "decoder.level_decoder.layers.*.1",
        "decoder.atmos_heads.*",
    ),
    "positionwise": ("encoder.level_agg", "decoder.level_decoder", "decoder.atmos_heads.*"),
    "attention": (f"{_BLOCKS}.attn.qkv", f"{_BLOCKS}.attn.proj"),
    "mlp": (f"{_BLOCKS}.mlp.fc1", f"{_BLOCKS}.mlp.fc2"),
    "head": _HEADS,
}  # fmt: skip
_NOTES = (
    "Steps of 6 hours from two states 6 hours apart: lead_hours: [6], and a rollout for more. Needs the package "
    "microsoft-aurora, see docs/meteorology.md. On the globe from 90 N to 89.75 S: the row at the south pole is left "
    "out, as the authors do. Any levels of the pretraining will do, the same ones for each field."
)


def _card(name: str, title: str, parameters: int, file: str, notes: str = _NOTES, **size: Any) -> ModelCard:
    return ModelCard(
        name=name,
        domain="meteorology",
        title=title,
        parameters=parameters,
        licence="MIT",
        paper="Bodnar, Bruinsma, Lucic, Stanley et al. 2025, A foundation model for the Earth system, Nature 641, "
        "1180-1187, arXiv:2405.13063",
        homepage="https://github.com/microsoft/aurora",
        config={
            "variables": FIELDS,
            "grid": (720, 1440),
            "predicts": "state",
            "statistics": "zoo.meteorology.aurora:statistics",
            "history": 2,
            "step_hours": 6.0,
            "time": True,
            "coordinates": True,
            "patch_size": 4,
            "window_size": (2, 6, 12),
            "latent_levels": 4,
            "mlp_ratio": 4.0,
            "enc_depth": 1,
            "dec_depth": 1,
            "dec_mlp_ratio": 2.0,
            "perceiver_ln_eps": 1e-5,
            "plain_aggregation": True,
            "drop_rate": 0.0,
            "drop_path": 0.0,
            **size,
        },
        build="zoo.meteorology.aurora:build",
        source=Source(
            uri="hf:microsoft/aurora@0be7e57c685dac86b78c4a19a3ab149d13c6a3dd", files=(SourceFile(path=file),)
        ),
        convert="zoo.meteorology.aurora:checkpoint",
        max_length=64_800,
        special_tokens=0,
        roles=_ROLES,
        # where fields come in and go out: between one deviation and two, bf16 has steps of 26 m2/s2 for geopotential at
        # 500 hPa and of 0.17 K for temperature at 2 m
        fp32_modules=("encoder", *_HEADS),
        attention=("sdpa",),
        tasks=("forecast",),
        notes=notes,
    )


CARDS = (
    _card(
        "aurora_0_25deg",
        "Aurora at 0.25 degrees, pretrained on reanalyses, forecasts and climate simulations: 6 hours ahead",
        1_256_300_176,
        "aurora-0.25-pretrained.ckpt",
        embed_dim=512,
        num_heads=16,
        encoder_depths=(6, 10, 8),
        encoder_num_heads=(8, 16, 32),
        decoder_depths=(8, 10, 6),
        decoder_num_heads=(32, 16, 8),
    ),
    _card(
        "aurora_small",
        "Aurora at 0.25 degrees, small: the authors' model for trying things out",
        112_797_584,
        "aurora-0.25-small-pretrained.ckpt",
        notes=f"For debugging only, say its authors. {_NOTES}",
        embed_dim=256,
        num_heads=8,
        encoder_depths=(2, 6, 2),
        encoder_num_heads=(4, 8, 16),
        decoder_depths=(2, 6, 2),
        decoder_num_heads=(16, 8, 4),
    ),
)
