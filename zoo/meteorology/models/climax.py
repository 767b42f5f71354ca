"""ClimaX: the two released models, and small ones for the fields and the grid of whatever data."""

from __future__ import annotations

from typing import Any

from zoo.card import ModelCard, Source, SourceFile
from zoo.meteorology.released import CLIMAX

_PAPER = "Nguyen, Brandstetter, Kapoor, Gupta, Grover 2023, ClimaX: A foundation model for weather and climate, ICML, arXiv:2301.10343"  # noqa: E501
_REVISION = "hf:microsoft/ClimaX@1f77f8ee97328afd3b8d37f72a17dd31daf0eb90"
_ROLES = {
    "embedding": ("embedding",),
    # with its variables still apart the embedding holds more than all blocks together: it is recomputed as they are
    "block": ("embedding", "blocks.*"),
    "positionwise": ("embedding",),
    "attention": ("blocks.*.attn.qkv", "blocks.*.attn.proj"),
    "mlp": ("blocks.*.mlp.fc1", "blocks.*.mlp.fc2"),
    "head": ("head",),
}
_TASKS = ("forecast", "downscaling")


def _card(name: str, title: str, parameters: int, **given: Any) -> ModelCard:
    size: dict[str, Any] = {"width": 1024, "depth": 8, "heads": 16, "head_depth": 2, **given.pop("size", {})}
    fixed = {"feed_forward_ratio": 4.0, "dropout": 0.1, "drop_path": 0.1}
    grid, patch = given.pop("grid"), given.pop("patch_size")
    known = {"variables": given.pop("variables"), "grid": grid, "patch_size": patch, "predicts": given.pop("predicts")}
    return ModelCard(
        name=name, domain="meteorology", title=title, parameters=parameters, licence="MIT", paper=_PAPER,
        homepage="https://github.com/microsoft/ClimaX", config={**known, **fixed, **size},
        build="zoo.meteorology.forecasters:build_climax", special_tokens=0, roles=_ROLES, depth="depth",
        attention=("sdpa",), tasks=_TASKS, **given,
    )  # fmt: skip


def _released(degrees: str) -> Source:
    return Source(uri=_REVISION, files=(SourceFile(path=f"{degrees}deg.ckpt"),))


CARDS = (
    _card(
        "climax_5_625deg",
        "ClimaX at 5.625 degrees, pretrained on five CMIP6 models: 48 fields, any of them in any order",
        108_088_512,
        variables=CLIMAX, predicts="state", grid=(32, 64), patch_size=2, max_length=512,
        source=_released("5.625"), convert="zoo.meteorology.forecasters:climax_5_625deg",
    ),
    _card(
        "climax_1_40625deg",
        "ClimaX at 1.40625 degrees, pretrained on five CMIP6 models: 48 fields, any of them in any order",
        110_841_600,
        variables=CLIMAX, predicts="state", grid=(128, 256), patch_size=4, max_length=2048,
        source=_released("1.40625"), convert="zoo.meteorology.forecasters:climax_1_40625deg",
    ),
    _card(
        "climax_small",
        "ClimaX's architecture, small and untrained, for the fields and the grid of your data",
        901_408,
        variables=None, predicts="difference", grid=None, patch_size=4, max_length=16_384,
        size={"width": 128, "depth": 4, "heads": 4, "head_depth": 1},
        notes="Not published by the authors of ClimaX: there are no weights, training starts from nothing. "
        "Parameters are counted for two fields on 32 x 64 points. Both edges "
        "of the grid must be multiples of 4 points.",
    ),
)  # fmt: skip
