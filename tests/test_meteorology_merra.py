"""From MERRA-2's files, and a climatology in files, to what Prithvi WxC is given, and to forecasts."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from forecasts import Forecasts, fetch
from prithvi_small import BOX, FIELDS, GRID, NAME, climatology, direct, loaded, merra, of_library, tiny
from small_models import CPU, defaults

from zoo.domain import models
from zoo.errors import InputError
from zoo.meteorology.climatology_files import ClimatologyFiles
from zoo.meteorology.files import File, Meaning
from zoo.meteorology.forecast_file import read_forecast
from zoo.meteorology.forecasting import Forecast
from zoo.meteorology.grids import Grid
from zoo.meteorology.names import GRAVITY
from zoo.meteorology.released import PRITHVI, PRITHVI_STATIC
from zoo.meteorology.rollout import roll_out
from zoo.meteorology.source import look, open_fields
from zoo.meteorology.times import time_axis
from zoo.resolve import Job
from zoo.step import build as build_setup
from zoo.training.finished import Run, predict_file
from zoo.training.run import train

# ----------------------------------------------------------------------------------------------- files and whole runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with files of MERRA-2 and of a climatology, where Prithvi is the tiny one."""
    folder = tmp_path_factory.mktemp("prithvi")
    merra(folder / "merra-2")
    climatology(folder / "climatology", range(58, 66))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models(), NAME, tiny())  # type: ignore[misc]  # a dict, in truth
        yield folder


def job_of(place: Path, **options: Any) -> Job:
    """The recipe on the files of a folder."""
    own = {"variables": list(FIELDS), "lead_hours": [6], "box": BOX, "every": 4}
    usual = {"climatology": str(place / "climatology" / "climate_*_doy{day:03}_hour{hour:02}.nc")}
    changes = {"model": NAME, "train.max_steps": 2, "train.global_batch_size": 2}
    changes["data.split.fractions"] = [0.5, 0.25, 0.25]
    forecasts = Forecasts(place)
    return forecasts.job(changes, data=f"{place}/merra-2/MERRA*.nc", **{**own, **usual, **options})


@pytest.mark.parametrize("start", ["2020-02-29T06:00", "2020-02-28T21:00"])
def test_the_task_gives_the_model_what_the_librarys_dataset_does(place: Path, start: str) -> None:
    job = job_of(place)
    made_of = job.task
    data = made_of.prepare(job, fetch)
    example = next(e for e in (*data.train, *data.valid, *data.test) if e.text == start)
    batch = made_of.collate([example], [0], 0)
    card = job.card
    setup = build_setup(card, made_of, defaults(), CPU, load=loaded)
    theirs = direct(setup.model, card)
    given = of_library(place / "merra-2", str(place / "climatology" / "x"), start)
    moment = np.datetime64(start)
    day, hour = int((moment.astype("M8[D]") - moment.astype("M8[Y]")).astype(int)) + 1, int(start[11:13])
    assert given["static"][0, 2, 0, 0] == pytest.approx(np.cos(2 * np.pi * day / 366), abs=1e-6)
    assert given["static"][0, 4, 0, 0] == pytest.approx(np.cos(2 * np.pi * hour / 24), abs=1e-6)
    with torch.no_grad():
        said = next(roll_out(setup.model.eval(), batch.inputs, FIELDS, PRITHVI, 1))[0].numpy()
        truth = importlib.import_module("PrithviWxC.model").masked_inference(theirs, given)[0]
    ours_in_units = made_of.learned.states.of(PRITHVI).denormalise(said)
    factor = torch.ones(160)
    size = truth.flatten(1).std(dim=1)[:, None, None] * factor[:, None, None]
    assert float(((torch.tensor(ours_in_units) - truth) / size).abs().max()) < 1e-4  # rounding of normalised fields


def test_without_files_the_mean_of_training_is_what_is_usual(place: Path) -> None:
    job = job_of(place, climatology="all", rollout=2)
    made_of = job.task
    data = made_of.prepare(job, fetch)
    batch = made_of.collate(data.test[:1], [0], None)
    usual = batch.inputs["climate"][0]
    still = len(PRITHVI_STATIC)
    assert usual.shape == (2, len(FIELDS), *GRID)
    assert torch.equal(usual[0], usual[1])
    assert not usual[:, :still].any(), "nothing is usual of what never changes"
    mean = made_of.learned.climatology.at(time_axis("x", np.array(["2020-03-01"], "M8[ns]")), 0, PRITHVI)
    assert torch.equal(usual[0, still:], torch.tensor(made_of.learned.states.of(PRITHVI).normalise(mean)))


