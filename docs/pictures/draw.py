"""Draws the pictures of the documentation from plans made anew: `make pictures`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
ROWS = 32
PLAIN = "{quantization: none, optimizer: adamw}"
"""The picture shows precision, what is trained, and checkpointing; the rest is as it is by default."""
GIB = 2**30
COLOURS = {
    "parameters": "#3b6fb6",
    "optimizer": "#8e5bb5",
    "gradients": "#e0b13a",
    "activations": "#4a9d5b",
    "temporaries": "#c8483f",
}

mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "zoo", "font.family": "sans-serif", "font.size": 10})


def plan(recipe: str, *options: str) -> dict[str, Any]:
    """What ``zoo plan --all --json`` prints."""
    command = [Path(sys.executable).with_name("zoo"), "plan", recipe, "--all", "--json", *options]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def memory_by_techniques(target: Path) -> None:
    """What a training step of ESM-2 650M would hold at its peak, for every combination of techniques."""
    free = [f"--set={key}" for key in ("model=esm2_t33_650m", f"techniques={PLAIN}", "data.split.method=random")]
    plans = plan("recipes/biology/antimicrobial_peptides.yaml", *free)["considered"]
    plans = [p for p in plans if p["micro_batch_size"] == ROWS]
    plans.sort(key=lambda p: p["peak_bytes"]["allocated"])
    figure, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
    for place, one in enumerate(plans):
        left = 0.0
        for category, colour in COLOURS.items():
            held = one["peak_by_category"].get(category, 0) / GIB
            axes.barh(place, held, left=left, color=colour, height=0.7, label=category if place == 0 else None)
            left += held
        whole = one["peak_bytes"]["allocated"] / GIB
        axes.text(left + 0.2, place, f"{whole:.1f} GiB", va="center")
    names = [{k: v for k, v in p["techniques"].items() if k != "optimizer"} for p in plans]
    labels = [f"{n['precision']}, {n['adapter']}, {n['checkpointing']}".removesuffix(", none") for n in names]
    axes.set_yticks(range(len(plans)), labels)
    axes.set_xlabel("predicted peak of one training step, GiB")
    tokens = plans[0]["tokens_per_row"]
    axes.set_title(f"ESM-2 650M, {ROWS} peptides of {tokens} tokens: where the memory goes", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    memory_by_techniques(HERE / "memory_by_techniques.svg")
