"""ClimaX and what it shares with Stormer, against references that were written apart from it and closed forms."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import compare, reference

from zoo.errors import InputError, WeightsError
from zoo.meteorology import metrics, released
from zoo.meteorology.checkpoints import read_training_checkpoint
from zoo.meteorology.climax import ClimaX, from_authors
from zoo.meteorology.layers import DropPath
from zoo.meteorology.variables import grid_positions, resize_positions, to_fields, to_patches
from zoo.step import materialise
from zoo.weights import initialise

NAMES = reference.NAMES
HOURS = torch.tensor([6.0, 72.0])


def tiny(**changes: Any) -> ClimaX:
    """The model of the reference, with its parameters."""
    given = {"grid": (8, 16), "width": 16, "depth": 2, "heads": 4} | changes
    return ClimaX(NAMES, **given).eval()


def loaded(**changes: Any) -> ClimaX:
    model = tiny(**changes)
    model.load_state_dict(from_authors(reference.climax_state(), grid=model.grid, patch_size=2), strict=not changes)
    return model


def fields(variables: int = len(NAMES), rows: int = 8, columns: int = 16) -> torch.Tensor:
    return torch.randn(2, variables, rows, columns, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------------------------------------- golden arrays


@pytest.mark.parametrize("spelling", ["var", "channel"])
@pytest.mark.parametrize("stacked", [True, False], ids=["parallel", "serial"])
def test_model_loss_scores_and_gradients_are_those_of_the_reference(
    tmp_path: Path, stacked: bool, spelling: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reference.write_climax(tmp_path, stacked=stacked, spelling=spelling)
    assert compare.main(["climax", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == {f"tiny.{kind}" for kind in compare.TOLERANCES}
    assert all(0 < value <= compare.TOLERANCES[name.removeprefix("tiny.")] for name, value in printed.items())


def _wrong(kind: str, golden: dict[str, Any]) -> str:
    """Spoils one value by a little more than its tolerance; which deviation must tell."""
    first = {"loss": "loss", "metrics": "acc", "grad_norms": "blocks.0.attn.qkv.weight"}
    if kind in ("encoder", "pred"):
        golden[kind].view(-1)[7] += 3e-5
    elif kind == "nan":
        golden["pred"].view(-1)[7] = math.nan
    elif kind == "nan score":
        golden["metrics"]["acc"] = math.nan
    elif kind == "grad_norms":
        golden[kind][first[kind]] *= 1 + 3e-5
    elif kind in first:
        golden[kind][first[kind]] += 3e-6
    elif kind == "shape":
        golden["pred"] = golden["pred"][:, :1]
    elif kind == "a norm is missing":
        del golden["grad_norms"]["pos_embed"]
    elif kind == "a norm too many":
        golden["grad_norms"]["another"] = 1.0
    return {
        "encoder": "encoder", "loss": "loss", "metrics": "metrics", "nan score": "metrics",
        "grad_norms": "gradient_norms", "a norm is missing": "gradient_norms", "a norm too many": "gradient_norms",
    }.get(kind, "prediction")  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    ["encoder", "pred", "loss", "metrics", "grad_norms", "nan", "nan score", "shape", "a norm is missing",
     "a norm too many"],
)  # fmt: skip
def test_a_wrong_golden_value_is_noticed(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    reference.write_climax(tmp_path)
    file = tmp_path / "tiny_io.pt"
    golden = torch.load(file, weights_only=True)
    told_by = _wrong(kind, golden)
    torch.save(golden, file)
    assert compare.main(["climax", str(tmp_path)]) == 1
    beyond = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("BEYOND")]
    assert beyond == [f"tiny.{told_by}"]


def test_a_folder_without_golden_arrays_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["climax", str(tmp_path)]) == 2
    assert f"{tmp_path}: no golden arrays of climax" in capsys.readouterr().err
    reference.write_climax(tmp_path)
    (tmp_path / "tiny.ckpt").unlink()
    assert compare.main(["climax", str(tmp_path)]) == 2
    assert "not golden arrays of climax" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize(
    ("grid", "patch_size", "published"), [((32, 64), 2, 108_088_512), ((128, 256), 4, 110_841_600)]
)
def test_parameter_counts_are_the_published_ones(grid: tuple[int, int], patch_size: int, published: int) -> None:
    with torch.device("meta"):
        model = ClimaX(grid=grid, patch_size=patch_size)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == published


def test_the_released_models_know_48_variables() -> None:
    assert len(released.CLIMAX) == len(set(released.CLIMAX)) == 48
    assert released.CLIMAX[2] == "lattitude"
    assert released.CLIMAX[-1] == "specific_humidity_925"


def test_the_order_of_variables_does_not_matter_and_a_subset_does() -> None:
    model, x = loaded(), fields()
    with torch.no_grad():
        straight = model(x, HOURS, NAMES)
        order = [3, 1, 4, 0, 2]
        permuted = model(x[:, order], HOURS, [NAMES[i] for i in order])
        subset = model(x[:, :3], HOURS, NAMES[:3])
        wanted = model(x, HOURS, NAMES, (NAMES[4], NAMES[1]))
    assert torch.allclose(straight, permuted, atol=1e-5)
    assert straight.shape == subset.shape == (2, len(NAMES), 8, 16)
    assert (straight - subset).abs().max() > 1e-3
    assert torch.equal(wanted, straight[:, [4, 1]])


def test_each_sample_has_its_own_lead_time() -> None:
    model, x = loaded(), fields()
    with torch.no_grad():
        both, other = model(x, HOURS, NAMES), model(x, torch.tensor([6.0, 120.0]), NAMES)
    assert torch.allclose(both[0], other[0], atol=1e-6)
    assert (both[1] - other[1]).abs().max() > 1e-3


def test_a_region_is_the_same_part_of_the_grid() -> None:
    # without blocks no patch looks at another: a region must be what the whole grid has there
    model, x = loaded(depth=0), fields()
    with torch.no_grad():
        whole = model(x, HOURS, NAMES)
        region = model(x[:, :, 2:6, 4:12], HOURS, NAMES, corner=(2, 4))
        elsewhere = model(x[:, :, 2:6, 4:12], HOURS, NAMES, corner=(0, 0))
    assert torch.allclose(region, whole[:, :, 2:6, 4:12], atol=1e-6)
    assert (elsewhere - region).abs().max() > 1e-3


def test_dropout_is_there_in_training_alone() -> None:
    model, x = loaded(), fields()
    with torch.no_grad():
        assert torch.equal(model(x, HOURS, NAMES), model(x, HOURS, NAMES))
        model.train()
        assert not torch.equal(model(x, HOURS, NAMES), model(x, HOURS, NAMES))


def test_stochastic_depth_leaves_out_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(4000, 2, 3))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert abs(out.mean().item() - 1) < 0.04  # three standard deviations: 3 * sqrt(0.25 / 0.75 / 4000) = 0.027
    assert torch.equal(DropPath(0.25).eval()(out), out)
    assert [block.drop_path.rate for block in tiny(depth=3).blocks] == [0, 0.05, 0.1]


def test_new_models_start_from_sines_zeros_and_small_numbers() -> None:
    model = tiny(width=64)
    patches = 4 * 8
    assert model.positions.shape == (patches, 64)
    assert model.embedding.aggregation.seed.abs().max() == 0
    assert model.embedding.tokens.identity[0, :32].abs().max() == 0  # sin 0
    assert model.embedding.tokens.identity[0, 32:].min() == 1  # cos 0
    assert model.embedding.tokens.identity[2, 0].item() == pytest.approx(math.sin(2))
    assert 0.01 < model.head[0].weight.std() < 0.03
    assert model.blocks[0].attn.qkv.bias.abs().max() == 0


def test_a_model_built_without_storage_starts_alike() -> None:
    with torch.device("meta"):
        model = tiny(width=64)
    materialise(model, torch.device("cpu"))
    initialise(model, seed=0)  # which raises where a tensor is given no value
    assert torch.equal(model.positions, tiny(width=64).positions)
    assert torch.equal(model.embedding.tokens.identity, tiny(width=64).embedding.tokens.identity)
    assert 0.01 < model.head[0].weight.std() < 0.03  # not PyTorch's 1 / sqrt(64)


def test_positions_have_the_column_in_the_first_half_and_the_row_in_the_second() -> None:
    row, column, width = 2, 5, 16
    found = grid_positions((4, 8), width)[row * 8 + column]
    angles = [position / 10000 ** (k / 4) for position in (column, row) for k in range(4)]
    expected = [f(a) for half in (angles[:4], angles[4:]) for f in (math.sin, math.cos) for a in half]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_patches_and_fields_are_inverse() -> None:
    x = fields(3)
    patches = to_patches(x, 4)
    assert patches.shape == (2, 8, 3, 16)
    assert patches[0, 5, 1, 6] == x[0, 1, 4 + 1, 4 + 2]  # patch row 1, column 1; point 1, 2 in it
    assert torch.equal(to_fields(patches.transpose(2, 3).flatten(2), (2, 4), 4), x)


# -------------------------------------------------------------------------------------------------- checkpoints


def test_positions_are_resized_for_another_grid() -> None:
    state = reference.climax_state()
    rows = torch.linspace(-1, 1, 4)[:, None, None].expand(4, 8, 16)
    state["pos_embed"] = rows.reshape(1, 32, 16).clone()  # tells the row alone
    model = ClimaX(NAMES, grid=(16, 32), width=16, depth=2, heads=4)
    model.load_state_dict(from_authors(state, grid=(16, 32), patch_size=2))
    resized = model.positions.detach().reshape(8, 16, 16)
    assert torch.allclose(resized, resized[:, :1, :1].expand_as(resized), atol=1e-6)  # still the row alone
    assert torch.allclose(resized, -resized.flip(0), atol=1e-6)
    assert (resized[1:, 0, 0] > resized[:-1, 0, 0]).all()
    # row 4 of 8 lies at (4 + 1/2) / 2 - 1/2 = 1.75 of the old rows; Keys' cubic kernel with a = -3/4, far and near side
    a = -0.75
    far, near = (a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a for d in (1.75, 1.25))
    left, right = ((a + 2) * d**3 - (a + 3) * d**2 + 1 for d in (0.75, 0.25))
    expected = far * -1 + left * -1 / 3 + right * 1 / 3 + near * 1
    assert resized[4, 0, 0].item() == pytest.approx(expected, abs=1e-6)


def test_a_grid_that_is_not_twice_as_wide_is_named() -> None:
    state = reference.climax_state()
    square = from_authors(state, grid=(16, 16), patch_size=2, checkpoint_grid=(16, 8))
    expected = resize_positions(state["pos_embed"][0], (8, 4), (8, 8))
    assert torch.equal(square["positions"], expected)
    with pytest.raises(WeightsError, match="32 patches are not a grid of 4 x 4; name the grid"):
        from_authors(state, grid=(16, 16), patch_size=2, checkpoint_grid=(8, 8))


def test_checkpoints_with_tensors_missing_or_unknown_are_refused() -> None:
    state = reference.climax_state()
    for name, message in (
        ("pos_embed", "no tensor pos_embed; is it one of ClimaX"),
        ("var_query", "no tensor var_query or channel_query"),
        ("token_embeds.proj_biases", "no tensor token_embeds.proj_biases"),
    ):
        with pytest.raises(WeightsError, match=message):
            from_authors({key: value for key, value in state.items() if key != name}, grid=(8, 16), patch_size=2)
    with pytest.raises(WeightsError, match=r"no place for: time_embed"):
        from_authors(state | {"time_embed": torch.ones(1)}, grid=(8, 16), patch_size=2)


def _foreign(base: type) -> Any:
    """An object of a class in a module that exists while it is saved."""
    module = types.ModuleType("somebodys_library")
    made = type("Config", (base,), {"__module__": "somebodys_library", "__qualname__": "Config"})
    module.Config = made
    sys.modules["somebodys_library"] = module
    instance = made()
    if not isinstance(instance, list):
        instance.lr = 1e-3
    if isinstance(instance, dict):
        instance["lr"] = 1e-3
    if isinstance(instance, list):
        instance.extend([1, 2])
    return instance


@pytest.mark.parametrize("base", [object, dict, list])
def test_a_training_checkpoint_is_read_without_the_classes_it_names(tmp_path: Path, base: type) -> None:
    state = {f"net.{name}": tensor for name, tensor in reference.climax_state().items()}
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}
    file = tmp_path / "released.ckpt"
    torch.save({"state_dict": state, "optimizer_states": [optimizer], "hparams": _foreign(base)}, file)
    del sys.modules["somebodys_library"]
    with pytest.raises(WeightsError, match=r"somebodys_library\.Config"):
        compare.read_pickle(file)  # what is refused where no stand-in is made
    read = read_training_checkpoint(file)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
    assert "somebodys_library" not in sys.modules


class _Touches:
    """A pickle that makes a file when it is read by somebody careless."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_training_checkpoint_is_executed(tmp_path: Path) -> None:
    file, trace = tmp_path / "bad.ckpt", tmp_path / "trace"
    torch.save({"state_dict": {"a": torch.ones(1)}, "callbacks": _Touches(trace)}, file)
    torch.load(file, weights_only=False)
    assert trace.exists()  # the trap works
    trace.unlink()
    try:
        read_training_checkpoint(file)
    except WeightsError as error:
        assert "refused" in str(error)  # noqa: PT017 - reading and refusing are both right, executing is not
    assert not trace.exists()


