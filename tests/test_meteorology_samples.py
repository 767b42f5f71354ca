"""Samples: parts that nothing crosses, leads, gaps, and states that are in two parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from gridded import LATITUDES, LONGITUDES, dataset, dates, expected, write

from zoo.domain import datasets
from zoo.errors import InputError
from zoo.meteorology.fields import Fields
from zoo.meteorology.leaks import find_leaks
from zoo.meteorology.samples import (
    PARTS,
    Samples,
    Window,
    lead_range,
    make_samples,
    parts_by_fractions,
    parts_by_series,
    parts_by_years,
    read_sample,
)
from zoo.meteorology.source import open_fields
from zoo.meteorology.times import TimeAxis, time_axis
from zoo.weights import fetch


def axis(count: int, *, start: str = "2001-01-01", without: tuple[int, ...] = (), hours: int = 6) -> TimeAxis:
    return time_axis("f", np.delete(dates(count, start, hours), without), broken="skip")


def samples_of(
    axes: list[TimeAxis], window: Window, fractions: Any = (0.6, 0.2, 0.2), **options: Any
) -> dict[str, Samples]:
    return make_samples(axes, parts_by_fractions(axes, fractions), window, **options)


WINDOWS = [
    Window(),
    Window(leads=(4,)),
    Window(leads=(1, 3), history=2),
    Window(leads=(2,), history=3, every=2, rollout=3),
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_everything_that_a_sample_touches_is_in_its_own_part(window: Window) -> None:
    one = axis(100)
    parts = parts_by_fractions([one], (0.6, 0.2, 0.2))
    found = make_samples([one], parts, window)
    for code, part in enumerate(PARTS):
        for number in range(len(found[part])):
            for lead in window.leads:
                given, wanted = found[part].indices(number, lead)
                assert len(given) == window.history
                assert given[-1] == found[part].start[number]
                assert len(wanted) == window.rollout
                assert all(parts[0][index] == code for index in (*given, *wanted))
                hours = one.hours[wanted] - one.hours[given[-1]]
                assert hours.tolist() == [6 * lead * k for k in range(1, window.rollout + 1)]
    times = {part: {index for _, index in found[part].states()} for part in PARTS}
    assert not times["train"] & times["valid"]
    assert not times["valid"] & times["test"]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_every_initial_time_is_a_sample_or_is_counted(window: Window) -> None:
    found = samples_of([axis(100)], window)
    span = window.touched[-1] - window.touched[0]
    for part, size in zip(PARTS, (60, 20, 20), strict=True):
        assert len(found[part]) + sum(found[part].lost.values()) == size
        assert len(found[part]) == size - span
    assert found["train"].lost["across a boundary of parts"] == window.touched[-1]
    assert found["test"].lost["across a boundary of parts"] == -window.touched[0]
    assert found["test"].lost["at the ends of the data"] == window.touched[-1]


def test_gaps_and_unreadable_times_cost_the_samples_that_touch_them() -> None:
    one = axis(50, without=(10, 11))
    found = samples_of([one], Window(leads=(1,)), (1.0, 0.0, 0.0), unreadable=[{30}])
    assert found["train"].lost == {"at gaps in time": 1, "at the ends of the data": 1, "touching unreadable times": 2}
    touched = {index for _, index in found["train"].states()}
    assert 30 not in touched
    for number in range(len(found["train"])):
        (given,), (wanted,) = found["train"].indices(number, 1)
        assert one.hours[wanted] - one.hours[given] == 6


def test_the_same_time_is_in_the_same_part_in_every_series() -> None:
    early, late = axis(60), axis(60, start="2001-01-08")
    parts = parts_by_fractions([early, late], (0.5, 0.25, 0.25))
    by_time = {}
    for one, mine in zip((early, late), parts, strict=True):
        for value, part in zip(one.values, mine, strict=True):
            assert by_time.setdefault(value, part) == part
    ordered = [by_time[value] for value in sorted(by_time)]
    assert ordered == sorted(ordered)
    assert [ordered.count(code) for code in range(3)] == [44, 22, 22]


def test_parts_by_years_are_whole_years() -> None:
    one = axis(365 * 4, hours=24)
    (mine,) = parts_by_years([one], {"train": (2001, 2002), "test": (2004, 2004)})
    assert {int(y) for y in one.year[mine == 0]} == {2001, 2002}
    assert {int(y) for y in one.year[mine == 2]} == {2004}
    assert {int(y) for y in one.year[mine == -1]} == {2003}
    found = make_samples([one], [mine], Window(leads=(5,)))
    assert len(found["train"]) == 730 - 5
    assert len(found["valid"]) == 0


@pytest.mark.parametrize(
    ("years", "message"),
    [
        ({"train": (2001, 2003), "test": (2003, 2004)}, r"train \(2001 to 2003\) and test \(2003 to 2004\) overlap"),
        ({"train": (2003, 2001)}, "train from 2003 to 2001 ends before it begins"),
        ({"train": (2001, 2001), "tets": (2002, 2002)}, '"tets" is not one of train, valid, test'),
        ({"test": (2001, 2001)}, r"task: years: no years for train"),
        (
            {"train": (2001, 2002), "test": (2050, 2051)},
            "no time for test from 2050 to 2051; the data is of 2001 to 2004",
        ),
    ],
)
def test_years_that_make_no_split(years: dict[str, tuple[int, int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parts_by_years([axis(365 * 4, hours=24)], years)


def test_fractions_and_series_that_make_no_split() -> None:
    one = axis(10)
    with pytest.raises(
        InputError, match=r"data\.split\.fractions: \[0\.5, 0\.2, 0\.2\]; give shares of train, valid and test"
    ):
        parts_by_fractions([one], (0.5, 0.2, 0.2))
    with pytest.raises(InputError, match=r"data\.split\.fractions: 10 times are too few for valid"):
        parts_by_fractions([one], (0.98, 0.01, 0.01))
    with pytest.raises(InputError, match=r"task: series: \['train', 'rest'\] for 2 series; give train, valid, test or"):
        parts_by_series([one, one], ["train", "rest"])
    with pytest.raises(InputError, match="train at least once"):
        parts_by_series([one, one], ["test", "valid"])
    assert [set(mine.tolist()) for mine in parts_by_series([one, one], ["train", "none"])] == [{0}, {-1}]
    other = time_axis("g", np.array([_day360(i) for i in range(1, 5)]))
    with pytest.raises(InputError, match="series with calendars 360_day, standard cannot be put in one order of time"):
        parts_by_fractions([one, other], (0.6, 0.2, 0.2))


def _day360(day: int) -> Any:
    import cftime

    return cftime.Datetime360Day(2000, 1, day)


def test_a_window_longer_than_the_training_part_says_what_was_lost() -> None:
    message = (
        r"data\.split: no sample for training \(60 across a boundary of parts\); a sample touches steps 0 to 60 "
        "around its initial time: use shorter leads"
    )
    with pytest.raises(InputError, match=message):
        samples_of([axis(121)], Window(leads=(60,)), (60 / 121, 61 / 121, 0.0))


def test_windows_and_ranges_that_make_no_sense() -> None:
    for leads in ((), (0, 1), (1, 1)):
        with pytest.raises(InputError, match=r"leads: .*; give different whole numbers of steps, 1 or more"):
            Window(leads=leads)
    with pytest.raises(InputError, match="history 0, every 1, rollout 1: each is a whole number >= 1"):
        Window(history=0)
    assert lead_range(1, 28, 3) == (1, 4, 7, 10, 13, 16, 19, 22, 25, 28)
    with pytest.raises(InputError, match="leads from 1 to 28 every 2 steps; needed are 1 <= shortest <= longest"):
        lead_range(1, 28, 2)


def test_leads_are_seeded_differ_by_epoch_and_include_the_longest() -> None:
    train = samples_of([axis(3000)], Window(leads=lead_range(1, 28)))["train"]
    first = train.leads(seed=3, epoch=0)
    np.testing.assert_array_equal(first, train.leads(seed=3, epoch=0))
    assert (first != train.leads(seed=3, epoch=1)).any()
    assert (first != train.leads(seed=4, epoch=0)).any()
    counts = np.bincount(first, minlength=29)[1:]
    assert counts.min() > 0
    assert counts[-1] > len(train) / 28 * 0.5
    assert counts.max() < len(train) / 28 * 1.6


@pytest.mark.parametrize("block", [1, 16])
def test_an_order_has_every_sample_once_and_differs_by_epoch(block: int) -> None:
    axes = [axis(700), axis(300, start="2003-01-01")]
    train = samples_of(axes, Window())["train"]
    order = train.order(1, 0, block=block)
    assert sorted(order.tolist()) == list(range(len(train)))
    np.testing.assert_array_equal(order, train.order(1, 0, block=block))
    assert (order != train.order(1, 1, block=block)).any()
    assert (np.diff(order) != 1).mean() > 0.9


def test_a_blocked_order_reads_each_block_in_one_go() -> None:
    train = samples_of([axis(4000)], Window())["train"]
    blocks = train.start[train.order(1, 0, block=16)] // 16
    far = [np.ptp(np.flatnonzero(blocks == block)) for block in np.unique(blocks)]
    assert max(far) < 8 * 16
    plain = train.start[train.order(1, 0)] // 16
    assert np.median([np.ptp(np.flatnonzero(plain == block)) for block in np.unique(plain)]) > 1000


def test_a_sample_is_what_the_file_has_at_its_times(tmp_path: Path) -> None:
    series = open_fields(write(tmp_path / "a.nc", dataset(dates(40))), ["temperature_500", "temperature_850", "lsm"])
    window = Window(leads=(1, 4), history=2, rollout=2)
    found = samples_of([series[0].axis], window)["train"]
    one = read_sample(series, found, 3, 4, outputs=["temperature_850"])
    start = int(found.start[3])
    assert one.inputs.shape == (2, 3, 4, 8)
    assert one.targets.shape == (2, 1, 4, 8)
    assert one.hours.tolist() == [24.0, 48.0]
    assert one.time == dates(40)[start]
    np.testing.assert_array_equal(one.inputs[1, 0], expected(6 * start, 500, LATITUDES, LONGITUDES))
    np.testing.assert_array_equal(one.inputs[0, 1], expected(6 * start - 6, 850, LATITUDES, LONGITUDES))
    np.testing.assert_array_equal(one.targets[1, 0], expected(6 * start + 48, 850, LATITUDES, LONGITUDES))
    assert read_sample(series, found, 3).lead == 4


# ---------------------------------------------------------------------------------------------------------- leaks


@pytest.fixture(scope="module")
def scenarios() -> list[Fields]:
    card = datasets()["north_america_scenarios"]
    folder = fetch(card.source)
    return [open_fields(str(folder / file), ["2m_temperature"])[0] for file in card.files.values()]


def test_a_split_by_scenario_leaks_the_common_past_and_removing_it_leaves_none(scenarios: list[Fields]) -> None:
    axes = [one.axis for one in scenarios]
    found = make_samples(axes, parts_by_series(axes, ["train", "test"]), Window(leads=(1,)))
    assert [len(found[part]) for part in PARTS] == [239, 0, 239]
    leaks = find_leaks(scenarios, found)
    assert leaks.states == {("train", "test"): 140}
    assert leaks.examples == {
        ("train", "test"): "A1B_north_america.nc at 1860-06-01T00:00 = E1_north_america.nc at 1860-06-01T00:00"
    }
    assert int(leaks.samples["train"].sum()) == 140
    clean = leaks.remove(found)
    assert len(clean["train"]) == 99
    assert clean["train"].lost["touching states that a later part has too"] == 140
    assert len(clean["test"]) == 239
    assert find_leaks(scenarios, clean).states == {}


def test_a_split_by_time_of_the_scenarios_leaks_nothing_and_counts_what_is_there_twice(scenarios: list[Fields]) -> None:
    axes = [one.axis for one in scenarios]
    found = make_samples(axes, parts_by_fractions(axes, (0.7, 0.1, 0.2)), Window(leads=(1,)))
    leaks = find_leaks(scenarios, found)
    assert leaks.states == {}
    assert leaks.repeated == 140
    assert leaks.remove(found)["train"].start.tolist() == found["train"].start.tolist()


def test_states_that_agree_in_one_field_only_are_no_leak(tmp_path: Path) -> None:
    data = dataset(dates(20))[["t"]]
    other = data.copy(deep=True)
    other["t"][:, 0] += 1  # 850 hPa
    other["t"][5] = data["t"][5]
    series = [
        open_fields(write(tmp_path / f"{name}.nc", one), ["temperature_500", "temperature_850"])[0]
        for name, one in (("a", data), ("b", other))
    ]
    axes = [one.axis for one in series]
    found = make_samples(axes, parts_by_series(axes, ["train", "valid"]), Window(leads=(2,)))
    leaks = find_leaks(series, found)
    assert leaks.states == {("train", "valid"): 1}
    assert np.flatnonzero(leaks.samples["train"]).tolist() == [3, 5]


def test_a_copy_under_other_dates_is_found(tmp_path: Path) -> None:
    data = dataset(dates(20))[["t"]]
    later = data.assign_coords(time=dates(20, "2005-01-01"))
    path = write(tmp_path / "a.nc", xr.concat([data, later], "time"))
    series = open_fields(path, ["temperature_500"], broken="skip")
    found = make_samples(
        [series[0].axis], parts_by_years([series[0].axis], {"train": (2001, 2001), "test": (2005, 2005)}), Window()
    )
    assert find_leaks(series, found).states == {("train", "test"): 20}
