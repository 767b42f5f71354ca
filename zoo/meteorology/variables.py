"""Variables as tokens: every variable of a weather state has its own patch embedding; attention merges them.

ClimaX (Nguyen et al. 2023, arXiv:2301.10343) and Stormer (Nguyen et al. 2023, arXiv:2312.03876) share it. Legend of
shapes: `B` batch, `V` variables given, `N` variables known, `H` x `W` grid points, `p` patch edge, `L` patches in row
order, `D` width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import InputError, WeightsError, unknown

Grid = tuple[int, int]


def variable_indices(where: str, names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Place of each of `names` among the `known` ones. Raises `InputError` with every name that is unknown or twice."""
    problems = [unknown(where, "variable", name, known) for name in dict.fromkeys(names) if name not in known]
    problems += [
        f'{where}: variable "{name}" is given {count} times; give each variable once'
        for name in dict.fromkeys(names)
        if (count := list(names).count(name)) > 1
    ]
    if not names:
        problems.append(f"{where}: no variables; give at least one of the {len(known)} that the model knows")
    if problems:
        raise InputError(problems)
    place = {name: i for i, name in enumerate(known)}
    return [place[name] for name in names]


def take(values: Tensor, indices: Sequence[int], dim: int) -> Tensor:
    """`values` at `indices` along `dim`; untouched where that is all of them in order."""
    if list(indices) == list(range(values.shape[dim])):
        return values
    return values.index_select(dim, torch.tensor(indices, device=values.device))


def patch_grid(where: str, grid: Grid, patch_size: int) -> Grid:
    """Rows and columns of patches on a grid. Raises `InputError` where patches do not tile it."""
    if patch_size < 1 or any(n < patch_size or n % patch_size for n in grid):
        raise InputError(
            f"{where}: a grid of {grid[0]} x {grid[1]} points is not tiled by patches of {patch_size} x {patch_size}; "
            f"both edges must be multiples of {patch_size}"
        )
    return grid[0] // patch_size, grid[1] // patch_size


