"""Forcings against values that are known without the formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zoo.errors import InputError
from zoo.meteorology import forcings
from zoo.meteorology.grids import Grid
from zoo.meteorology.times import time_axis

# cells of one degree: their middles, and as many longitudes as quarters of an hour
LATITUDES = tuple(np.arange(89.5, -90, -1.0))
GLOBE = Grid(LATITUDES, tuple(np.arange(96) * 3.75))


def daily_mean(day: float) -> Any:
    """Sunlight at each latitude averaged over a day, W m-2: a turn of longitudes is a turn of hours."""
    return forcings.solar_flux(GLOBE, day, 12.0).mean(axis=1)


def row(latitude: float) -> int:
    return int(np.argmin(np.abs(np.array(LATITUDES) - latitude)))


def test_sunlight_over_the_year_and_the_globe_is_a_quarter_of_the_solar_constant() -> None:
    area = np.cos(np.deg2rad(np.array(LATITUDES)))
    means = [np.average(daily_mean(day), weights=area) for day in range(1, 366)]
    # the mean of (r0/r)^2 over a year is 1/sqrt(1 - e^2) = 1.00014 with the eccentricity e = 0.0167
    assert np.mean(means) == pytest.approx(forcings.SOLAR_CONSTANT / 4, rel=5e-4)


def test_the_poles_have_most_at_their_solstice_and_nothing_in_winter() -> None:
    june, december = daily_mean(172), daily_mean(355)
    # S0 sin(23.44 deg) (r0/r)^2, with r0/r of 1/1.0163 at aphelion's side and 1/0.9837 at perihelion's
    assert june[0] == pytest.approx(1361 * np.sin(np.deg2rad(23.44)) / 1.0163**2, rel=5e-3)
    assert december[-1] == pytest.approx(1361 * np.sin(np.deg2rad(23.44)) / 0.9837**2, rel=5e-3)
    assert june[-1] == december[0] == 0
    assert june[0] > june[row(0)]


def test_at_equinox_the_sun_is_over_the_equator_at_noon() -> None:
    grid = Grid((0.0,), (0.0, 180.0))
    noon = forcings.solar_flux(grid, 80, 12.0 + 7.5 / 60)  # the sun is 7.5 minutes late on March 21
    assert noon[0, 0] == pytest.approx(1361 / 0.9962**2, rel=3e-3)  # at 0.9962 astronomical units
    assert noon[0, 1] == 0
    # the daily mean at the equator is S0 / pi (r0/r)^2
    assert daily_mean(80)[row(0)] == pytest.approx(1361 / np.pi / 0.9962**2, rel=3e-3)


@pytest.mark.parametrize(
    ("day", "degrees"), [(172, 23.44), (355, -23.44), (80, 0.0), (266, 0.0), (36, -16.0), (219, 16.4)]
)
def test_declination(day: int, degrees: float) -> None:
    angle = forcings.year_angle(day, 12.0)
    assert np.rad2deg(forcings.declination(angle)) == pytest.approx(degrees, abs=0.5)


@pytest.mark.parametrize(("day", "minutes"), [(42, -14.2), (134, 3.7), (207, -6.5), (307, 16.4)])
def test_extremes_of_the_equation_of_time(day: int, minutes: float) -> None:
    angle = forcings.year_angle(day, 12.0)
    assert float(forcings.equation_of_time(angle)) / (2 * np.pi) * 1440 == pytest.approx(minutes, abs=0.5)


def test_noon_moves_west_by_fifteen_degrees_an_hour() -> None:
    grid = Grid((10.0,), tuple(np.arange(360.0)))
    brightest = [int(np.argmax(forcings.solar_flux(grid, 105, hour))) for hour in (0.0, 6.0, 12.0, 18.0)]
    # April 15: the equation of time is zero
    for found, expected in zip(brightest, (180, 90, 0, 270), strict=True):
        assert min(abs(found - expected), 360 - abs(found - expected)) <= 1


def test_accumulated_sunlight_is_the_integral_of_the_flux() -> None:
    grid = Grid((45.0, -45.0), (0.0, 90.0, 200.0))
    for hours in (1.0, 6.0):
        fine = np.linspace(10 - hours, 10, 4001)
        fine = (fine[1:] + fine[:-1]) / 2
        exact = np.mean([forcings.solar_flux(grid, 200, t) for t in fine], axis=0) * hours * 3600
        found = forcings.incident_solar_radiation(grid, 200, 10.0, hours=hours)
        np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1.0)


def test_fields_of_forcings() -> None:
    axis = time_axis("f", np.array(["2001-01-01T00", "2001-01-01T06", "2001-01-01T12"], "datetime64[ns]"))
    grid = Grid((30.0, -30.0), (0.0, 90.0, 180.0, 270.0))
    found = forcings.forcing_fields(list(forcings.FORCINGS), axis, 1, grid)
    assert found.shape == (5, 2, 4)
    assert found.dtype == np.float32
    angle = 2 * np.pi * 0.25 / 365.2425
    np.testing.assert_allclose(found[0], np.sin(angle), rtol=1e-5)
    np.testing.assert_allclose(found[1], np.cos(angle), rtol=1e-5)
    # six hours UTC are six o'clock at 0 degrees, noon at 90 east, midnight at 270
    np.testing.assert_allclose(found[2], [[1, 0, -1, 0]] * 2, atol=1e-6)
    np.testing.assert_allclose(found[3], [[0, -1, 0, 1]] * 2, atol=1e-6)
    assert found[4][:, 1].min() > 2e6
    assert found[4][:, 3].max() == 0
    with pytest.raises(InputError, match=r'forcings: "sun" is not a known forcing.* \(known: day_progress_cos, '):
        forcings.forcing_fields(["sun"], axis, 0, grid)


@pytest.mark.parametrize(("calendar", "days"), [("360_day", 360.0), ("noleap", 365.0), ("standard", 365.2425)])
def test_lengths_of_years(calendar: str, days: float) -> None:
    assert forcings.year_length(calendar) == days
