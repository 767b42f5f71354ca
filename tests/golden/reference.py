"""ClimaX and Stormer once more, for tests: small, in float64, in the authors' names, sharing nothing with `zoo`.

Written from the papers with other means than the models (a convolution for each variable, PyTorch's
`multi_head_attention_forward`, attention spelled out, `fold`, loops of numpy for the scores), and held to the same
golden arrays of the authors' code. `write_climax` and `write_stormer` write folders in the layout of those arrays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]
NAMES = ("orography", "2m_temperature", "geopotential_500", "temperature_850", "u_component_of_wind_50")


def embed(state: State, prefix: str, x: Tensor, ids: Sequence[int], heads: int, before: Tensor | None) -> Tensor:
    """Tokens of the variables with their identity (and positions `before` merging), merged by the learned query."""
    tokens = []
    for field, i in zip(x.unbind(1), ids, strict=True):
        if f"{prefix}token_embeds.proj_weights" in state:
            weight, bias = state[f"{prefix}token_embeds.proj_weights"][i], state[f"{prefix}token_embeds.proj_biases"][i]
        else:
            weight, bias = (state[f"{prefix}token_embeds.{i}.proj.{kind}"] for kind in ("weight", "bias"))
        image = functional.conv2d(field[:, None], weight, bias, stride=weight.shape[-1])
        tokens.append(image.flatten(2).transpose(1, 2) + either(state, prefix, "embed")[0, i])
    all_tokens = torch.stack(tokens) if before is None else torch.stack(tokens) + before  # V B L D
    v, b, length, width = all_tokens.shape
    keys = all_tokens.reshape(v, b * length, width)
    merged, _ = functional.multi_head_attention_forward(
        either(state, prefix, "query").expand(1, b * length, width), keys, keys, width, heads,
        either(state, prefix, "agg.in_proj_weight"), either(state, prefix, "agg.in_proj_bias"), None, None, False, 0.0,
        either(state, prefix, "agg.out_proj.weight"), either(state, prefix, "agg.out_proj.bias"),
    )  # fmt: skip
    return merged.reshape(b, length, width)


def either(state: State, prefix: str, name: str) -> Tensor:
    return state[next(key for key in (f"{prefix}var_{name}", f"{prefix}channel_{name}") if key in state)]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def attention(state: State, name: str, x: Tensor, heads: int) -> Tensor:
    b, length, width = x.shape
    query, key, value = (
        part.reshape(b, length, heads, -1) for part in linear(state, f"{name}.qkv", x).split(width, dim=-1)
    )
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(width // heads)
    mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).reshape(b, length, width)
    return linear(state, f"{name}.proj", mixed)


def norm(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()


def affine(state: State, name: str, x: Tensor) -> Tensor:
    return norm(x, 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def to_grid(x: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    columns = x.unflatten(-1, (patch * patch, -1)).permute(0, 3, 2, 1)  # B N p*p L
    return functional.fold(columns.flatten(1, 2), grid, patch, stride=patch)


def climax(state: State, x: Tensor, lead: Tensor, ids: Sequence[int], heads: int, patch: int) -> tuple[Tensor, Tensor]:
    """Encoding (B L D) and prediction (B N H W)."""
    x_ = (
        embed(state, "", x, ids, heads, None)
        + state["pos_embed"]
        + linear(state, "lead_time_embed", lead[:, None, None])
    )
    for block in sorted({name.split(".")[1] for name in state if name.startswith("blocks.")}):
        name = f"blocks.{block}"
        x_ = x_ + attention(state, f"{name}.attn", affine(state, f"{name}.norm1", x_), heads)
        hidden = linear(state, f"{name}.mlp.fc1", affine(state, f"{name}.norm2", x_))
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x_ = x_ + linear(state, f"{name}.mlp.fc2", hidden)
    encoder = affine(state, "norm", x_)
    out = encoder
    for layer in (0, 2):
        out = linear(state, f"head.{layer}", out)
        out = out * (1 + torch.erf(out / math.sqrt(2))) / 2
    return encoder, to_grid(linear(state, "head.4", out), (x.shape[2], x.shape[3]), patch)


def stormer(state: State, x: Tensor, interval: Tensor, ids: Sequence[int], heads: int, patch: int) -> Tensor:
    """Prediction (B N H W): `interval` is in tens of hours. Rows of zeros are put on top where patches need them."""
    rows = -x.shape[2] % patch
    x = torch.cat([torch.zeros(*x.shape[:2], rows, x.shape[3], dtype=x.dtype), x], dim=2)
    x_ = affine(state, "embed_norm_layer", embed(state, "embedding.", x, ids, heads, state["embedding.pos_embed"]))
    t = linear(state, "t_embedder.mlp", interval[:, None])
    silu = (t / (1 + torch.exp(-t)))[:, None]
    for block in sorted({name.split(".")[1] for name in state if name.startswith("blocks.")}):
        name = f"blocks.{block}"
        how = linear(state, f"{name}.adaLN_modulation.1", silu)
        shift1, scale1, gate1, shift2, scale2, gate2 = how.split(x_.shape[-1], dim=-1)
        x_ = x_ + gate1 * attention(state, f"{name}.attn", norm(x_, 1e-6) * (1 + scale1) + shift1, heads)
        hidden = linear(state, f"{name}.mlp.fc1", norm(x_, 1e-6) * (1 + scale2) + shift2)
        hidden = hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3))) / 2
        x_ = x_ + gate2 * linear(state, f"{name}.mlp.fc2", hidden)
    shift, scale = linear(state, "head.adaLN_modulation.1", silu).chunk(2, dim=-1)
    out = linear(state, "head.linear", x_ * (1 + scale) + shift)
    return to_grid(out, (x.shape[2], x.shape[3]), patch)[:, :, rows:]


def embedding_shapes(n: int, width: int, patch: int, patches: int, *, stacked: bool, spelling: str) -> dict[str, Any]:
    kernel = width, 1, patch, patch
    each = {f"token_embeds.{i}.proj.weight": kernel for i in range(n)}
    each |= {f"token_embeds.{i}.proj.bias": (width,) for i in range(n)}
    both = {"token_embeds.proj_weights": (n, *kernel), "token_embeds.proj_biases": (n, width)}
    return (both if stacked else each) | {
        f"{spelling}_embed": (1, n, width), f"{spelling}_query": (1, 1, width), "pos_embed": (1, patches, width),
        f"{spelling}_agg.in_proj_weight": (3 * width, width), f"{spelling}_agg.in_proj_bias": (3 * width,),
        f"{spelling}_agg.out_proj.weight": (width, width), f"{spelling}_agg.out_proj.bias": (width,),
    }  # fmt: skip


def linear_shapes(name: str, inputs: int, outputs: int) -> dict[str, Any]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def block_shapes(name: str, width: int) -> dict[str, Any]:
    return {
        **linear_shapes(f"{name}.attn.qkv", width, 3 * width), **linear_shapes(f"{name}.attn.proj", width, width),
        **linear_shapes(f"{name}.mlp.fc1", width, 4 * width), **linear_shapes(f"{name}.mlp.fc2", 4 * width, width),
    }  # fmt: skip


def norm_shapes(name: str, width: int) -> dict[str, Any]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def draw(shapes: Mapping[str, Any], seed: int, size: float) -> State:
    """Float32 values of one size, not near zero, so that no part of a model is without effect."""
    generator = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def climax_state(
    width: int = 16, patch: int = 2, patches: int = 32, *, stacked: bool = True, spelling: str = "var"
) -> State:
    shapes = embedding_shapes(len(NAMES), width, patch, patches, stacked=stacked, spelling=spelling)
    shapes |= linear_shapes("lead_time_embed", 1, width) | norm_shapes("norm", width)
    for i in range(2):
        shapes |= block_shapes(f"blocks.{i}", width)
        shapes |= norm_shapes(f"blocks.{i}.norm1", width) | norm_shapes(f"blocks.{i}.norm2", width)
    shapes |= linear_shapes("head.0", width, width) | linear_shapes("head.2", width, width)
    return draw(shapes | linear_shapes("head.4", width, len(NAMES) * patch**2), seed=1, size=0.3)


def stormer_state(width: int = 16, patch: int = 2, patches: int = 32) -> State:
    embedding = embedding_shapes(len(NAMES), width, patch, patches, stacked=False, spelling="channel")
    shapes = {f"embedding.{name}": shape for name, shape in embedding.items()}
    shapes |= linear_shapes("t_embedder.mlp", 1, width) | norm_shapes("embed_norm_layer", width)
    for i in range(2):
        shapes |= block_shapes(f"blocks.{i}", width)
        shapes |= linear_shapes(f"blocks.{i}.adaLN_modulation.1", width, 6 * width)
    shapes |= linear_shapes("head.linear", width, len(NAMES) * patch**2)
    return draw(shapes | linear_shapes("head.adaLN_modulation.1", width, 2 * width), seed=2, size=0.15)


def write_climax(folder: Path, name: str = "tiny", *, stacked: bool = True, spelling: str = "var") -> None:
    """A golden folder of ClimaX: 8 x 16 points, 3 of 5 variables in another order, 2 wanted."""
    heads, patch, chosen, wanted = 4, 2, (3, 0, 2), (2, 1)
    state = climax_state(stacked=stacked, spelling=spelling)
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(2, 3, 8, 16, generator=generator), torch.randn(2, 2, 8, 16, generator=generator)
    clim, lead, lat = (
        torch.randn(2, 8, 16, generator=generator),
        torch.tensor([0.72, 0.06]),
        -78.75 + 22.5 * torch.arange(8),
    )
    exact = {key: value.double().requires_grad_() for key, value in state.items()}
    encoder, everything = climax(exact, x.double(), lead.double(), chosen, heads, patch)
    pred = everything[:, wanted]
    weights = torch.cos(lat.double() * math.pi / 180)
    error = (pred - y) ** 2 * (weights / weights.mean())[:, None]
    error.mean().backward()
    out = [NAMES[i] for i in wanted]
    loss = {v: error[:, i].mean().item() for i, v in enumerate(out)} | {"loss": error.mean().item()}
    metrics = scores(pred.detach().numpy(), y.double().numpy(), clim.double().numpy(), lat.double().numpy(), out)
    norms = {key: value.grad.norm().item() for key, value in exact.items() if value.grad is not None}
    golden = {
        "x": x, "y": y, "lead_times": lead, "lat": lat, "clim": clim, "in_vars": [NAMES[i] for i in chosen],
        "out_vars": out, "encoder": encoder.detach().float(), "pred": pred.detach().float(), "loss": loss,
        "metrics": metrics, "grad_norms": {key.replace("channel_", "var_"): norm for key, norm in norms.items()},
    }  # fmt: skip
    cfg = {
        "img_size": [8, 16],
        "patch_size": patch,
        "embed_dim": 16,
        "depth": 2,
        "decoder_depth": 2,
        "num_heads": heads,
    }
    torch.save(golden, folder / f"{name}_io.pt")
    torch.save({"state_dict": {f"net.{key}": value for key, value in state.items()}}, folder / f"{name}.ckpt")
    (folder / f"{name}_meta.json").write_text(json.dumps({"cfg": cfg | {"mlp_ratio": 4.0}, "default_vars": NAMES}))


def scores(pred: Any, y: Any, clim: Any, lat: Any, names: Sequence[str]) -> dict[str, float]:
    """Weighted RMSE and ClimaX's anomaly correlation, point by point."""
    weights = np.cos(np.deg2rad(lat))
    weights = weights / weights.mean()
    found: dict[str, float] = {}
    for i, name in enumerate(names):
        roots = []
        for sample in range(len(pred)):
            total = 0.0
            for row, w in enumerate(weights):
                total += w * sum((pred[sample, i, row] - y[sample, i, row]) ** 2)
            roots.append(math.sqrt(total / pred[sample, i].size))
        found[f"w_rmse_{name}_3_days"] = sum(roots) / len(roots)
    found["w_rmse"] = sum(found.values()) / len(names)
    for i, name in enumerate(names):
        a, b = pred[:, i] - clim[i], y[:, i] - clim[i]
        a, b = a - a.mean(), b - b.mean()
        products = [
            sum(w * (u[:, row] * v[:, row]).sum() for row, w in enumerate(weights)) for u, v in ((a, b), (a, a), (b, b))
        ]
        found[f"acc_{name}_3_days"] = products[0] / math.sqrt(products[1] * products[2])
    found["acc"] = sum(found[f"acc_{name}_3_days"] for name in names) / len(names)
    return {key: float(value) for key, value in found.items()}


def write_stormer(folder: Path, name: str = "tiny", rows: int = 8) -> None:
    """A golden file of Stormer: `rows` x 16 points, all 5 variables in their order."""
    state = stormer_state()
    x = torch.randn(2, len(NAMES), rows, 16, generator=torch.Generator().manual_seed(4))
    interval = torch.tensor([0.6, 2.4])
    exact = {key: value.double() for key, value in state.items()}
    y = stormer(exact, x.double(), interval.double(), range(len(NAMES)), 4, 2)
    torch.save({"sd": state, "x": x, "t": interval, "y": y.float(), "V": list(NAMES)}, folder / f"{name}.pt")
