"""Positionwise modules of weather transformers, some positions at a time: the same results in less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from forecasts import Forecasts, waves
from small_models import CPU, Steps, changed, defaults, loads, measured, predicted, run_steps
from torch import nn

from zoo.card import ModelCard
from zoo.domain import Batch, find_model
from zoo.errors import InputError
from zoo.meteorology.forecasting import Forecast
from zoo.meteorology.variables import VariableEmbedding
from zoo.resolve import Job
from zoo.step import PHASES, Loader, build
from zoo.techniques import Technique
from zoo.techniques.adapter import LoRA
from zoo.techniques.checkpointing import BlockCheckpointing
from zoo.techniques.chunking import Positions
from zoo.techniques.precision import BF16
from zoo.training.values import loader_of


@pytest.fixture(name="task", scope="module")
def _task(tmp_path_factory: pytest.TempPathFactory) -> Forecast:
    made = Forecasts(tmp_path_factory.mktemp("chunking"))
    made.data(waves(24, rows=16, columns=32))
    task, _ = made.prepared(variables=["t_500", "z_500", "t_850", "z_850"])
    return task


@pytest.fixture(name="card")
def _card() -> ModelCard:
    return changed(find_model("climax_small"), depth=2, dropout=0.0, drop_path=0.0)


def _batch(task: Forecast, card: ModelCard, seed: int) -> Batch:
    blank = task.blank_batch(card, 3, task.length(None))
    draw = torch.Generator().manual_seed(seed)
    fields = torch.randn(blank.inputs["fields"].shape, generator=draw)
    inputs = {**blank.inputs, "fields": fields, "scale": torch.ones_like(blank.inputs["scale"])}
    return Batch(inputs, torch.randn(blank.targets.shape, generator=draw), blank.weight)


def _published(task: Forecast, card: ModelCard) -> Loader:
    return loads(build(card, task, defaults(), CPU, load=loader_of(card, "random", 0)).model.state_dict())


def _steps(task: Forecast, card: ModelCard, **techniques: Technique) -> Steps:
    steps = [[_batch(task, card, seed)] for seed in range(3)]
    return run_steps(card, task, defaults(**techniques), steps, load=_published(task, card), learning_rate=1e-4)


def _apart(one: Steps, other: Steps) -> float:
    """The largest relative difference of a loss, or of all weights together."""
    found = [float((a - b).abs() / b.abs()) for a, b in zip(one.losses, other.losses, strict=True)]
    for mine, its in zip(one.weights, other.weights, strict=True):
        squares = [((mine[name] - its[name]).square().sum(), its[name].square().sum()) for name in its]
        found.append(float((sum(a for a, _ in squares) / sum(b for _, b in squares)) ** 0.5))
    return max(found)


@pytest.mark.parametrize("pieces", [2, 5, 1000])
def test_three_steps_are_the_same_up_to_rounding(task: Forecast, card: ModelCard, pieces: int) -> None:
    plain, chunked = _steps(task, card), _steps(task, card, chunking=Positions(pieces=pieces))
    assert 0 < _apart(chunked, plain) < Positions.tolerance


def test_beside_recomputed_blocks_nothing_changes_but_where_the_blocks_are_recomputed(
    task: Forecast, card: ModelCard
) -> None:
    chunked = _steps(task, card, chunking=Positions())
    both = _steps(task, card, chunking=Positions(), checkpointing=BlockCheckpointing())
    assert _apart(both, chunked) == 0


@pytest.mark.parametrize("more", [{}, {"checkpointing": BlockCheckpointing()}], ids=["alone", "beside blocks"])
def test_each_part_is_computed_once_on_the_way_there_and_once_on_the_way_back(
    task: Forecast, card: ModelCard, more: dict[str, Technique]
) -> None:
    techniques = defaults(chunking=Positions(pieces=4), **more)
    setup = build(card, task, techniques, CPU, load=_published(task, card))
    lengths: list[int] = []
    embedding = setup.modules_of("positionwise")["embedding"]
    assert isinstance(embedding, VariableEmbedding)
    embedding.aggregation.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    task.loss(setup.model, _batch(task, card, 0)).backward()
    assert lengths == [8] * 8  # 4 x 8 patches


def test_forecasts_without_gradients_are_the_same(task: Forecast, card: ModelCard) -> None:
    load = _published(task, card)
    batch = _batch(task, card, 0)
    plain, chunked = (
        build(card, task, defaults(**chosen), CPU, load=load).model.eval() for chosen in ({}, {"chunking": Positions()})
    )
    with torch.no_grad():
        assert torch.allclose(task.loss(chunked, batch), task.loss(plain, batch), rtol=1e-5)


@pytest.mark.parametrize("more", [{}, {"checkpointing": BlockCheckpointing()}, {"precision": BF16()},
                                  {"adapter": LoRA(rank=2)}], ids=str)  # fmt: skip
def test_predicted_memory_is_measured_memory(task: Forecast, card: ModelCard, more: dict[str, Any]) -> None:
    techniques = defaults(chunking=Positions(), **more)
    fake = predicted(card, task, techniques, 24, task.length(None)).peaks()
    real = measured(card, task, techniques, 24, task.length(None))
    for phase in PHASES:
        assert fake[phase] == pytest.approx(real[phase], rel=0.01), phase


def test_what_the_variables_hold_apart_is_gone(made_for_48: tuple[Job, Forecast]) -> None:
    """ClimaX at 1.40625 degrees with 48 variables: with the blocks recomputed, embedding all at once is the peak."""
    job, task = made_for_48
    card = job.card
    peaks = {}
    for name, chosen in (
        ("plain", {}),
        ("blocks", {"checkpointing": BlockCheckpointing()}),
        ("both", {"checkpointing": BlockCheckpointing(), "chunking": Positions()}),
    ):
        record = predicted(card, task, defaults(**chosen), 1, task.length(None), world="meta")
        peaks[name] = record.peaks()["backward"] / 2**20
        standing = record.peaks()["optimizer"] / 2**20
    assert peaks["plain"] > 3000
    assert peaks["blocks"] > 2700
    assert peaks["both"] < standing + 200, "what is left is weights, gradients and states"


@pytest.fixture(name="made_for_48", scope="module")
def _made_for_48() -> tuple[Job, Forecast]:
    from zoo.planner import survey
    from zoo.recipe_file import read_recipe
    from zoo.resolve import resolve

    changes = ["model=climax_1_40625deg", "task.forecast.lead_hours=[6]"]
    job = resolve(read_recipe("recipes/meteorology/era5_fine_tuning.yaml", changes), needs_data=False)
    survey(job, lambda source: Path(), local=False)
    assert isinstance(job.task, Forecast)
    return job, job.task


def test_models_without_such_modules_refuse() -> None:
    assert not Positions().automatic_for(find_model("esm2_t6_8m"))
    assert Positions().automatic_for(find_model("climax_small"))


def test_dropout_inside_is_refused(task: Forecast, card: ModelCard) -> None:
    card = card.model_copy(update={"roles": {**card.roles, "positionwise": ("blocks.*",)}})
    dropping = changed(card, dropout=0.1)
    with pytest.raises(InputError, match=r"chunking: positions: blocks\.0 of climax_small has dropout, whose masks"):
        build(dropping, task, defaults(chunking=Positions()), CPU)


def test_what_goes_beside_the_first_input_is_divided_with_it(task: Forecast) -> None:
    """Stormer adds positions inside of its embedding."""

    class Adds(nn.Module):
        def forward(self, x: torch.Tensor, positions: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return (x + positions) * scale

    from zoo.techniques.chunking import _divide

    module = Adds()
    x, positions, scale = torch.randn(2, 7, 3), torch.randn(1, 7, 3), torch.randn(3)
    expected = module(x, positions, scale)
    _divide(module, 3)
    assert torch.equal(module(x, positions=positions, scale=scale), expected)
