"""Statistics and climatologies: equal to what numpy says of all values at once, of training times only."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from gridded import LATITUDES, LONGITUDES, dataset, dates, write, z_files

from zoo.errors import InputError
from zoo.meteorology import blocks
from zoo.meteorology.climatology import (
    Climatology,
    load_climatology,
    measure_climatology,
    save_climatology,
)
from zoo.meteorology.fields import Fields
from zoo.meteorology.files import File, Meaning
from zoo.meteorology.source import open_fields
from zoo.meteorology.statistics import Statistics, load_statistics, measure, save_statistics
from zoo.meteorology.times import time_axis

NAMES = ["temperature_500", "2m_temperature"]


def noise(path: Path, times: Any, offset: float = 0.0) -> Fields:
    """Random fields far from zero, where the naive formula for a variance would cancel."""
    data = dataset(times)
    draw = np.random.default_rng(5)
    data["t"] = data["t"].copy(data=5e5 + offset + draw.normal(size=data["t"].shape) * np.arange(1, 4)[:, None, None])
    data["t2m"] = data["t2m"].copy(data=draw.normal(3, 2, size=data["t2m"].shape))
    (fields,) = open_fields(write(path, data), NAMES)
    return fields


@pytest.fixture
def fields(tmp_path: Path) -> Fields:
    return noise(tmp_path / "a.nc", dates(200))


@pytest.fixture(scope="module")
def z500() -> Fields:
    file = File(z_files()[500], {"hgt": Meaning(level=500, unit="gpm")})
    return open_fields(file, ["geopotential_500"])[0]


TRAIN = np.arange(150)


def test_plain_statistics_are_those_of_all_training_values_at_once(fields: Fields) -> None:
    found = measure([fields], [TRAIN])
    values = fields.read(TRAIN).astype(np.float64)
    np.testing.assert_allclose(found.mean, values.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(found.std, values.std(axis=(0, 2, 3)), rtol=1e-9)
    assert (found.names, found.count, found.weighting, found.difference_steps) == (tuple(NAMES), 150, "plain", 0)


def test_area_weights_count_points_by_their_cells(fields: Fields) -> None:
    found = measure([fields], [TRAIN], weighting="area")
    values = fields.read(TRAIN).astype(np.float64)
    bounds = np.deg2rad([90, 45, 0, -45, -90])
    area = np.diff(np.sin(bounds[::-1]))[::-1] / 2
    mean = np.einsum("tvhw,h->v", values, area) / (150 * 8)
    variance = np.einsum("tvhw,h->v", (values - mean[:, None, None]) ** 2, area) / (150 * 8)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, np.sqrt(variance), rtol=1e-9)


def test_times_outside_of_training_change_nothing(tmp_path: Path) -> None:
    one = noise(tmp_path / "a.nc", dates(200))
    data = xr.open_dataset(tmp_path / "a.nc").load()
    data["t"][150:] = np.nan
    data["t2m"][150:] = 1e9
    (other,) = open_fields(write(tmp_path / "b.nc", data), NAMES)
    for steps in (0, 4):
        first, second = (measure([f], [TRAIN], difference_steps=steps) for f in (one, other))
        np.testing.assert_array_equal(first.mean, second.mean)
        np.testing.assert_array_equal(first.std, second.std)
    months = [measure_climatology([f], [TRAIN], grouping="month").mean for f in (one, other)]
    np.testing.assert_array_equal(*months)


def test_differences_over_an_interval_use_pairs_of_training_times(fields: Fields) -> None:
    found = measure([fields], [TRAIN], difference_steps=4)
    values = fields.read(TRAIN).astype(np.float64)
    differences = values[4:] - values[:-4]
    np.testing.assert_allclose(found.mean, differences.mean(axis=(0, 2, 3)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.std, differences.std(axis=(0, 2, 3)), rtol=1e-9)
    assert (found.count, found.difference_steps) == (146, 4)


def test_a_gap_makes_no_pair(tmp_path: Path) -> None:
    data = dataset(np.delete(dates(20), [7, 8]))
    (fields,) = open_fields(write(tmp_path / "a.nc", data), NAMES, broken="skip")
    assert measure([fields], [range(18)], difference_steps=1).count == 20 - 1 - 3
    assert measure([fields], [range(18)], difference_steps=3).count == 20 - 3 - 4


def test_several_series_are_one_population(tmp_path: Path) -> None:
    one, other = noise(tmp_path / "a.nc", dates(50)), noise(tmp_path / "b.nc", dates(30), offset=100.0)
    found = measure([one, other], [range(50), range(30)], names=["temperature_500"])
    values = np.concatenate([f.read(slice(None), ["temperature_500"]) for f in (one, other)]).astype(np.float64)
    np.testing.assert_allclose(found.mean, values.mean(), rtol=1e-12)
    np.testing.assert_allclose(found.std, values.std(), rtol=1e-9)


def test_memory_does_not_grow_with_the_number_of_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SMALLEST_READ", "_READ_AHEAD"):
        monkeypatch.setattr(blocks, name, 2**14)
    peaks = []
    for count in (200, 2000):
        fields = noise(tmp_path / f"{count}.nc", dates(count))
        fields._reader = blocks.Reader(fields._reader.handles, 2**15)
        measure([fields], [range(10)])
        tracemalloc.start()
        measure([fields], [range(count)])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert 2000 * 2 * 32 * 4 > 2**18  # bytes, what keeping it all would add
    assert peaks[1] < peaks[0] + 2**18


def test_normalising_and_back(fields: Fields) -> None:
    found = measure([fields], [TRAIN])
    values = fields.read(TRAIN)
    normal = found.normalise(values)
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal.mean(axis=(0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(normal.std(axis=(0, 2, 3)), 1, rtol=1e-3)
    np.testing.assert_allclose(found.denormalise(normal), values, rtol=1e-6)
    one = found.of(["2m_temperature"])
    np.testing.assert_array_equal(one.normalise(values[:, 1:]), normal[:, 1:])
    with pytest.raises(InputError, match=r'statistics: "q_500" is not a known field'):
        found.of(["q_500"])


def test_a_field_that_never_varies_cannot_be_normalised() -> None:
    flat = Statistics(("a", "b"), np.zeros(2), np.array([1.0, 0.0]), 3)
    with pytest.raises(
        InputError, match="statistics: b never varies in training, so it cannot be normalised; leave it out"
    ):
        flat.normalise(np.zeros((2, 1, 1)))
    with pytest.raises(InputError, match="statistics: 1 names, 2 means, 2 deviations"):
        Statistics(("a",), np.zeros(2), np.zeros(2), 3)


def test_statistics_survive_a_file_and_json(tmp_path: Path, fields: Fields) -> None:
    found = measure([fields], [TRAIN], weighting="area", difference_steps=2)
    save_statistics(tmp_path / "s.npz", found)
    for again in (load_statistics(tmp_path / "s.npz"), Statistics.from_json(json.loads(json.dumps(found.to_json())))):
        np.testing.assert_array_equal(again.mean, found.mean)
        np.testing.assert_array_equal(again.std, found.std)
        assert again.to_json() == found.to_json()
    assert [p.name for p in tmp_path.iterdir()].count("s.npz") == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_files_of_something_else_are_refused(tmp_path: Path, fields: Fields) -> None:
    save_climatology(tmp_path / "c.npz", measure_climatology([fields], [TRAIN]))
    with pytest.raises(InputError, match=r"c\.npz: holds a climatology, not statistics of fields"):
        load_statistics(tmp_path / "c.npz")
    (tmp_path / "d.npz").write_bytes((tmp_path / "c.npz").read_bytes()[:500])
    with pytest.raises(
        InputError, match=r"d\.npz: is not a file of a climatology, or damaged \(.*\); delete it and make it"
    ):
        load_climatology(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", a=np.zeros(3))
    with pytest.raises(InputError, match=r"e\.npz: is not a file of statistics of fields, or damaged"):
        load_statistics(tmp_path / "e.npz")


def test_what_cannot_be_measured_is_an_error(fields: Fields, tmp_path: Path) -> None:
    with pytest.raises(InputError, match='statistics: "cosine" is not a known weighting'):
        measure([fields], [TRAIN], weighting="cosine")
    with pytest.raises(InputError, match="statistics: no training time; give more training data"):
        measure([fields], [[]])
    with pytest.raises(InputError, match="statistics: no pair of training times 10 steps apart"):
        measure([fields], [range(10)], difference_steps=10)
    with pytest.raises(InputError, match="statistics: 1 series, 2 lists of times, difference over 0 steps"):
        measure([fields], [TRAIN, TRAIN])
    (other,) = open_fields(write(tmp_path / "o.nc", dataset(latitudes=LATITUDES * 0.9)), NAMES)
    with pytest.raises(InputError, match=r"statistics: o\.nc is on 4 x 8 .*, and a\.nc on 4 x 8"):
        measure([fields, other], [range(3), range(3)])


# ---------------------------------------------------------------------------------------------------- climatology


def seasonal(path: Path, times: Any) -> Fields:
    """Temperature that is known from day of the year and hour, and a noise that differs between years."""
    data = dataset(times, levels=(500,))
    days = (times - times.astype("datetime64[Y]")) / np.timedelta64(1, "D")
    data["t"] = data["t"].copy(data=np.broadcast_to(days[:, None, None, None], data["t"].shape))
    (fields,) = open_fields(write(path, data), ["temperature_500"])
    return fields


def test_by_day_without_a_window_each_day_and_hour_is_its_own_mean(tmp_path: Path) -> None:
    fields = seasonal(tmp_path / "a.nc", dates(3 * 365 * 2, hours=12))
    found = measure_climatology([fields], [range(len(fields))], window_days=0)
    assert (found.grouping, found.hours, found.window_days) == ("day", (0.0, 12.0), 0)
    for index in (0, 1, 117, 900):
        expected = fields.axis.day_of_year[index] - 1 + fields.axis.hour_of_day[index] / 24
        np.testing.assert_allclose(found.at(fields.axis, index), expected, rtol=1e-6)
    leap = seasonal(tmp_path / "b.nc", dates(2, "2004-12-31", 12))
    with pytest.raises(
        InputError, match=r"climatology: no training time for day 366 of the year at 0 h \(2004-12-31T00:00\)"
    ):
        found.at(leap.axis, 0)


def test_a_window_takes_days_around_across_the_turn_of_the_year(tmp_path: Path) -> None:
    fields = seasonal(tmp_path / "a.nc", dates(365, hours=24))
    found = measure_climatology([fields], [range(365)], window_days=2)
    np.testing.assert_allclose(found.at(fields.axis, 100), 100, rtol=1e-6)  # of 98, 99, 100, 101, 102
    first = np.mean([364, 0, 1, 2])  # day 366 has no data and counts as nothing
    np.testing.assert_allclose(found.at(fields.axis, 0), first, rtol=1e-6)
    assert found.count[:2].tolist() == [4, 4]
    assert found.count[100] == 5


def test_by_month_of_monthly_data(z500: Fields) -> None:
    train = np.flatnonzero(z500.axis.year <= 2010)
    found = measure_climatology([z500], [train])
    assert (found.grouping, found.mean.shape, found.count.tolist()) == ("month", (12, 1, 73, 144), [30] * 12)
    index = int(np.flatnonzero((z500.axis.year == 2020) & (z500.axis.month == 7))[0])
    julys = [int(i) for i in train if z500.axis.month[i] == 7]
    np.testing.assert_allclose(found.at(z500.axis, index), z500.read(julys).mean(axis=0, dtype=np.float64), rtol=1e-6)
    # the known height of 500 hPa over the North Pole in July, about 5470 m, and over the equator, about 5860 m
    heights = found.at(z500.axis, index)[0].mean(axis=1) / 9.80665
    assert 5400 < heights[0] < 5550
    assert 5840 < heights[36] < 5890


def test_without_seasons_there_is_one_mean(fields: Fields) -> None:
    found = measure_climatology([fields], [TRAIN], grouping="all")
    np.testing.assert_allclose(found.at(fields.axis, 190), fields.read(TRAIN).mean(axis=0, dtype=np.float64), rtol=1e-6)


def test_a_climatology_survives_a_file(tmp_path: Path, fields: Fields) -> None:
    found = measure_climatology([fields], [TRAIN], window_days=5)
    save_climatology(tmp_path / "c.npz", found)
    again = load_climatology(tmp_path / "c.npz")
    np.testing.assert_array_equal(again.mean, found.mean)
    np.testing.assert_array_equal(again.at(fields.axis, 20), found.at(fields.axis, 20))
    np.testing.assert_array_equal(again.at(fields.axis, 20, ["2m_temperature"]), found.at(fields.axis, 20)[1:])
    assert isinstance(again, Climatology)
    assert again.names == tuple(NAMES)
    assert again.hours == (0.0, 6.0, 12.0, 18.0)
    with pytest.raises(InputError, match='climatology: "q_500" is not a known field'):
        again.at(fields.axis, 20, ["q_500"])


def test_climatologies_that_cannot_be(fields: Fields) -> None:
    with pytest.raises(InputError, match='climatology: "week" is not a known grouping'):
        measure_climatology([fields], [TRAIN], grouping="week")
    with pytest.raises(InputError, match="climatology: a window of 200 days on either side; give 0 to 182"):
        measure_climatology([fields], [TRAIN], window_days=200)
    with pytest.raises(InputError, match="climatology: no training times; give a list of times for each series"):
        measure_climatology([fields], [[]])
    winter = measure_climatology([fields], [TRAIN], grouping="month")
    summer = time_axis("f", dates(2, "2001-07-01"))
    with pytest.raises(
        InputError, match=r"climatology: no training time for month 7 \(2001-07-01T00:00\); train on whole y"
    ):
        winter.at(summer, 0)


def test_a_grid_of_the_dataset_is_that_of_the_fields(fields: Fields) -> None:
    assert fields.grid.latitudes == tuple(LATITUDES)
    assert fields.grid.longitudes == tuple(LONGITUDES)
