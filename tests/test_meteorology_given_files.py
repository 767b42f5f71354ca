"""Files given to a finished run, other than those of training: at addresses, of other names, with broken times."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import xarray as xr
import yaml
from forecasts import Forecasts, waves
from typer.testing import CliRunner

import zoo
from zoo.cli import app
from zoo.errors import InputError
from zoo.meteorology.forecast_file import read_forecast
from zoo.training.run import train

pytestmark = pytest.mark.usefixtures("traced_once")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Forecasts:
    found = Forecasts(tmp_path_factory.mktemp("given"))
    found.data()
    return found


@pytest.fixture(scope="module")
def run(made: Forecasts) -> Path:
    return train(made.job(climatology="all"), output=made.folder / "run").folder.path


@pytest.fixture
def address() -> Iterator[str]:
    """Of a store with nine states of the test part, as all stores are reached through fsspec."""
    yield written("memory://given/states.zarr", states())
    fsspec.filesystem("memory").rm("/given", recursive=True)


def states() -> xr.Dataset:
    return waves().isel(time=slice(51, 60))


def written(address: str, data: xr.Dataset) -> str:
    data.drop_encoding().to_zarr(address, mode="w", zarr_format=2, consolidated=True)
    return address


def said(*arguments: Any) -> Any:
    """What the command line prints for machines."""
    found = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def refused(*arguments: Any) -> str:
    found = CliRunner().invoke(app, [*map(str, arguments)])
    assert isinstance(found.exception, InputError), found.output
    return str(found.exception)


# ---------------------------------------------------------------------------------------------------------- addresses


def test_stores_at_addresses_are_forecast_from_and_scored(made: Forecasts, run: Path, address: str) -> None:
    here = made.data(states(), "states.nc")
    for source, name in ((here, "here.nc"), (address, "there.nc")):
        assert said("predict", run, source, "-o", made.folder / name)["rows"] == 9
    one, other = (read_forecast(made.folder / name) for name in ("here.nc", "there.nc"))
    xr.testing.assert_equal(one, other)
    scored = said("evaluate", run, here, "--forecast", made.folder / "here.nc")
    forecast = written("memory://given/forecast.zarr", one.assign_coords(prediction_timedelta=[6]).load())
    with pytest.raises(InputError, match=r'memory://given/forecast.zarr: prediction_timedelta is in ""; expected one'):
        read_forecast(forecast)
    one["prediction_timedelta"] = ("prediction_timedelta", [6], {"units": "hours"})
    written(forecast, one)
    again = said("evaluate", run, address, "--forecast", forecast)
    assert sorted(again["scores"], key=str) == sorted(scored["scores"], key=str), "a store has another order of names"
    assert (again["truth"], again["forecast"]) == (address, forecast)
    alone = said("evaluate", run, address)
    assert alone == {address: next(iter(said("evaluate", run, here).values()))}
    assert zoo.predict(run, address, made.folder / "called.nc") == (9, 0)


def test_an_address_of_nothing_is_refused_as_it_was_given(made: Forecasts, run: Path, address: str) -> None:
    absent = "memory://given/absent.zarr"
    for arguments in (("predict", run, absent, "-o", made.folder / "x.nc"), ("evaluate", run, absent),
                      ("evaluate", run, address, "--forecast", absent)):  # fmt: skip
        assert f"{absent}: cannot be opened as zarr" in refused(*arguments)


@pytest.mark.parametrize(
    ("address", "instead"),
    [
        ("s3://bucket/x.zarr", "write to this machine, and copy what was written"),
        ("file:///tmp/a%20b/x.zarr", "say /tmp/a b/x.zarr"),
    ],
)
def test_nothing_is_written_to_an_address(
    made: Forecasts, run: Path, address: str, instead: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    source = made.data(states(), "states.nc")
    recipe = made.write()
    for arguments in (
        ("predict", run, source, "-o", address), ("train", recipe, "-o", address),
        ("evaluate", run, source, "--forecast", source, "-o", address),
        ("evaluate", run, source, "--forecast", source, "--plot", address),
    ):  # fmt: skip
        assert refused(*arguments) == f"{address}: nothing is written to an address; {instead}"
    with pytest.raises(InputError, match="nothing is written to an address"):
        zoo.predict(run, source, address)
    assert not list(tmp_path.iterdir()), "nor to a folder of that name"


def test_an_address_on_this_machine_is_not_written_over_while_it_is_read(made: Forecasts, run: Path) -> None:
    store = made.folder / "own.zarr"
    written(str(store), states())
    message = "is the input itself; write the forecast to another file"
    assert message in refused("predict", run, f"file://{store}", "-o", store)
    assert said("predict", run, f"file://{store}", "-o", made.folder / "from_own.nc")["rows"] == 9


# -------------------------------------------------------------------------------------------------------- other names


@pytest.fixture(scope="module")
def told(made: Forecasts) -> Path:
    """A run on files that say little, of which its recipe says the rest."""
    for name, variable, field in (("t500_all", "tt", "t"), ("z500_all", "hgt", "z")):
        made.data(bare(waves(), variable, field), f"{name}.nc")
    files = {
        "t500*.nc": {"tt": {"name": "temperature", "level": 500, "unit": "K"}},
        "z500*.nc": {"hgt": {"name": "geopotential", "level": 500, "unit": "m2 s-2"}},
    }
    job = made.job(data=made.folder / "[tz]500_all.nc", files=files, climatology="all")
    return train(job, output=made.folder / "told").folder.path


def bare(data: xr.Dataset, variable: str, field: str) -> xr.Dataset:
    """One field at 500 hPa, of which nothing is said."""
    found = data[[field]].sel(level=500, drop=True).rename({field: variable})
    found[variable].attrs = {}
    return found


def test_files_of_other_names_than_those_of_training_are_forecast_and_scored(made: Forecasts, told: Path) -> None:
    plain = made.data(states(), "states.nc")
    for name, variable, field in (("t500_new", "tt", "t"), ("z500_new", "hgt", "z")):
        made.data(bare(states(), variable, field), f"{name}.nc")
    half = made.data(xr.merge([bare(states(), "tt", "t"), states()[["z"]].sel(level=[500])]), "t500_half.nc")
    first, *others = (plain, made.folder / "[tz]500_new.nc", half)
    assert said("predict", told, first, "-o", made.folder / "plain.nc")["rows"] == 9
    scored = said("evaluate", told, first, "--forecast", made.folder / "plain.nc")
    alone = next(iter(said("evaluate", told, first).values()))
    for other in others:
        assert said("predict", told, other, "-o", made.folder / "other.nc")["rows"] == 9
        xr.testing.assert_equal(*(read_forecast(made.folder / name) for name in ("plain.nc", "other.nc")))
        again = said("evaluate", told, other, "--forecast", made.folder / "plain.nc")
        assert again["scores"] == scored["scores"]
        assert next(iter(said("evaluate", told, other).values())) == alone


def test_a_run_is_told_anew_what_files_do_not_say_of_themselves(made: Forecasts, run: Path) -> None:
    """Here which of two versions to take, which the files of training did not have."""
    plain = made.data(states(), "plain_states.nc")
    both = xr.concat([waves(seed=1).isel(time=slice(51, 60)), states()], "expver").assign_coords(expver=[1, 5])
    given = made.data(both, "versions_states.nc")
    assert "expver" in refused("predict", run, given, "-o", made.folder / "refused.nc")
    told = ("--set", 'task.forecast.files={"*.nc": {expver: {select: 5}}}')
    said("predict", run, given, "-o", made.folder / "told.nc", *told)
    said("predict", run, plain, "-o", made.folder / "plainly.nc")
    xr.testing.assert_equal(*(read_forecast(made.folder / name) for name in ("told.nc", "plainly.nc")))
    scored = said("evaluate", run, given, "--forecast", made.folder / "told.nc", *told)
    assert scored["scores"] == said("evaluate", run, plain, "--forecast", made.folder / "plainly.nc")["scores"]


def test_in_training_a_pattern_or_a_variable_that_is_not_there_is_an_error(made: Forecasts) -> None:
    told = {"t": {"unit": "K"}}
    with pytest.raises(InputError, match=r"task: files: u500\*.nc: no file of .*waves.nc has such a name"):
        made.prepared(files={"u500*.nc": told, "waves.nc": told}, climatology="all")
    with pytest.raises(InputError, match=r'waves.nc: "tt" is not a known variable of the file'):
        made.prepared(files={"waves.nc": {"tt": {"unit": "K"}}}, climatology="all")


# ------------------------------------------------------------------------------------------------ dimensions and kinds


def test_a_dimension_of_which_one_must_be_chosen_is_chosen_as_the_error_says(made: Forecasts, tmp_path: Path) -> None:
    first, second = waves(), waves(seed=1)
    moving = [one[["t", "z"]] for one in (first, second)]
    source = made.data(xr.concat(moving, "expver").assign_coords(expver=[1, 5]), "versions.nc")
    with pytest.raises(InputError) as error:
        made.prepared(data=source, climatology="all")
    advice = re.search(r"or say in the recipe's task which, for example files: (.*?}}})", str(error.value))
    assert advice is not None, str(error.value)
    assert advice[1] == '{"versions.nc": {expver: {select: 1}}}'
    for files, own in ((yaml.safe_load(advice[1]), first), ({"*.nc": {"expver": {"select": 5}}}, second)):
        task, data = made.prepared(data=source, climatology="all", files=files)
        batch = task.collate(data.test[:1], [0], None)
        start = np.datetime64(data.test[0].text)
        wanted = own["t"].sel(time=start + np.timedelta64(6, "h"), level=500).values
        assert np.array_equal(batch.targets[0, 0, 0].numpy(), wanted)
    with pytest.raises(InputError, match=r"variable t: expver = '1' is not there \(there: 1, 5\)"):
        made.prepared(data=source, climatology="all", files={"*.nc": {"expver": {"select": "1"}}})
    with pytest.raises(InputError, match=r'waves.nc: "expver" is not a known dimension of the file'):
        made.prepared(climatology="all", files={"*.nc": {"expver": {"select": 1}}})


def test_forecasts_are_not_taken_for_states(made: Forecasts, run: Path) -> None:
    source = made.data(states(), "states.nc")
    said("predict", run, source, "-o", made.folder / "said.nc")
    message = "said.nc: holds forecasts (it has a dimension prediction_timedelta), not states; to score them give the"
    assert message in refused("evaluate", run, made.folder / "said.nc")
    assert message in refused("predict", run, made.folder / "said.nc", "-o", made.folder / "again.nc")


# ------------------------------------------------------------------------------------------------------- broken times


def test_times_that_are_left_out_are_counted_and_told_by_reason(made: Forecasts, run: Path) -> None:
    own = states()
    broken = own[["z"]].copy(deep=True)
    broken["z"][4, 0, 0, 0] = np.nan
    twice = [0, 1, 2, 2, 3, 4, 5, 6, 7, 8]
    made.data(own[["t"]].isel(time=twice), "left_t.nc")
    made.data(broken.isel(time=slice(1, 9)), "left_z.nc")  # without the first time
    source, target = made.folder / "left_[tz].nc", made.folder / "left_forecast.nc"
    found = said("predict", run, source, "-o", target)
    assert (found["rows"], found["unreadable"]) == (7, 1)
    assert found["left_out"] == {"there more than once": 1, "that some files lack": 1}
    words = CliRunner().invoke(app, ["predict", str(run), str(source), "-o", str(target)]).output
    others = "1 others could not be read; left out: 1 there more than once; 1 that some files lack"
    assert words == f"{target}: from 7 times; {others}\n"
    scored = ["evaluate", str(run), str(source), "--forecast", str(target)]
    assert said(*scored)["left_out"] == {
        "to times that the truth lacks, beyond its last": 1,
        "from or to times at which values of the truth are missing": 1,
        "times of the truth there more than once": 1,
        "times of the truth that some files lack": 1,
    }
    words = CliRunner().invoke(app, scored).output
    assert "times of the truth left out: 1 (there more than once)" in words
    clean = made.data(own.isel(time=[0, 2, 3]), "gap.nc")  # a gap is no time of the file, and nothing is left out of it
    assert said("predict", run, clean, "-o", target)["left_out"] == {}


def test_names_of_variable_and_level_in_one_are_scored_as_the_fields_of_the_run(made: Forecasts, run: Path) -> None:
    source = made.data(states(), "states.nc")
    said("predict", run, source, "-o", made.folder / "long.nc")
    found = xr.open_dataset(made.folder / "long.nc", decode_timedelta=False).load().sel(level=500, drop=True)
    short = found.drop_encoding().rename(temperature="t500", geopotential="z500")
    short.to_netcdf(made.folder / "short.nc")
    one, other = (said("evaluate", run, source, "--forecast", made.folder / f"{n}.nc") for n in ("long", "short"))
    assert other["scores"] == one["scores"]
    short.rename(z500="z600").to_netcdf(made.folder / "shorter.nc")
    message = refused("evaluate", run, source, "--forecast", made.folder / "shorter.nc")
    assert '"z600" is not a known field of this run' in message


def test_a_recipe_is_told_what_a_short_name_may_mean(made: Forecasts) -> None:
    with pytest.raises(InputError, match=r'no field "z500"; did you mean "geopotential_500"\?'):
        made.prepared(variables=["z500"], climatology="all")
