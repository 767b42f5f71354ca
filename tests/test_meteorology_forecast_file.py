"""Forecast datasets: WeatherBench 2's layout, written part by part, whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from zoo.errors import InputError, ZooError
from zoo.meteorology.forecast_file import check_forecast, forecast_dataset, read_forecast
from zoo.meteorology.forecast_writer import ForecastWriter, write_forecast

NAMES = ["geopotential_500", "temperature_500", "geopotential_850", "temperature_850", "2m_temperature"]
LATITUDES, LONGITUDES = np.linspace(-80, 80, 5), np.arange(0, 360, 45.0)
STARTS = pd.date_range("2001-01-01", periods=4, freq="12h")


def forecast(starts=STARTS, leads=(6, 24), members: int = 0, names=NAMES, seed: int = 0, **more) -> xr.Dataset:
    shape = (len(starts), len(leads), *([members] if members else []), len(names), len(LATITUDES), len(LONGITUDES))
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return forecast_dataset(
        names, values, starts=starts, lead_hours=leads, latitudes=LATITUDES, longitudes=LONGITUDES, **more
    )


def in_units(dataset: xr.Dataset, units: str) -> xr.Dataset:
    changed = dataset.copy()
    for name in changed.data_vars:
        changed[name].attrs = {**changed[name].attrs, "units": units}
    return changed


def parts(dataset: xr.Dataset, size: int) -> list[xr.Dataset]:
    return [dataset.isel(time=slice(i, i + size)) for i in range(0, dataset.sizes["time"], size)]


def test_fields_of_a_variable_are_levels_of_one_array():
    shape = (len(STARTS), 2, len(NAMES), 5, 8)
    values = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    found = forecast_dataset(
        NAMES, values, starts=STARTS, lead_hours=[6, 24], latitudes=LATITUDES, longitudes=LONGITUDES
    )
    assert found["geopotential"].dims == ("time", "prediction_timedelta", "level", "latitude", "longitude")
    np.testing.assert_array_equal(found["temperature"].sel(level=850), values[:, :, 3])
    np.testing.assert_array_equal(found["2m_temperature"], values[:, :, 4])
    assert found["geopotential"].attrs["units"] == "m2 s-2"
    assert found["geopotential"].attrs["standard_name"] == "geopotential"
    assert found["prediction_timedelta"].values.tolist() == [6 * 3600 * 10**9, 24 * 3600 * 10**9]


def test_fields_on_other_levels_stay_as_they_are():
    found = forecast(names=["geopotential_500", "temperature_850"])
    assert sorted(found.data_vars) == ["geopotential_500", "temperature_850"]
    assert found["temperature_850"].attrs == {
        "units": "K", "long_name": "temperature", "standard_name": "air_temperature", "level_hPa": 850,
    }  # fmt: skip
    assert "level" not in found.dims


def test_fields_without_a_known_unit_need_one():
    with pytest.raises(InputError, match='"mystery" is not in the table of names, so its unit must be given'):
        forecast(names=["mystery"])
    assert forecast(names=["mystery"], units={"mystery": "Bq"})["mystery"].attrs["units"] == "Bq"


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"values of shape \(4, 2, 1, 5, 8\) for 4 starts, 3 lead times, 1 fields"):
        forecast_dataset(
            ["2m_temperature"], np.zeros((4, 2, 1, 5, 8)), starts=STARTS, lead_hours=[1, 2, 3],
            latitudes=LATITUDES, longitudes=LONGITUDES,
        )  # fmt: skip
    with pytest.raises(InputError, match=r"2 fields \(1 different\)"):
        forecast(names=["2m_temperature", "2m_temperature"])


@pytest.mark.parametrize("members", [0, 3])
@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_what_is_written_part_by_part_is_read_back_whole(tmp_path: Path, suffix: str, members: int):
    dataset = forecast(members=members, attributes={"title": "test"})
    path = write_forecast(tmp_path / f"forecast{suffix}", parts(dataset, 1) if members else parts(dataset, 3))
    found = read_forecast(path)
    xr.testing.assert_equal(found, dataset)
    assert found["temperature"].attrs == dataset["temperature"].attrs
    assert found["temperature"].dtype == np.float32
    assert found.attrs["title"] == "test"
    assert found["latitude"].attrs["units"] == "degrees_north"
    assert found["time"].attrs["standard_name"] == "forecast_reference_time"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_others_read_dates_and_lead_times(tmp_path: Path, suffix: str):
    dataset = forecast()
    path = write_forecast(tmp_path / f"forecast{suffix}", [dataset])
    plain = xr.open_dataset(path, decode_timedelta=True, engine="zarr" if suffix == ".zarr" else "netcdf4")
    assert plain["time"].values.tolist() == dataset["time"].values.tolist()
    assert plain["prediction_timedelta"].values.tolist() == dataset["prediction_timedelta"].values.tolist()


def test_lead_times_that_are_no_whole_hours_are_kept(tmp_path: Path):
    path = write_forecast(tmp_path / "forecast.nc", [forecast(leads=(0.25, 1.5))])
    minutes = read_forecast(path)["prediction_timedelta"] / np.timedelta64(1, "m")
    assert minutes.values.tolist() == [15, 90]


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@pytest.mark.parametrize("size", [1, 2])
def test_members_are_written_one_after_the_other(tmp_path: Path, suffix: str, size: int):
    dataset = forecast(members=5)
    pieces = [
        dataset.isel(time=[i], number=slice(first, first + size)) for i in range(4) for first in range(0, 5, size)
    ]
    path = write_forecast(tmp_path / f"forecast{suffix}", pieces)
    found = read_forecast(path)
    xr.testing.assert_equal(found, dataset)
    assert found["temperature"].attrs == dataset["temperature"].attrs
    chunks = found["temperature"].encoding["chunksizes" if suffix == ".nc" else "chunks"]
    assert chunks == (1, 1, 1, *found["temperature"].shape[3:]), "each member can be read alone"
    plain = xr.open_dataset(path, decode_timedelta=True, engine="zarr" if suffix == ".zarr" else "netcdf4")
    xr.testing.assert_equal(plain, dataset)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([(0, [0, 1]), (0, [1, 2])], "member 1 of 2001-01-01.* after 1; write them in order"),
        ([(0, [0, 1]), (1, [0])], "2001-01-01T12.* has 1 members, and the first start 2; write all members of each"),
        ([(0, [0, 1]), (1, [0]), (2, [0])], "2001-01-01T12.* has 1 members, and the first start 2; write all members"),
        ([(0, [0, 1]), (1, [1])], r"members \[1\] of 2001-01-01T12.*, where \[0, 1\] of those of the first start come"),
        ([(0, [0, 1]), (1, [0]), (1, [2])], r"members \[2\] of 2001-01-01T12.*, where \[1\] of those of the first"),
        (
            [(0, [0, 1]), (1, [0, 1]), (1, [2])],
            r"members \[2\] of .*, where \[\] of those of the first start come next",
        ),
        ([(0, [0, 1]), (1, [0, 1]), (0, [2])], "starts at 2001-01-01T00.* after 2001-01-01T12.*; write them in order"),
        ([(0, [0]), (slice(0, 2), [1])], "starts at 2001-01-01T00.* after 2001-01-01T00.*; write them in order"),
    ],
)
def test_members_that_do_not_come_next_are_refused(tmp_path: Path, pieces, message: str):
    whole = forecast(members=3)
    parts = [whole.isel(time=[i] if isinstance(i, int) else i, number=numbers) for i, numbers in pieces]
    with pytest.raises(InputError, match=message):
        write_forecast(tmp_path / "forecast.nc", parts)
    assert list(tmp_path.iterdir()) == []


def test_members_are_called_number(tmp_path: Path):
    dataset = forecast(members=2).rename(number="realization")
    assert read_forecast(write_forecast(tmp_path / "forecast.nc", [dataset]))["temperature"].sizes["number"] == 2


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_writer_that_is_interrupted_leaves_nothing(tmp_path: Path, suffix: str):
    path = tmp_path / f"forecast{suffix}"

    def interrupted():
        yield forecast(STARTS[:2])
        assert list(tmp_path.iterdir()) != [path]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_forecast(path, interrupted())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_writer_that_is_killed_leaves_no_forecast_and_the_old_one(tmp_path: Path, suffix: str):
    path = write_forecast(tmp_path / f"forecast{suffix}", [forecast(seed=1)])
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_meteorology_forecast_file import forecast\n"
        "from zoo.meteorology.forecast_writer import ForecastWriter\n"
        "with ForecastWriter(sys.argv[2], overwrite=True) as writer:\n"
        "    writer.append(forecast(seed=2))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, os.path.dirname(__file__), str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    xr.testing.assert_equal(read_forecast(path), forecast(seed=1))


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_forecast_is_replaced_only_when_asked(tmp_path: Path, suffix: str):
    path = write_forecast(tmp_path / f"forecast{suffix}", [forecast(seed=1)])
    with pytest.raises(InputError, match="exists already; give another name, or overwrite it"):
        write_forecast(path, [forecast(seed=2)])
    write_forecast(path, [forecast(seed=2)], overwrite=True)
    xr.testing.assert_equal(read_forecast(path), forecast(seed=2))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (forecast(STARTS[:1]), "starts at 2001-01-01.* after .*; write them in order"),
        (forecast(STARTS[2:], leads=(6, 12)), "prediction_timedelta differs from that of the parts before"),
        (forecast(STARTS[2:], members=2), "number differs|is K"),
        (forecast(STARTS[2:]).drop_vars("temperature"), r"variables \['2m_temperature', 'geopotential'\] after"),
        (
            in_units(forecast(STARTS[2:]), "degC"),
            "temperature is degC .* before it was K",
        ),
    ],
)
def test_parts_that_differ_are_refused_and_nothing_is_left(tmp_path: Path, second: xr.Dataset, message: str):
    with pytest.raises(InputError, match=message):
        write_forecast(tmp_path / "forecast.nc", [forecast(STARTS[:2]), second])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_xarray_reads_leads_as_times(tmp_path: Path, ending: str):
    path = write_forecast(tmp_path / f"forecast.{ending}", [forecast()])
    with xr.open_dataset(path, engine="zarr" if ending == "zarr" else None) as found:
        np.testing.assert_array_equal(found["prediction_timedelta"], forecast()["prediction_timedelta"])
        assert found["prediction_timedelta"].dtype.kind == "m"


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path):
    mine = tmp_path / "mine.zarr"
    mine.mkdir()
    (mine / "thesis.txt").write_text("hi")
    with pytest.raises(InputError, match=r"mine.zarr: is a folder that holds no forecast, and is not replaced"):
        write_forecast(mine, [forecast()], overwrite=True)
    assert (mine / "thesis.txt").read_text() == "hi"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.zarr"]
    for _ in range(2):
        write_forecast(tmp_path / "forecast.zarr", [forecast()], overwrite=True)


def test_a_writer_says_what_it_cannot_write(tmp_path: Path):
    with pytest.raises(InputError, match=r"ends in \.nc \(NetCDF\) or \.zarr"):
        ForecastWriter(tmp_path / "forecast.grib")
    with pytest.raises(InputError, match="no forecasts to write"):
        write_forecast(tmp_path / "forecast.nc", [])
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match=r"the forecast cannot be written \(.*\); nothing was left there"):
        write_forecast(tmp_path / "file" / "forecast.nc", [forecast()])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.isel(time=0), 'forecast: no dimension "time"'),
        (lambda d: d.expand_dims(step=2), 'dimension "step" is none of time'),
        (lambda d: d.isel(time=[1, 0]), "time is not in increasing order"),
        (lambda d: d.isel(time=[]), "time is empty: there are no forecasts"),
        (lambda d: d.assign_coords(prediction_timedelta=[6, 24]), "prediction_timedelta has int64, not time diff"),
        (
            lambda d: d.assign_coords(prediction_timedelta=d.prediction_timedelta - np.timedelta64(7, "h")),
            "begins before",
        ),
        (lambda d: d.assign_coords(latitude=d.latitude + 20), "latitudes are not all from -90 to 90"),
        (lambda d: in_units(d, ""), 'temperature has no units; set its attribute "units"'),
        (
            lambda d: d.assign(extra=("time", np.zeros(4), {"units": "1"})),
            "extra lacks dimensions latitude, longitude, pre",
        ),
        (lambda d: d.drop_vars(list(d.data_vars)), "no variables"),
    ],
)
def test_what_is_no_forecast_says_why(change, message: str):
    with pytest.raises(InputError, match=message):
        check_forecast(change(forecast()))


def test_reading_says_what_is_wrong(tmp_path: Path):
    with pytest.raises(InputError, match="no such file or folder"):
        read_forecast(tmp_path / "none.nc")
    other = tmp_path / "other.nc"
    forecast().assign_coords(prediction_timedelta=("prediction_timedelta", [1, 2], {"units": "fortnights"})).to_netcdf(
        other
    )
    with pytest.raises(InputError, match='prediction_timedelta is in "fortnights"; expected one of hours'):
        read_forecast(other)
    state = tmp_path / "state.nc"
    forecast().isel(prediction_timedelta=0, drop=True).to_netcdf(state)
    with pytest.raises(InputError, match='no dimension "prediction_timedelta"'):
        read_forecast(state)
