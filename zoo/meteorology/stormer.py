"""Stormer: forecasts normalised differences over a random interval (Nguyen et al. 2023, arXiv:2312.03876).

Legend of shapes: `B` batch, `V` variables given, `O` variables wanted, `H` x `W` grid points (latitude x longitude),
`L` patches in row order, `D` width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import InputError, WeightsError
from zoo.meteorology.layers import FeedForward, SelfAttention, initialise_linear
from zoo.meteorology.released import STORMER
from zoo.meteorology.variables import (
    Grid,
    VariableEmbedding,
    check_fields,
    check_hours,
    check_width,
    embedding_from_authors,
    grid_positions,
    patch_grid,
    positions_from_authors,
    take,
    to_fields,
    to_patches,
    variable_indices,
)


class Stormer(nn.Module):
    """Stormer for `variables` on a grid of ``grid[0]`` latitudes x ``grid[1]`` longitudes.

    The released model is the default: 1.40625°, patches of 2, 468.75 million parameters. Latitudes that patches do
    not divide are filled up with rows of zeros at the top, as the authors do. Raises `InputError` for longitudes that
    patches do not divide, a width that heads do not divide, and variables given twice.
    """

    def __init__(
        self,
        variables: Sequence[str] = STORMER,
        *,
        grid: Grid = (128, 256),
        patch_size: int = 2,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        feed_forward_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        variable_indices("Stormer", variables, variables)
        check_width("Stormer", width, heads)
        self.variables = tuple(variables)
        self.grid, self.patch_size = grid, patch_size
        self.patches = padded_patches(grid, patch_size)
        self.embedding = VariableEmbedding(len(variables), patch_size, width, heads)
        self.positions = nn.Parameter(torch.empty(self.patches[0] * self.patches[1], width))
        self.norm = nn.LayerNorm(width)
        self.interval = nn.Linear(1, width)
        hidden = int(width * feed_forward_ratio)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.head = Head(width, len(variables) * patch_size**2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Values of the authors' initialisation; embedding, norm, blocks and head have theirs already."""
        with torch.no_grad():
            self.positions.copy_(grid_positions(self.patches, self.positions.shape[1]))
        initialise_linear(self.interval)

    def forward(
        self,
        x: Tensor,
        interval_hours: Tensor,
        variables: Sequence[str] | None = None,
        out_variables: Sequence[str] | None = None,
    ) -> Tensor:
        """Normalised fields (B V H W) -> normalised difference (B O H W) to the state `interval_hours` (B) later.

        The randomized dynamics objective of the paper: for each interval the difference is normalised with a mean and
        a deviation of its own.
        `variables` names the V fields, any that the model knows in any order, `out_variables` those wanted (None: all
        of the model's, in its order). Raises `InputError` for shapes that do not match and for names that are unknown
        or twice.
        """
        given = self.variables if variables is None else variables
        wanted = self.variables if out_variables is None else out_variables
        check_fields("Stormer", x, given)
        check_hours("Stormer interval", interval_hours, x.shape[0])
        if tuple(x.shape[2:]) != tuple(self.grid):
            raise InputError(
                f"Stormer: fields of {x.shape[2]} x {x.shape[3]} points on a model of {self.grid[0]} x {self.grid[1]}; "
                "regrid them, or build the model for their grid"
            )
        out_indices = variable_indices("Stormer output", wanted, self.variables)
        missing = self.patches[0] * self.patch_size - x.shape[2]
        x = functional.pad(x, (0, 0, missing, 0)) if missing else x
        indices = variable_indices("Stormer input", given, self.variables)
        tokens = self.norm(self.embedding(to_patches(x, self.patch_size), indices, self.positions[None]))
        condition = self.interval((interval_hours / 10).to(x.dtype)[:, None])
        for block in self.blocks:
            tokens = block(tokens, condition)
        fields = to_fields(self.head(tokens, condition), self.patches, self.patch_size)
        return take(fields[:, :, missing:], out_indices, 1)


class Block(nn.Module):
    """Transformer block whose norms and residuals the interval scales, shifts and gates.

    "Stormer Transformer block" of the paper; adaptive LayerNorm with zero initialisation of DiT (Peebles and Xie
    2022, arXiv:2212.09748, section 3.2): at first every block is the identity.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = FeedForward(width, hidden, approximate="tanh")
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Values of the authors' initialisation."""
        self.apply(initialise_linear)
        _zero(self.modulation[-1])

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens (B L D) and the interval's embedding (B D) -> (B L D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)  # type: ignore[no-any-return]


class Head(nn.Module):
    """Scaled and shifted by the interval, without a norm, then linear to the points of a patch; zero at first."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Values of the authors' initialisation."""
        _zero(self.linear)
        _zero(self.modulation[-1])

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens (B L D) and the interval's embedding (B D) -> (B L outputs)."""
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(x * (1 + scale) + shift)  # type: ignore[no-any-return]


def _zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def padded_patches(grid: Grid, patch_size: int) -> Grid:
    """Rows and columns of patches once rows of zeros have been added at the top. Raises as `patch_grid` does."""
    rows = -(-grid[0] // max(patch_size, 1)) * patch_size
    return patch_grid("Stormer", (rows, grid[1]), patch_size)


_RENAMED = {
    "embed_norm_layer.weight": "norm.weight",
    "embed_norm_layer.bias": "norm.bias",
    "t_embedder.mlp.weight": "interval.weight",
    "t_embedder.mlp.bias": "interval.bias",
}


def from_authors(
    state: Mapping[str, Tensor], *, grid: Grid, patch_size: int, checkpoint_grid: Grid | None = None
) -> dict[str, Tensor]:
    """State dict for `Stormer` on `grid` from a checkpoint in the authors' names, with or without the prefix ``net.``.

    Position embeddings are resized bicubically from `checkpoint_grid` (None: the same grid, or else one of twice as
    many columns as rows). Raises `WeightsError` for tensors that are missing or that have no place here.
    """
    plain = {name.removeprefix("net."): tensor for name, tensor in state.items()}
    embedding, used = embedding_from_authors(plain, "embedding.")
    if missing := [name for name in ("embedding.pos_embed", *_RENAMED) if name not in plain]:
        raise WeightsError(f"checkpoint: no tensor {', '.join(missing)}; is it one of Stormer?")
    old = None if checkpoint_grid is None else padded_patches(checkpoint_grid, patch_size)
    ours = {f"embedding.{name}": tensor for name, tensor in embedding.items()}
    ours["positions"] = positions_from_authors(plain["embedding.pos_embed"], padded_patches(grid, patch_size), old)
    left = []
    for name, tensor in plain.items():
        if name in _RENAMED:
            ours[_RENAMED[name]] = tensor
        elif name.startswith(("blocks.", "head.")):
            ours[name.replace("adaLN_modulation", "modulation")] = tensor
        elif name not in used and name != "embedding.pos_embed":
            left.append(name)
    if left:
        raise WeightsError(f"checkpoint: tensors that Stormer has no place for: {', '.join(sorted(left)[:5])}")
    return ours
