"""Compare our models with golden arrays: ``python -m tests.golden.compare climax FOLDER [--json]``.

Layouts of a folder:

- ``climax``: for each NAME, ``NAME.ckpt`` (``state_dict`` in the authors' names, prefix ``net.``), ``NAME_meta.json``
  (``cfg`` and ``default_vars``) and ``NAME_io.pt``: inputs ``x``, ``in_vars``, ``lead_times`` (hours / 100), ``y``,
  ``out_vars``, ``lat`` (degrees), ``clim``, and what the authors' code made of them: ``encoder``, ``pred``, ``loss``,
  ``metrics`` and ``grad_norms``.
- ``stormer``: ``*.pt`` with ``sd`` (authors' names), ``V``, ``x``, ``t`` (hours / 10) and ``y``; ``heads`` where it is
  not 4.

Prints the largest deviation of each kind and ends with 1 where one is beyond its tolerance, with 2 where the folder
is not of the layout. Predictions and encodings are compared absolutely, as are losses and scores; norms of gradients
relatively. A value that is not finite, or that only one side has, is beyond every tolerance.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.meteorology import climax, metrics, stormer
from zoo.weights.read import read_pickle

# float32 in another order of addition: measured 1e-6 on encodings of size 1, 2e-7 on scalars, 3e-7 on norms
TOLERANCES = {"encoder": 1e-5, "prediction": 1e-5, "loss": 1e-6, "metrics": 1e-6, "gradient_norms": 1e-5}


def compare_climax(folder: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for io in sorted(folder.glob("*_io.pt")):
        name = io.name.removesuffix("_io.pt")
        golden = read_pickle(io)
        meta = json.loads((folder / f"{name}_meta.json").read_text(encoding="utf-8"))
        cfg = meta["cfg"]
        model = climax.ClimaX(
            meta["default_vars"],
            grid=tuple(cfg["img_size"]),
            patch_size=cfg["patch_size"],
            width=cfg["embed_dim"],
            depth=cfg["depth"],
            heads=cfg["num_heads"],
            head_depth=cfg["decoder_depth"],
            feed_forward_ratio=cfg["mlp_ratio"],
        ).eval()
        state = read_pickle(folder / f"{name}.ckpt")["state_dict"]
        model.load_state_dict(climax.from_authors(state, grid=model.grid, patch_size=model.patch_size))
        of_one = {kind: f"{name}.{kind}" for kind in TOLERANCES}
        hours = golden["lead_times"] * 100
        with torch.no_grad():
            encoder = model.encode(golden["x"], hours, golden["in_vars"])
        found[of_one["encoder"]] = _absolute(encoder, golden["encoder"])
        prediction = model(golden["x"], hours, golden["in_vars"], golden["out_vars"])
        found[of_one["prediction"]] = _absolute(prediction.detach(), golden["pred"])
        given = prediction, golden["y"], golden["lat"]
        loss, per_variable = metrics.weighted_loss(*given), metrics.weighted_mse(*given).detach()
        ours = dict(zip(golden["out_vars"], per_variable.tolist(), strict=True)) | {"loss": loss.item()}
        found[of_one["loss"]] = _scalars(ours, golden["loss"], relative=False)
        found[of_one["metrics"]] = _scalars(_scores(golden, prediction.detach()), golden["metrics"], relative=False)
        loss.backward()
        found[of_one["gradient_norms"]] = _scalars(_norms(model, state), golden["grad_norms"], relative=True)
    return found


def _scores(golden: Mapping[str, Any], prediction: Tensor) -> dict[str, float]:
    """Scores under the authors' names: ``w_rmse_VARIABLE_LEAD`` and ``acc_VARIABLE_LEAD``, and the mean of each."""
    values = {
        "w_rmse": metrics.weighted_rmse(prediction, golden["y"], golden["lat"]),
        "acc": metrics.climax_acc(prediction, golden["y"], golden["clim"], golden["lat"]),
    }
    first = f"w_rmse_{golden['out_vars'][0]}_"
    lead = next((key.removeprefix(first) for key in golden["metrics"] if key.startswith(first)), "")
    scores = {}
    for kind, per_variable in values.items():
        scores |= {f"{kind}_{v}_{lead}": float(x) for v, x in zip(golden["out_vars"], per_variable, strict=True)}
        scores[kind] = float(per_variable.mean())
    return scores