def test_training_checkpoints_that_are_none_say_why(tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    with pytest.raises(WeightsError, match="no such checkpoint"):
        read_training_checkpoint(file)
    torch.save({"weights": torch.ones(1)}, file)
    with pytest.raises(WeightsError, match="holds no state_dict; is it a checkpoint of a training run"):
        read_training_checkpoint(file)
    torch.save({"state_dict": {"a": torch.ones(1), "b": 3}}, file)
    with pytest.raises(WeightsError, match="values in state_dict that are not tensors: b"):
        read_training_checkpoint(file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(WeightsError, match=r"not a readable PyTorch checkpoint|refused"):
        read_training_checkpoint(file)


# --------------------------------------------------------------------------------------------- loss and scores


def test_cosine_weights_of_three_latitudes() -> None:
    # cos(0, 60, -60) = 1, 1/2, 1/2, mean 2/3
    assert metrics.cosine_weights([0.0, 60.0, -60.0]).tolist() == pytest.approx([1.5, 0.75, 0.75])


def test_scores_have_closed_forms() -> None:
    lat = [0.0, 60.0, -60.0]
    truth = torch.zeros(2, 2, 3, 4)
    prediction = torch.zeros(2, 2, 3, 4)
    prediction[0, 0, 0] = 2.0  # one sample, on the equator: 4 * 1.5 over 3 rows of 2 samples = 1
    prediction[:, 1] = 3.0
    assert metrics.weighted_mse(prediction, truth, lat).tolist() == pytest.approx([1, 9])
    assert metrics.weighted_loss(prediction, truth, lat).item() == pytest.approx(5)
    assert metrics.weighted_loss(prediction, truth, lat, [3.0, 1.0]).item() == pytest.approx(3)
    # the mean over samples comes after the root: (sqrt(2) + 0) / 2, not sqrt(1)
    assert metrics.weighted_rmse(prediction, truth, lat).tolist() == pytest.approx([math.sqrt(2) / 2, 3])


def test_climax_acc_does_not_see_scale_or_offset() -> None:
    lat = [-45.0, 0.0, 45.0]
    truth, climatology = fields(2, 3, 5), fields(2, 3, 5)[0] * 0.1
    anomaly = truth - climatology
    acc = metrics.climax_acc(
        climatology + torch.tensor([2.0, -3.0])[:, None, None] * anomaly + 7, truth, climatology, lat
    )
    assert acc.tolist() == pytest.approx([1, -1], abs=1e-5)


def test_scores_refuse_what_does_not_match() -> None:
    x, lat = torch.zeros(1, 2, 3, 4), [0.0, 60.0, -60.0]
    with pytest.raises(InputError, match="expected both as"):
        metrics.weighted_mse(x, x[:, :1], lat)
    with pytest.raises(InputError, match="2 latitudes"):
        metrics.weighted_rmse(x, x, lat[:2])
    with pytest.raises(InputError, match=r"climatology: shape \(3, 4\)"):
        metrics.climax_acc(x, x, x[0, 0], lat)
    for bad in ([0.0, 91.0], [math.nan], []):
        with pytest.raises(InputError, match="degrees from -90 to 90"):
            metrics.cosine_weights(bad)
    with pytest.raises(InputError, match="all of them are poles"):
        metrics.cosine_weights([90.0, -90.0])
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0]):
        with pytest.raises(InputError, match="variable weights: expected 2 numbers >= 0"):
            metrics.weighted_loss(x, x, lat, weights)


