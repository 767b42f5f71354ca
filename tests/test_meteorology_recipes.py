"""The recipes of meteorology are planned for three devices, on data like those that they are for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from forecasts import fields
from gridded import z_files
from typer.testing import CliRunner

from zoo.cli import app
from zoo.domain import datasets, find_model
from zoo.errors import InputError
from zoo.meteorology import DOMAIN
from zoo.meteorology.forecasting import Forecast
from zoo.planner import decide, limits_of
from zoo.plans import Workload
from zoo.recipe import Recipe
from zoo.recipe_file import read_recipe
from zoo.resolve import Job, load_job
from zoo.resources import shared
from zoo.training.run import plan
from zoo.units import GIB

RECIPES = {path.stem: path for path in sorted((shared() / "recipes" / "meteorology").glob("*.yaml"))}
DEVICES = {"rtx-3060-12gb": "gpu", "a100-80gb": "gpu", "16GiB": "device"}
"""Names and amounts, and the key of the budget that each is for; the last is of the CPU."""
OWN = {"monthly_geopotential"}
"""Recipes whose data lie beside the project."""
LARGE = {"aurora_lora", "prithvi_lora", "stormer_fine_tuning"}
"""Recipes of models that are too large to be planned for a small device in a few seconds: for the largest only."""


def test_the_promised_recipes_are_there() -> None:
    assert RECIPES.keys() >= {
        "global_forecast", "regional_forecast", "monthly_geopotential", "climate_projection", "rollout_fine_tuning",
        "era5_fine_tuning", "stormer_fine_tuning", "downscaling",
    }  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_what_exists(name: str) -> None:
    recipe: Recipe = read_recipe(RECIPES[name]).recipe
    assert recipe.name == name
    assert recipe.domain == DOMAIN.name
    assert recipe.task_name in find_model(recipe.model).tasks
    assert recipe.data.source is None or datasets()[recipe.data.source].domain == DOMAIN.name
    assert (recipe.checkpoint == "random") == (find_model(recipe.model).source is None)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A place of data by recipe."""
    folder = tmp_path_factory.mktemp("data")
    found = {}
    for name in RECIPES.keys() - LARGE:
        if name in OWN:
            continue
        job = load_job(RECIPES[name])
        assert isinstance(job.task, Forecast)
        if job.recipe.data.source == "north_america_scenarios":
            continue
        wanted = dict.fromkeys((*job.task.variables, *job.task.targets_wanted))
        data = fields(list(wanted), 32, 64, 64)
        found[name] = str(folder / f"{name}.nc")
        data.to_netcdf(found[name], engine="netcdf4")
    return found


def job_of(name: str, places: dict[str, str], device: str) -> Job:
    overrides = []
    if name in OWN:
        places = {name: str(Path(z_files()[500]).parent / "z*_monthly.nc")}
    if name in places:
        overrides = ["data.source=null", f"data.path={places[name]}", "data.split.fractions=[0.5, 0.25, 0.25]"]
        if read_recipe(RECIPES[name]).recipe.task_options.get("years"):
            overrides += ["task.forecast.years=null"]
        if name not in OWN and read_recipe(RECIPES[name]).recipe.task_name == "forecast":
            overrides += ["task.forecast.lead_hours=[6]"]
    if DEVICES[device] == "gpu":
        return load_job(RECIPES[name], overrides, gpu=device)
    return load_job(RECIPES[name], overrides, budget=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", sorted(RECIPES.keys() - LARGE))
def test_a_recipe_is_planned_for(name: str, device: str, places: dict[str, str]) -> None:
    decision, workload, data = plan(job_of(name, places, device), local_only=False)
    assert decision.fits, decision.reasons
    assert data is not None
    assert data.train
    assert workload.tokens == int(np.prod(decision_grid(name)))
    assert 0 < decision.chosen.peak_bytes <= decision.limits.device_bytes


def decision_grid(name: str) -> tuple[int, int]:
    """Rows and columns of what a recipe trains on."""
    return {
        "regional_forecast": (16, 32), "monthly_geopotential": (72, 144), "climate_projection": (36, 48),
    }.get(name, (32, 64))  # fmt: skip


@pytest.mark.parametrize("name", sorted(LARGE & RECIPES.keys() - {"aurora_lora"}))
def test_a_large_model_is_planned_without_data(name: str) -> None:
    job = load_job(RECIPES[name], gpu="a100-80gb")
    decision = decide(job, Workload(1, 1, "nothing is at hand"), limits_of(job.recipe.budget))
    assert decision.fits
    assert decision.chosen.peak_bytes > 8 * GIB


def test_fields_are_planned_for_before_they_are_there() -> None:
    recipe = str(RECIPES["era5_fine_tuning"])
    command = ["plan", recipe, "--set", "data.path=of_next_year/*.nc", "--set", "techniques.checkpointing=block"]
    said = CliRunner().invoke(app, [*command, "--gpu", "t4", "--json"])
    assert said.exit_code == 0, said.output
    assert said.stderr == "note: of_next_year/*.nc does not exist; training will need it\n"
    assert "of_next_year/*.nc does not exist" in json.loads(said.stdout)["reasons"][0]
    checked = CliRunner().invoke(app, ["check", *command[1:]])
    assert (checked.exit_code, checked.stderr) == (0, said.stderr)
    trained = CliRunner().invoke(app, ["train", *command[1:], "--output", "nowhere"])
    assert isinstance(trained.exception, InputError)
    assert "of_next_year/*.nc" in str(trained.exception)


def test_what_is_made_here_is_planned_before_it_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The card of the simulated world says how large its states are; a box is cut out of them."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    for name, points in (("global_forecast", 32 * 64), ("regional_forecast", 512)):
        decision, workload, data = plan(load_job(RECIPES[name]))
        assert data is None
        assert workload.tokens == points
        assert decision.fits
    assert not list(tmp_path.rglob("*.nc"))
