"""Axes of time: real dates and model calendars, steps of hours and of months."""

from __future__ import annotations

from typing import Any

import cftime
import numpy as np
import pytest

from zoo.errors import InputError
from zoo.meteorology.times import date_label, same_times, sort_times, time_axis


def daily(count: int, start: str = "2019-12-30") -> Any:
    return (np.datetime64(start) + np.arange(count)).astype("datetime64[ns]")


def test_parts_of_dates_over_a_leap_day_and_the_turn_of_the_year() -> None:
    axis = time_axis("f", daily(70))
    assert axis.year[[0, 1, 2, 69]].tolist() == [2019, 2019, 2020, 2020]
    assert axis.day_of_year[[1, 2, 61, 62]].tolist() == [365, 1, 60, 61]
    assert axis.month[[1, 2, 61, 62]].tolist() == [12, 1, 2, 3]
    assert (axis.step, axis.unit, axis.step_name, axis.calendar) == (24, "hours", "24 hours", "standard")
    assert axis.hours[-1] == 69 * 24
    assert axis.slots.tolist() == list(range(70))


def test_months_and_years_are_steps_although_their_hours_differ() -> None:
    months = np.array([f"{2000 + m // 12}-{m % 12 + 1:02}-01" for m in range(30)], "datetime64[ns]")
    axis = time_axis("f", months)
    assert (axis.step, axis.unit, axis.step_name) == (1, "months", "1 month")
    assert axis.slots.tolist() == list(range(30))
    years = time_axis("f", months[::12])
    assert (years.step, years.unit) == (12, "months")
    with pytest.raises(InputError, match="lead of 24 hours: the data has a step of 1 month; give the lead in steps"):
        axis.steps(24)


def test_the_calendar_of_a_climate_model() -> None:
    values = np.array([cftime.Datetime360Day(2000, 1 + i // 30, 1 + i % 30, 12) for i in range(90)])
    axis = time_axis("f", values)
    assert axis.calendar == "360_day"
    assert axis.day_of_year[[0, 30, 89]].tolist() == [1, 31, 90]
    assert (axis.step, axis.unit) == (24, "hours")
    assert axis.hour_of_day[5] == 12
    assert axis.label(59) == "2000-02-30T12:00"


def test_hours_of_a_lead_as_steps() -> None:
    axis = time_axis("f", daily(3))
    assert axis.steps(48) == 2
    with pytest.raises(
        InputError, match=r"lead of 36 hours is no whole number of the data's steps of 24 hours; give a mul"
    ):
        axis.steps(36)
    with pytest.raises(InputError, match="lead of 0 hours"):
        axis.steps(0)
    with pytest.raises(InputError, match="24 hours: the data has one state, and a lead needs two"):
        time_axis("f", daily(1)).steps(24)


def test_the_lattice_goes_through_regular_times_even_where_the_first_is_not() -> None:
    values = daily(6)
    values[0] -= np.timedelta64(5, "h")
    axis = time_axis("f", values, broken="skip")
    assert axis.slots.tolist() == [-1, 0, 1, 2, 3, 4]
    assert axis.notes == {"times off the regular step": 1}


def test_months_with_a_gap() -> None:
    months = np.array([f"2000-{m:02}-01" for m in (1, 2, 3, 6, 7)], "datetime64[ns]")
    with pytest.raises(
        InputError, match=r"f: 1 gaps with 2 missing times, at a step of 1 months; the first is after 2000-03"
    ):
        time_axis("f", months)
    assert time_axis("f", months, broken="skip").slots.tolist() == [0, 1, 2, 5, 6]


def test_sorting_finds_what_is_there_twice() -> None:
    values = daily(4)[[2, 0, 2, 3, 1, 2]]
    order, repeated = sort_times(values)
    assert order.tolist() == [1, 4, 0, 3]
    assert repeated.tolist() == [2, 5]
    assert same_times(values[order], daily(4))
    assert not same_times(values, daily(4))
    assert date_label(values[0]) == "2020-01-01T00:00"