# ---------------------------------------------------------------------------------------------------- messages


def test_wrong_input_says_what_is_expected() -> None:
    model, x = tiny(), fields()
    with pytest.raises(InputError, match='"2m_temprature" is not a known variable; did you mean "2m_temperature"'):
        model(x[:, :1], HOURS, ["2m_temprature"])
    with pytest.raises(InputError, match='output: "rain" is not a known variable'):
        model(x, HOURS, NAMES, ["rain"])
    with pytest.raises(InputError, match='"orography" is given 2 times'):
        model(x[:, :2], HOURS, ["orography", "orography"])
    with pytest.raises(InputError, match="no variables; give at least one of the 5"):
        model(x, HOURS, NAMES, [])
    with pytest.raises(InputError, match=r"for 2 variables; expected \(batch, 2, latitude, longitude\)"):
        model(x, HOURS, NAMES[:2])
    with pytest.raises(InputError, match=r"hours of shape \(1,\) for 2 samples"):
        model(x, HOURS[:1], NAMES)


@pytest.mark.parametrize(
    ("size", "corner"), [((8, 18), (0, 0)), ((4, 8), (6, 0)), ((4, 8), (1, 0)), ((4, 8), (-2, 0)), ((3, 8), (0, 0))]
)
def test_a_region_outside_of_the_grid_or_across_patches_is_refused(
    size: tuple[int, int], corner: tuple[int, int]
) -> None:
    with pytest.raises(InputError, match=r"no part of the grid of 8 x 16 in whole patches of 2"):
        tiny()(fields(rows=size[0], columns=size[1]), HOURS, NAMES, corner=corner)


def test_models_that_cannot_be_built_say_why() -> None:
    with pytest.raises(InputError, match="9 x 16 points is not tiled by patches of 2 x 2"):
        tiny(grid=(9, 16))
    with pytest.raises(InputError, match="width 18 with 4 heads"):
        tiny(width=18)
    with pytest.raises(InputError, match='"a" is given 2 times'):
        ClimaX(["a", "a"], grid=(8, 16), width=16, heads=4)
