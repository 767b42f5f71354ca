"""Prithvi WxC: the two pretrained models of MERRA-2 on 0.5 x 0.625 degrees."""

from __future__ import annotations

from zoo.card import ModelCard, Source, SourceFile
from zoo.meteorology.released import PRITHVI, PRITHVI_STATIC

_BLOCKS = "*coder.lgl_block.transformers.*"
_ROLES = {
    "embedding": ("patch_embedding", "patch_embedding_static"),
    "block": (_BLOCKS,),
    "attention": (f"{_BLOCKS}.attention.1.qkv_layer", f"{_BLOCKS}.attention.1.w_layer"),
    "mlp": (f"{_BLOCKS}.ff.1.net.0", f"{_BLOCKS}.ff.1.net.3"),
    "head": ("unembed",),
}
_NOTES = (
    "Steps of 6 hours from two states 6 hours apart: lead_hours: [6], and a rollout for more. Needs the package "
    "prithviwxc, see docs/meteorology.md. On the globe from 90 S to 89.5 N: the row at the north pole is left out, as "
    "the authors do. Forecasts are departures from climatology, which it is given: that of the authors' files, or what "
    "is usual in the training data."
)


def _card(name: str, title: str, repository: str, file: str, licence: str, notes: str, *, shifted: bool) -> ModelCard:
    return ModelCard(
        name=name,
        domain="meteorology",
        title=title,
        parameters=2_366_633_600,
        licence=licence,
        paper="Schmude, Roy, Trojak, Jakubik et al. 2024, Prithvi WxC: Foundation Model for Weather and Climate, "
        "arXiv:2409.13598",
        homepage="https://github.com/NASA-IMPACT/Prithvi-WxC",
        config={
            "variables": (*PRITHVI, *PRITHVI_STATIC),
            "grid": (360, 576),
            "predicts": "state",
            "history": 2,
            "step_hours": 6.0,
            "time": True,
            "climate": True,
            "units": True,
            "coordinates": True,
            "patch_size_px": (2, 2),
            "mask_unit_size_px": (30, 32),
            "embed_dim": 2560,
            "n_blocks_encoder": 12,
            "n_blocks_decoder": 2,
            "mlp_multiplier": 4,
            "n_heads": 16,
            "encoder_shifting": shifted,
            "decoder_shifting": True,
            "drop_path": 0.0,
            "parameter_dropout": 0.0,
        },
        build="zoo.meteorology.prithvi:build",
        source=Source(uri=f"hf:ibm-nasa-geospatial/{repository}", files=(SourceFile(path=file),)),
        convert="zoo.meteorology.prithvi:checkpoint",
        max_length=51_840,
        special_tokens=0,
        roles=_ROLES,
        depth="n_blocks_encoder",
        attention=("sdpa",),
        fp32_modules=("scalers",),
        tasks=("forecast",),
        notes=notes,
    )


CARDS = (
    _card(
        "prithvi_wxc_2300m",
        "Prithvi WxC, pretrained on MERRA-2 to fill in what is masked and to forecast",
        "Prithvi-WxC-1.0-2300M@ee4c8f1d988115a67641c0fa5a2280531f81afb4",
        "prithvi.wxc.2300m.v1.pt",
        "CDLA-Permissive-2.0",
        f"For other uses than forecasts, say its authors, who trained it with other steps, too. {_NOTES}",
        shifted=False,  # goes with masks only: the authors' large.yml
    ),
    _card(
        "prithvi_wxc_rollout_2300m",
        "Prithvi WxC, trained on for forecasts in steps of 6 hours, each from the last",
        "Prithvi-WxC-1.0-2300M-rollout@55c9790cdf11eb6329c9a7d94fbfcfab5d1f7003",
        "prithvi.wxc.rollout.2300m.v1.pt",
        "Apache-2.0",
        _NOTES,
        shifted=True,  # the authors' large_rollout.yml, and the configuration that they validate it with
    ),
)