def test_a_run_from_files_to_forecasts(place: Path, tmp_path: Path) -> None:
    run = train(job_of(place, rollout=2), output=tmp_path / "run").folder.path
    assert not (run / "climatology.npz").exists(), "it is in files of its own"
    target = tmp_path / "forecast.nc"
    later = merra(tmp_path / "later", days=1, start="2020-03-04", seed=3)
    starts = predict_file(Run.open(run), Path(f"{later}/MERRA*.nc"), target)
    found = read_forecast(target)
    assert starts == (found.sizes["time"], 0)
    assert found.sizes["time"] == 8 - 2, "the first two times of the file have no state six hours before"
    assert found.sizes["prediction_timedelta"] == 2
    assert set(PRITHVI) == set(found.data_vars)
    assert found["temperature_layer_72"].attrs["units"] == "K"
    assert found["latitude"].values.tolist() == list(np.arange(8) * 22.5 - 90)
    assert np.isfinite(found["2m_temperature"].values).all()


# ------------------------------------------------------------------------------------------------- layers and climates


def test_layers_and_dates_of_geos_files_are_read(place: Path) -> None:
    names = ["temperature_layer_72", "temperature_layer_34", "orography", "surface_pressure"]
    found = open_fields(f"{place}/merra-2/MERRA*.nc", names, latitude="ascending")[0]
    assert found.axis.label(0) == "2020-02-27T00:00"
    assert (found.axis.step_name, len(found)) == ("3 hours", 48)
    assert found.units == dict(zip(names, ("K", "K", "m", "Pa"), strict=True))
    raw = xr.open_dataset(place / "merra-2" / "MERRA_pres_20200228.nc", decode_times=False)["T"]
    surface = xr.open_dataset(place / "merra-2" / "MERRA2_sfc_20200227.nc", decode_times=False)
    state = found.read(9)
    assert np.array_equal(state[0], raw.sel(lev=72)[1])
    assert np.array_equal(state[1], raw.sel(lev=34)[1])
    assert np.allclose(state[2] * GRAVITY, surface["PHIS"], rtol=1e-6)


def test_a_recipe_says_that_levels_are_layers_where_the_file_does_not(place: Path, tmp_path: Path) -> None:
    data = xr.open_dataset(place / "merra-2" / "MERRA_pres_20200228.nc")
    data["lev"].attrs = {}
    data.to_netcdf(tmp_path / "x.nc", engine="netcdf4")
    told = {"lev": Meaning(unit="layer")}
    assert "temperature_72" in look(str(tmp_path / "x.nc"))[0].fields, "pressure, where nothing is said"
    assert "temperature_layer_72" in look(File(str(tmp_path / "x.nc"), told))[0].fields


def files_of(place: Path, **changes: Any) -> ClimatologyFiles:
    grid = Grid(tuple(np.arange(8) * 22.5 - 90), tuple(np.arange(16) * 22.5 - 180))
    pattern = f"{place}/climatology/climate_*_doy{{day:03}}_hour{{hour:02}}.nc"
    return ClimatologyFiles(**{"pattern": pattern, "names": PRITHVI, "grid": grid, **changes})


def axis_of(*times: str) -> Any:
    return time_axis("x", np.array(times, "M8[ns]"), broken="skip")


def test_what_is_usual_is_read_from_the_files_of_the_day_and_hour(place: Path) -> None:
    names = ["temperature_layer_34", "surface_pressure"]
    found = files_of(place).at(axis_of("2021-03-01T06:00"), 0, names)
    vertical = xr.open_dataset(place / "climatology" / "climate_vertical_doy060_hour06.nc")
    surface = xr.open_dataset(place / "climatology" / "climate_surface_doy060_hour06.nc")
    assert np.array_equal(found[0], vertical["T"].sel(lev=34)[:-1])
    assert np.array_equal(found[1], surface["PS"][:-1])
    turned = Grid(tuple(np.arange(8) * 22.5 - 90), tuple(np.arange(16) * 22.5))
    assert np.array_equal(
        np.roll(found, 8, axis=2), files_of(place, grid=turned).at(axis_of("2021-03-01T06:00"), 0, names)
    )