def sincos(positions: Tensor, width: int) -> Tensor:
    """Sine and cosine embedding of M positions: (M) -> (M `width`), float32, sines first.

    Frequencies are 10000^(-k / (width/2)) for k = 0 .. width/2 - 1 (Vaswani et al. 2017, section 3.5, not
    interleaved). `width` must be even, which the models check.
    """
    steps = torch.arange(width // 2, dtype=torch.float64, device=positions.device)
    angles = positions.double()[:, None] * 10000.0 ** (-steps / (width / 2))
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def grid_positions(patches: Grid, width: int) -> Tensor:
    """Fixed embedding of a grid of patches: (L `width`), the column in the first half, the row in the second."""
    rows, columns = (torch.arange(n) for n in patches)
    return torch.cat(
        [sincos(columns, width // 2).repeat(patches[0], 1), sincos(rows, width // 2).repeat_interleave(patches[1], 0)],
        dim=1,
    )


def resize_positions(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """Position embeddings (L D) of a grid of patches for another grid, by bicubic interpolation without alignment.

    Raises `WeightsError` where L is not ``old[0] * old[1]``. Source: ClimaX, ``interpolate_pos_embed``.
    """
    if positions.shape[0] != old[0] * old[1]:
        raise WeightsError(
            f"position embedding: {positions.shape[0]} patches are not a grid of {old[0]} x {old[1]}; "
            "name the grid that the checkpoint was made for"
        )
    if old == new:
        return positions
    image = positions.T.reshape(1, -1, *old)
    resized = functional.interpolate(image, size=new, mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T.contiguous()


def to_patches(x: Tensor, patch_size: int) -> Tensor:
    """Fields as patches: (B V H W) -> (B L V p*p), points of a patch row by row."""
    b, v, h, w = x.shape
    x = x.reshape(b, v, h // patch_size, patch_size, w // patch_size, patch_size)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, v, patch_size**2)


def to_fields(x: Tensor, patches: Grid, patch_size: int) -> Tensor:
    """Patches as fields: (B L p*p*N) -> (B N H W); the variable varies fastest in the last dimension of `x`."""
    b = x.shape[0]
    x = x.reshape(b, *patches, patch_size, patch_size, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, patches[0] * patch_size, patches[1] * patch_size)


class VariableTokens(nn.Module):
    """A patch embedding per variable, and what tells variables apart (ClimaX, "Variable tokenization").

    Weights of all variables are stacked: `weight` (N D p*p), `bias` (N D), `identity` (N D).
    """

    def __init__(self, variables: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(variables, width, patch_size**2))
        self.bias = nn.Parameter(torch.empty(variables, width))
        self.identity = nn.Parameter(torch.empty(variables, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Values of the authors' initialisation."""
        nn.init.normal_(self.weight, std=0.02)
        bound = self.weight.shape[2] ** -0.5  # of a convolution with p*p inputs
        nn.init.uniform_(self.bias, -bound, bound)
        with torch.no_grad():
            places = torch.arange(self.identity.shape[0], device=self.identity.device)
            self.identity.copy_(sincos(places, self.identity.shape[1]))

    def forward(self, patches: Tensor, indices: Sequence[int]) -> Tensor:
        """(B L V p*p) -> (B L V D): `indices` says which variable each of the V fields is."""
        tokens = torch.einsum("blvp,vdp->blvd", patches, take(self.weight, indices, 0))
        tokens = tokens + (take(self.bias, indices, 0) + take(self.identity, indices, 0))
        return tokens.contiguous()  # the product is variable by variable: the next one would take a copy besides


class VariableAggregation(nn.Module):
    """Cross attention of one learned query to the variables of a patch (ClimaX, "Variable aggregation").

    There is one query for all patches, so that neither keys nor values of single variables are needed: a score is the
    product of a token with the query turned by the key's matrix, and what a head gives is the value of the mean of the
    tokens, weighted by its scores. That is the same function, with a fiftieth of the arithmetic and a third of the
    memory for 48 variables.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.seed = nn.Parameter(torch.empty(width))
        self.query = nn.Linear(width, width)
        self.key_value = Matrix(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Values of the authors' initialisation; the seed is zero, so at first the query is the same for all."""
        nn.init.zeros_(self.seed)
        bound = (6 / (4 * self.seed.shape[0])) ** 0.5  # Xavier's for query, key and value as one matrix
        for linear in (self.query, self.key_value):
            nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.zeros_(linear.bias)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B L V D) -> (B L D). `K` heads of width `E`; a key's bias moves all scores of a head alike, to no effect."""
        b, length, v, width = tokens.shape
        query = self.query(self.seed).reshape(self.heads, -1)
        key, value = self.key_value.weight.reshape(2, self.heads, -1, width).unbind(0)  # each (K E D)
        turned = torch.einsum("ke,ked->kd", query, key) * query.shape[1] ** -0.5
        scores = functional.linear(tokens, turned).reshape(b * length, v, self.heads)  # (B*L V K)
        weights = scores.float().softmax(1).to(tokens.dtype)
        mean = weights.transpose(1, 2) @ tokens.reshape(b * length, v, width)  # (B*L K D)
        merged = torch.einsum("nkd,ked->nke", mean, value).reshape(b, length, width)
        return self.output(merged + self.key_value.bias[width:])  # type: ignore[no-any-return]


class Matrix(nn.Module):
    """The parameters of a linear layer that is never applied as a whole: `weight` (outputs, inputs), `bias` (outputs).

    It is no `nn.Linear`, so that nothing takes its place (codes, low-rank updates) that would have to be called.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))


class VariableEmbedding(nn.Module):
    """Tokens of the variables, merged to one per patch: the largest activations of both models are in here.

    Every patch is treated by itself.
    """

    def __init__(self, variables: int, patch_size: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens = VariableTokens(variables, patch_size, width)
        self.aggregation = VariableAggregation(width, heads)

    def forward(self, patches: Tensor, indices: Sequence[int], positions: Tensor | None = None) -> Tensor:
        """(B L V p*p) -> (B L D). `positions` (1 L D) is added before the variables are merged, where given."""
        tokens = self.tokens(patches, indices)
        if positions is not None:
            tokens = tokens + positions[:, :, None]
        return self.aggregation(tokens)  # type: ignore[no-any-return]


def check_width(where: str, width: int, heads: int) -> None:
    """Raises `InputError` for a width that heads do not divide, or that sines and cosines of two axes do not fill."""
    if width < 4 or width % 4 or heads < 1 or width % heads:
        raise InputError(f"{where}: width {width} with {heads} heads; it must be a multiple of 4 and of the heads")


def check_fields(where: str, x: Tensor, names: Sequence[str]) -> None:
    """Raises `InputError` where `x` is not (B V H W) with a field per name."""
    if x.ndim != 4 or x.shape[1] != len(names):
        raise InputError(
            f"{where}: fields of shape {tuple(x.shape)} for {len(names)} variables; "
            f"expected (batch, {len(names)}, latitude, longitude)"
        )


def check_hours(where: str, hours: Tensor, batch: int) -> None:
    """Raises `InputError` where `hours` is not one number per sample."""
    if tuple(hours.shape) != (batch,):
        raise InputError(f"{where}: hours of shape {tuple(hours.shape)} for {batch} samples; expected ({batch},)")


def embedding_from_authors(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], set[str]]:
    """Tensors of a `VariableEmbedding` from the authors' names, with the names that were used.

    Both layouts are read: a convolution per variable (``token_embeds.{i}.proj.weight``, ``.bias``) and stacked
    (``token_embeds.proj_weights``, ``proj_biases``), and both spellings, ``channel_*`` of the released files and
    ``var_*`` of the code. Raises `WeightsError` where a tensor is missing.
    """
    used: set[str] = set()

    def get(*names: str) -> Tensor:
        for name in names:
            if prefix + name in state:
                used.add(prefix + name)
                return state[prefix + name]
        raise WeightsError(f"checkpoint: no tensor {' or '.join(prefix + name for name in names)}")

    identity = get("var_embed", "channel_embed")
    if prefix + "token_embeds.proj_weights" in state:
        weight, bias = get("token_embeds.proj_weights"), get("token_embeds.proj_biases")
    else:
        each = [f"token_embeds.{i}.proj." for i in range(identity.shape[-2])]
        weight = torch.stack([get(name + "weight") for name in each])
        bias = torch.stack([get(name + "bias") for name in each])
    width = identity.shape[-1]
    merge = "agg.in_proj_weight", "agg.in_proj_bias", "agg.out_proj.weight", "agg.out_proj.bias"
    in_weight, in_bias, out_weight, out_bias = (get("var_" + name, "channel_" + name) for name in merge)
    return {
        "tokens.weight": weight.reshape(weight.shape[0], width, -1),
        "tokens.bias": bias,
        "tokens.identity": identity.reshape(-1, width),
        "aggregation.seed": get("var_query", "channel_query").reshape(width),
        "aggregation.query.weight": in_weight[:width],
        "aggregation.query.bias": in_bias[:width],
        "aggregation.key_value.weight": in_weight[width:],
        "aggregation.key_value.bias": in_bias[width:],
        "aggregation.output.weight": out_weight,
        "aggregation.output.bias": out_bias,
    }, used


def positions_from_authors(positions: Tensor, patches: Grid, checkpoint_patches: Grid | None) -> Tensor:
    """The authors' position embedding (1 L D) as (L D) for a grid of `patches`.

    A checkpoint does not say which grid its L patches were: where `checkpoint_patches` is None they are `patches` if
    L fits, else twice as many columns as rows, as ClimaX assumes. Raises `WeightsError` where neither fits.
    """
    flat = positions.reshape(-1, positions.shape[-1])
    length = flat.shape[0]
    if checkpoint_patches is None:
        rows = round((length / 2) ** 0.5)
        checkpoint_patches = patches if length == patches[0] * patches[1] else (rows, 2 * rows)
    return resize_positions(flat, checkpoint_patches, patches)
