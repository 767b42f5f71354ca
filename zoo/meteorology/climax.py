"""ClimaX: a vision transformer over any subset of weather variables (Nguyen et al. 2023, arXiv:2301.10343).

Legend of shapes: `B` batch, `V` variables given, `O` variables wanted, `H` x `W` grid points (latitude x longitude),
`L` patches in row order, `D` width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from zoo.errors import InputError, WeightsError
from zoo.meteorology.layers import DropPath, FeedForward, SelfAttention, initialise_linear
from zoo.meteorology.released import CLIMAX
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


class ClimaX(nn.Module):
    """ClimaX for `variables` on a grid of ``grid[0]`` latitudes x ``grid[1]`` longitudes.

    The released models have width 1024, 8 blocks and 16 heads: 108,088,512 parameters at 5.625° (32 x 64, patches of
    2) and 110,841,600 at 1.40625° (128 x 256, patches of 4). Raises `InputError` for a grid that patches do not tile,
    a width that heads do not divide, and variables given twice.
    """

    def __init__(
        self,
        variables: Sequence[str] = CLIMAX,
        *,
        grid: Grid = (32, 64),
        patch_size: int = 2,
        width: int = 1024,
        depth: int = 8,
        heads: int = 16,
        head_depth: int = 2,
        feed_forward_ratio: float = 4.0,
        dropout: float = 0.1,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        variable_indices("ClimaX", variables, variables)
        check_width("ClimaX", width, heads)
        self.variables = tuple(variables)
        self.grid, self.patch_size = grid, patch_size
        self.patches = patch_grid("ClimaX", grid, patch_size)
        self.embedding = VariableEmbedding(len(variables), patch_size, width, heads)
        self.positions = nn.Parameter(torch.empty(self.patches[0] * self.patches[1], width))
        self.lead_time = nn.Linear(1, width)
        self.dropout = nn.Dropout(dropout)
        hidden = int(width * feed_forward_ratio)
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]  # more is left out the deeper the block
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout, rate) for rate in rates)
        self.norm = nn.LayerNorm(width)
        inner = [layer for _ in range(head_depth) for layer in (nn.Linear(width, width), nn.GELU())]
        self.head = nn.Sequential(*inner, nn.Linear(width, len(variables) * patch_size**2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Values of the authors' initialisation; the embedding and the norms have theirs already."""
        with torch.no_grad():
            self.positions.copy_(grid_positions(self.patches, self.positions.shape[1]))
        for part in (self.lead_time, self.blocks, self.head):
            part.apply(initialise_linear)

    def encode(
        self, x: Tensor, lead_time_hours: Tensor, variables: Sequence[str], corner: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """Fields (B V H W) and lead times (B) in hours -> (B L D), the encoder of the paper's figure 2.

        Raises what `forward` raises.
        """
        check_fields("ClimaX", x, variables)
        check_hours("ClimaX lead time", lead_time_hours, x.shape[0])
        indices = variable_indices("ClimaX input", variables, self.variables)
        positions = self._positions((x.shape[2], x.shape[3]), corner)
        lead_time = self.lead_time((lead_time_hours / 100).to(x.dtype)[:, None])
        tokens = self.embedding(to_patches(x, self.patch_size), indices)
        tokens = self.dropout(tokens + positions + lead_time[:, None])
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)  # type: ignore[no-any-return]

    def forward(
        self,
        x: Tensor,
        lead_time_hours: Tensor,
        variables: Sequence[str],
        out_variables: Sequence[str] | None = None,
        corner: tuple[int, int] = (0, 0),
    ) -> Tensor:
        """Normalised fields (B V H W) -> normalised forecast (B O H W), `lead_time_hours` (B) later.

        `variables` names the V fields, any of those that the model knows in any order; `out_variables` those wanted
        (None: all of the model's, in its order). For regional forecasting it is given a part of the grid: its fields
        alone, and the `corner` (row, column) of the grid where they begin. Raises `InputError` for shapes that do not
        match, for names that are unknown or twice, and for a region outside of the grid or across its patches.
        """
        wanted = self.variables if out_variables is None else out_variables
        indices = variable_indices("ClimaX output", wanted, self.variables)
        patches = self.head(self.encode(x, lead_time_hours, variables, corner))
        shape = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        return take(to_fields(patches, shape, self.patch_size), indices, 1)

    def _positions(self, size: Grid, corner: tuple[int, int]) -> Tensor:
        """Position embeddings (L D) of the part of the grid that begins at `corner`."""
        if size == self.grid and corner == (0, 0):
            return self.positions
        fits = all(c >= 0 and n > 0 and c + n <= edge for n, c, edge in zip(size, corner, self.grid, strict=True))
        if not fits or any(n % self.patch_size for n in (*size, *corner)):
            raise InputError(
                f"ClimaX: {size[0]} x {size[1]} points from row {corner[0]}, column {corner[1]} are no part of the "
                f"grid of {self.grid[0]} x {self.grid[1]} in whole patches of {self.patch_size}; give fields on that "
                "grid, or a part of it"
            )
        top, left, rows, columns = (n // self.patch_size for n in (*corner, *size))
        whole = self.positions.reshape(*self.patches, -1)
        return whole[top : top + rows, left : left + columns].flatten(0, 1)


class Block(nn.Module):
    """Pre-norm transformer block (Dosovitskiy et al. 2021, arXiv:2010.11929, equations 2 and 3): (B L D) -> (B L D)."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, hidden, dropout=dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


_SAME = ("blocks.", "norm.", "head.")


def from_authors(
    state: Mapping[str, Tensor], *, grid: Grid, patch_size: int, checkpoint_grid: Grid | None = None
) -> dict[str, Tensor]:
    """State dict for `ClimaX` on `grid` from a checkpoint in the authors' names, with or without the prefix ``net.``.

    The two layouts of the variable embedding and the spellings ``channel_*`` (released files) and ``var_*`` (code)
    are read. Position embeddings are resized bicubically from `checkpoint_grid` (None: the same grid, or else one of
    twice as many columns as rows). Raises `WeightsError` for tensors that are missing or that have no place here.
    """
    plain = {name.removeprefix("net."): tensor for name, tensor in state.items()}
    embedding, used = embedding_from_authors(plain, "")
    if missing := [
        name for name in ("pos_embed", "lead_time_embed.weight", "lead_time_embed.bias") if name not in plain
    ]:
        raise WeightsError(f"checkpoint: no tensor {', '.join(missing)}; is it one of ClimaX?")
    patches = patch_grid("ClimaX", grid, patch_size)
    old = None if checkpoint_grid is None else patch_grid("ClimaX checkpoint", checkpoint_grid, patch_size)
    ours = {f"embedding.{name}": tensor for name, tensor in embedding.items()}
    ours["positions"] = positions_from_authors(plain["pos_embed"], patches, old)
    ours["lead_time.weight"], ours["lead_time.bias"] = plain["lead_time_embed.weight"], plain["lead_time_embed.bias"]
    used |= {"pos_embed", "lead_time_embed.weight", "lead_time_embed.bias"}
    ours |= {name: tensor for name, tensor in plain.items() if name.startswith(_SAME)}
    if left := sorted(name for name in plain if name not in used and not name.startswith(_SAME)):
        raise WeightsError(f"checkpoint: tensors that ClimaX has no place for: {', '.join(left[:5])}")
    return ours