def test_the_last_day_of_a_leap_year_is_that_of_any_year(place: Path) -> None:
    with pytest.raises(InputError, match=r"climate_\*_doy365_hour18.nc: no such file"):
        files_of(place).at(axis_of("2020-12-31T18:00"), 0, PRITHVI)


def test_files_that_are_not_there_are_missed_before_anything_is_trained(place: Path) -> None:
    job = job_of(place, climatology=f"{place}/climatology/climate_surface_doy{{day:02}}1_hour{{hour:02}}.nc")
    with pytest.raises(InputError) as error:
        job.task.prepare(job, fetch)
    assert "climate_surface_doy581_hour00.nc: no such file; near names in" in str(error.value)
    assert "13 of 13 days and hours that were looked for have no files: put them there, or say climatology: all" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("changes", "time", "names", "message"),
    [
        ({}, "2020-03-01T06:30", PRITHVI, "2020-03-01T06:30 is no whole hour, and there are files for those only"),
        ({}, "2020-03-01", ["vorticity_500"], 'no field "vorticity_500"'),
        (
            {"grid": Grid((0.0, 1.0), (0.0,))},
            "2020-03-01",
            PRITHVI,
            "which has not all of 2 x 1 points, latitude 0 to 1",
        ),
    ],
)
def test_what_files_of_a_climatology_do_not_have_is_said(
    place: Path, changes: dict[str, Any], time: str, names: Any, message: str
) -> None:
    with pytest.raises(InputError) as error:
        files_of(place, **changes).at(axis_of(time), 0, names)
    assert message in str(error.value)


def test_what_a_mean_does_not_say_of_itself_is_as_in_the_table(place: Path, tmp_path: Path) -> None:
    for kind in ("surface", "vertical"):
        with xr.open_dataset(place / "climatology" / f"climate_{kind}_doy060_hour06.nc") as data:
            bare = data.drop_attrs()
        bare.to_netcdf(tmp_path / f"climate_{kind}_doy060_hour06.nc", engine="netcdf4")
    files = files_of(place, pattern=f"{tmp_path}/climate_*_doy{{day:03}}_hour{{hour:02}}.nc")
    time = axis_of("2021-03-01T06:00")
    assert np.array_equal(files.at(time, 0, PRITHVI), files_of(place).at(time, 0, PRITHVI))


def test_a_climatology_in_another_unit_is_noticed(place: Path, tmp_path: Path) -> None:
    for path in (place / "climatology").glob("*.nc"):
        (tmp_path / path.name).hardlink_to(path)
    for path in tmp_path.glob("climate_surface_*.nc"):
        data = xr.load_dataset(path).drop_attrs()
        path.unlink()
        data.assign(PS=data["PS"] / 100 - 20 * float(data["PS"].std())).to_netcdf(path, engine="netcdf4")
    job = job_of(place, climatology=f"{tmp_path}/climate_*_doy{{day:03}}_hour{{hour:02}}.nc")
    data = job.task.prepare(job, fetch)
    with pytest.raises(InputError, match=r"10 deviations of the data away from its mean: surface_pressure \(2\d\)"):
        job.task.collate(data.train[:1], [0], 0)


def test_a_climatology_with_holes_is_refused(place: Path, tmp_path: Path) -> None:
    data = xr.load_dataset(place / "climatology" / "climate_surface_doy060_hour06.nc")
    data["PS"][2, 3] = np.nan
    data.to_netcdf(tmp_path / "doy060_hour06.nc", engine="netcdf4")
    files = files_of(place, pattern=f"{tmp_path}/doy{{day:03}}_hour{{hour:02}}.nc")
    with pytest.raises(InputError, match="values are missing or not finite in surface_pressure"):
        files.at(axis_of("2021-03-01T06:00"), 0, ["surface_pressure"])


@pytest.mark.parametrize(
    ("climatology", "message"),
    [
        ("week", 'climatology: "week" is not a known grouping'),
        ("c_{day:03}.nc", "names the same files for every day or hour; give {day} and {hour}"),
        ("c_{day}_{hours}.nc", "KeyError('hours') in it; it takes {day} and {hour}"),
        ("c_{day}_{hour:x.nc", "it takes {day} and {hour}"),
    ],
)
def test_another_climatology_is_refused(climatology: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        Forecast(["temperature_500"], lead_hours=[6], climatology=climatology)
    assert message in str(error.value)
