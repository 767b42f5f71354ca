"""Stormer against a reference that was written apart from it, and closed forms."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import compare, reference

from zoo.errors import InputError, WeightsError
from zoo.meteorology import released
from zoo.meteorology.stormer import Stormer, from_authors
from zoo.step import materialise
from zoo.weights import initialise

NAMES = reference.NAMES
HOURS = torch.tensor([6.0, 24.0])


def tiny(**changes: Any) -> Stormer:
    return Stormer(NAMES, **({"grid": (8, 16), "width": 16, "depth": 2, "heads": 4} | changes)).eval()


def loaded() -> Stormer:
    model = tiny()
    model.load_state_dict(from_authors(reference.stormer_state(), grid=(8, 16), patch_size=2))
    return model


def fields() -> torch.Tensor:
    return torch.randn(2, len(NAMES), 8, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rows", [8, 7], ids=["whole patches", "a row of zeros on top"])
def test_predictions_are_those_of_the_reference(tmp_path: Path, rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    reference.write_stormer(tmp_path, rows=rows)
    assert compare.main(["stormer", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == {"tiny.prediction"}
    assert 0 < printed["tiny.prediction"] <= 1e-5


@pytest.mark.parametrize("value", [3e-5, math.nan])
def test_a_wrong_golden_value_is_noticed(tmp_path: Path, value: float, capsys: pytest.CaptureFixture[str]) -> None:
    reference.write_stormer(tmp_path)
    golden = torch.load(tmp_path / "tiny.pt", weights_only=True)
    golden["y"].view(-1)[7] += value
    torch.save(golden, tmp_path / "tiny.pt")
    assert compare.main(["stormer", str(tmp_path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)["tiny.prediction"]
    assert told is None if math.isnan(value) else told == pytest.approx(value, rel=0.5)


def test_a_folder_without_golden_arrays_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["stormer", str(tmp_path)]) == 2
    assert "no golden arrays of stormer" in capsys.readouterr().err


def test_parameter_count_is_the_published_one() -> None:
    with torch.device("meta"):
        model = Stormer()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == 468.75


def test_the_released_model_knows_69_variables() -> None:
    assert len(released.STORMER) == len(set(released.STORMER)) == 69
    assert released.STORMER[:5] == (*released.STORMER[:4], "geopotential_50")
    assert released.STORMER[-1] == "specific_humidity_1000"


def test_a_new_model_predicts_no_difference() -> None:
    with torch.device("meta"):
        model = tiny()
    materialise(model, torch.device("cpu"))
    initialise(model, seed=0)  # which raises where a tensor is given no value
    x = fields()
    with torch.no_grad():
        assert torch.equal(model.positions, tiny().positions)
        assert model(x, HOURS).abs().max() == tiny()(x, HOURS).abs().max() == 0
        tokens, condition = torch.randn(2, 32, 16), torch.randn(2, 16)
        assert torch.equal(model.blocks[0](tokens, condition), tokens)


def test_the_order_of_variables_does_not_matter_and_a_subset_does() -> None:
    model, x = loaded(), fields()
    order = [3, 1, 4, 0, 2]
    with torch.no_grad():
        straight = model(x, HOURS)
        permuted = model(x[:, order], HOURS, [NAMES[i] for i in order])
        subset = model(x[:, :3], HOURS, NAMES[:3])
        wanted = model(x, HOURS, NAMES, (NAMES[4], NAMES[1]))
    assert torch.allclose(straight, permuted, atol=1e-5)
    assert subset.shape == straight.shape
    assert (straight - subset).abs().max() > 1e-3
    assert torch.equal(wanted, straight[:, [4, 1]])


def test_each_sample_has_its_own_interval() -> None:
    model, x = loaded(), fields()
    with torch.no_grad():
        both, other = model(x, HOURS), model(x, torch.tensor([6.0, 12.0]))
    assert torch.allclose(both[0], other[0], atol=1e-6)
    assert (both[1] - other[1]).abs().max() > 1e-3


def test_positions_are_resized_for_another_grid() -> None:
    state = reference.stormer_state()
    state["embedding.pos_embed"] = torch.full((1, 32, 16), 0.5)
    model = tiny(grid=(15, 32))
    model.load_state_dict(from_authors(state, grid=(15, 32), patch_size=2))
    assert model.positions.shape == (8 * 16, 16)
    assert torch.allclose(model.positions, torch.full_like(model.positions, 0.5))
    named = from_authors(state, grid=(15, 32), patch_size=2, checkpoint_grid=(7, 16))
    assert torch.equal(named["positions"], model.positions)


def test_checkpoints_with_tensors_missing_or_unknown_are_refused() -> None:
    state = {f"net.{name}": tensor for name, tensor in reference.stormer_state().items()}
    for name, message in (
        ("net.embedding.pos_embed", "no tensor embedding.pos_embed; is it one of Stormer"),
        ("net.t_embedder.mlp.bias", "no tensor t_embedder.mlp.bias"),
        ("net.embedding.channel_query", "no tensor embedding.var_query or embedding.channel_query"),
        ("net.embedding.token_embeds.4.proj.bias", r"no tensor embedding.token_embeds\.4\.proj\.bias"),
    ):
        with pytest.raises(WeightsError, match=message):
            from_authors({key: value for key, value in state.items() if key != name}, grid=(8, 16), patch_size=2)
    with pytest.raises(WeightsError, match=r"no place for: embedding\.extra"):
        from_authors(state | {"net.embedding.extra": torch.ones(1)}, grid=(8, 16), patch_size=2)


def test_wrong_input_says_what_is_expected() -> None:
    model, x = tiny(), fields()
    with pytest.raises(InputError, match=r"fields of 8 x 12 points on a model of 8 x 16; regrid them"):
        model(x[..., :12], HOURS)
    with pytest.raises(InputError, match=r"hours of shape \(1,\) for 2 samples"):
        model(x, HOURS[:1])
    with pytest.raises(InputError, match="for 5 variables; expected"):
        model(x[:, :4], HOURS)
    with pytest.raises(InputError, match='Stormer input: "rain" is not a known variable'):
        model(x[:, :1], HOURS, ["rain"])
    with pytest.raises(InputError, match='Stormer output: "rain" is not a known variable'):
        model(x, HOURS, NAMES, ["rain"])
    with pytest.raises(InputError, match="8 x 15 points is not tiled by patches of 2 x 2"):
        tiny(grid=(8, 15))
    with pytest.raises(InputError, match="width 18 with 4 heads"):
        tiny(width=18)
