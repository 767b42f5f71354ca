"""Stormer: the released model."""

from __future__ import annotations

from zoo.card import ModelCard, Source, SourceFile
from zoo.meteorology.released import STORMER

CARDS = (
    ModelCard(
        name="stormer_1_40625deg",
        domain="meteorology",
        title="Stormer at 1.40625 degrees: normalised differences over 6, 12 and 24 hours, 69 fields, trained on ERA5",
        parameters=468_751_636,
        licence="MIT",
        paper="Nguyen, Shah, Bansal, Arcomano, Maulik, Kotamarthi, Foster, Madireddy, Grover 2023, Scaling transformer "
        "neural networks for skillful and reliable medium-range weather forecasting, NeurIPS 2024, arXiv:2312.03876",
        homepage="https://github.com/tung-nd/stormer",
        config={
            "variables": STORMER,
            "predicts": "difference",
            "grid": (128, 256),
            "patch_size": 2,
            "width": 1024,
            "depth": 24,
            "heads": 16,
            "feed_forward_ratio": 4.0,
        },
        build="zoo.meteorology.forecasters:build_stormer",
        source=Source(
            uri="hf:tungnd/stormer@2ceebb74daec0b45b8d917fe794c9c80de6f66c1",
            files=(SourceFile(path="stormer_1.40625_patch_size_2.ckpt"),),
        ),
        convert="zoo.meteorology.forecasters:stormer_1_40625deg",
        max_length=8192,
        special_tokens=0,
        roles={
            "embedding": ("embedding",),
            # with its variables still apart the embedding holds as much as many blocks: it is recomputed as they are
            "block": ("embedding", "blocks.*"),
            "positionwise": ("embedding",),
            "attention": ("blocks.*.attn.qkv", "blocks.*.attn.proj"),
            "mlp": ("blocks.*.mlp.fc1", "blocks.*.mlp.fc2"),
            "head": ("head.linear",),
        },
        depth="depth",
        attention=("sdpa",),
        tasks=("forecast",),
        notes="Predicts differences; the file holds optimizer states and objects of foreign classes too, of which "
        "nothing is read.",
    ),
)