def _norms(model: climax.ClimaX, state: Mapping[str, Tensor]) -> dict[str, float]:
    """Norm of each gradient under the authors' name; variables that a convolution of their own never saw have none."""
    gradients = {name: _gradient(parameter) for name, parameter in model.named_parameters()}
    tokens, merging = "embedding.tokens.", "embedding.aggregation."
    renamed = {
        "var_embed": (tokens + "identity",),
        "var_query": (merging + "seed",),
        "var_agg.in_proj_weight": (merging + "query.weight", merging + "key_value.weight"),
        "var_agg.in_proj_bias": (merging + "query.bias", merging + "key_value.bias"),
        "var_agg.out_proj.weight": (merging + "output.weight",),
        "var_agg.out_proj.bias": (merging + "output.bias",),
        "pos_embed": ("positions",),
        "lead_time_embed.weight": ("lead_time.weight",),
        "lead_time_embed.bias": ("lead_time.bias",),
    }
    if any(name.endswith("token_embeds.proj_weights") for name in state):
        renamed |= {"token_embeds.proj_weights": (tokens + "weight",), "token_embeds.proj_biases": (tokens + "bias",)}
    used = {name for names in renamed.values() for name in names} | {tokens + "weight", tokens + "bias"}
    norms = {
        theirs: math.hypot(*(float(gradients[name].norm()) for name in names)) for theirs, names in renamed.items()
    }
    norms |= {name: float(gradient.norm()) for name, gradient in gradients.items() if name not in used}
    if "token_embeds.proj_weights" not in renamed:
        for kind in ("weight", "bias"):
            each = {f"token_embeds.{i}.proj.{kind}": float(g.norm()) for i, g in enumerate(gradients[tokens + kind])}
            norms |= {name: norm for name, norm in each.items() if norm > 0}
    return norms


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def compare_stormer(folder: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for file in sorted(folder.glob("*.pt")):
        golden = read_pickle(file)
        state = {name.removeprefix("net."): tensor for name, tensor in golden["sd"].items()}
        first = state["embedding.token_embeds.0.proj.weight"]
        model = stormer.Stormer(
            golden["V"],
            grid=tuple(golden["x"].shape[-2:]),
            patch_size=first.shape[-1],
            width=first.shape[0],
            depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
            heads=golden.get("heads", 4),
            feed_forward_ratio=state["blocks.0.mlp.fc1.bias"].shape[0] / first.shape[0],
        ).eval()
        model.load_state_dict(stormer.from_authors(state, grid=model.grid, patch_size=model.patch_size))
        with torch.no_grad():
            prediction = model(golden["x"], golden["t"] * 10, golden["V"])
        found[f"{file.stem}.prediction"] = _absolute(prediction, golden["y"])
    return found


def _absolute(ours: Tensor, golden: Tensor) -> float:
    return math.inf if ours.shape != golden.shape else float((ours.double() - golden.double()).abs().max())


def _scalars(ours: Mapping[str, float], golden: Mapping[str, float], *, relative: bool) -> float:
    """Largest deviation over the union of names: infinite where one side lacks a name, NaN where a value is NaN."""
    deviations = [math.inf for _ in set(ours) ^ set(golden)]
    for name in set(ours) & set(golden):
        deviation = abs(ours[name] - golden[name])
        if relative and deviation:
            deviation = deviation / abs(golden[name]) if golden[name] else math.inf
        deviations.append(deviation)
    return math.nan if any(map(math.isnan, deviations)) else max(deviations, default=math.inf)


COMPARISONS: dict[str, Callable[[Path], dict[str, float]]] = {"climax": compare_climax, "stormer": compare_stormer}


def beyond(deviations: Mapping[str, float]) -> list[str]:
    """Names whose deviation is larger than its tolerance, or is not a number."""
    return [name for name, value in deviations.items() if not value <= TOLERANCES[name.rpartition(".")[2]]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden.compare", description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=sorted(COMPARISONS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true", help="print {name: deviation}; null where it is not finite")
    given = parser.parse_args(arguments)
    try:
        deviations = COMPARISONS[given.model](given.folder)
    except (KeyError, OSError, TypeError, ValueError, RuntimeError, ZooError) as error:
        print(f"{given.folder}: not golden arrays of {given.model}: {error!r}", file=sys.stderr)
        return 2
    if not deviations:
        print(f"{given.folder}: no golden arrays of {given.model}", file=sys.stderr)
        return 2
    wrong = beyond(deviations)
    if given.json:
        print(json.dumps({name: value if math.isfinite(value) else None for name, value in deviations.items()}))
    else:
        for name, value in deviations.items():
            tolerance = TOLERANCES[name.rpartition(".")[2]]
            print(f"{name:32} {value:9.2e}  (at most {tolerance:.0e}){'  BEYOND' if name in wrong else ''}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
