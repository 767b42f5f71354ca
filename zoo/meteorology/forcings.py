"""What is known of any future time: day of the year, hour of the day, and sunlight at the top of the atmosphere.

Legend of shapes: `H` x `W` grid points (latitude x longitude).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from zoo.errors import InputError, unknown
from zoo.meteorology.grids import Grid
from zoo.meteorology.times import TimeAxis

Array = npt.NDArray[np.float64]
SOLAR_CONSTANT = 1361.0
"""Total solar irradiance at one astronomical unit, W m-2 (Kopp and Lean 2011, doi:10.1029/2010GL045777: 1360.8)."""

_SUBDIVISIONS = 12  # of an interval that sunlight is accumulated over: the error is below 0.1 % for one hour


def year_length(calendar: str) -> float:
    """Days of a mean year of a calendar."""
    return {"360_day": 360.0, "noleap": 365.0, "365_day": 365.0, "all_leap": 366.0, "366_day": 366.0}.get(
        calendar, 365.2425
    )


def year_angle(day_of_year: npt.ArrayLike, hour: npt.ArrayLike, days: float = 365.2425) -> Array:
    """How far the year has gone, in radians: 0 at the beginning of January 1 (day of the year 1, hour 0)."""
    day, hours = np.asarray(day_of_year, dtype=np.float64), np.asarray(hour, dtype=np.float64)
    return np.asarray(2 * np.pi * (day - 1 + hours / 24) / days)


def declination(angle: npt.ArrayLike) -> Array:
    """Declination of the sun in radians at an angle of the year (Spencer 1971, Search 2 (5), 172)."""
    a = np.asarray(angle, dtype=np.float64)
    return np.asarray(
        0.006918 - 0.399912 * np.cos(a) + 0.070257 * np.sin(a) - 0.006758 * np.cos(2 * a) + 0.000907 * np.sin(2 * a)
        - 0.002697 * np.cos(3 * a) + 0.00148 * np.sin(3 * a)
    )  # fmt: skip


def distance_factor(angle: npt.ArrayLike) -> Array:
    """(Mean distance over distance to the sun) squared at an angle of the year (Spencer 1971)."""
    a = np.asarray(angle, dtype=np.float64)
    return np.asarray(
        1.00011 + 0.034221 * np.cos(a) + 0.00128 * np.sin(a) + 0.000719 * np.cos(2 * a) + 0.000077 * np.sin(2 * a)
    )


def equation_of_time(angle: npt.ArrayLike) -> Array:
    """True less mean solar time, in radians of the hour angle (Spencer 1971)."""
    a = np.asarray(angle, dtype=np.float64)
    return np.asarray(
        0.000075 + 0.001868 * np.cos(a) - 0.032077 * np.sin(a) - 0.014615 * np.cos(2 * a) - 0.040849 * np.sin(2 * a)
    )


def solar_flux(grid: Grid, day_of_year: float, hour: float, days: float = 365.2425) -> Array:
    """Sunlight that arrives at the top of the atmosphere at an instant (UTC), W m-2: (H W); 0 at night.

    S0 (r0/r)^2 max(0, sin lat sin decl + cos lat cos decl cos h), with the hour angle h from the longitude, the hour
    and the equation of time (Spencer 1971 as in Iqbal 1983, An Introduction to Solar Radiation, section 1.5).
    """
    angle = year_angle(day_of_year, hour, days)
    latitude, longitude = (np.deg2rad(np.array(axis)) for axis in (grid.latitudes, grid.longitudes))
    sun = declination(angle)
    hour_angle = longitude + 2 * np.pi * (hour - 12) / 24 + equation_of_time(angle)
    height = np.sin(latitude)[:, None] * np.sin(sun) + np.cos(latitude)[:, None] * np.cos(sun) * np.cos(hour_angle)
    return np.asarray(SOLAR_CONSTANT * distance_factor(angle) * np.maximum(height, 0.0))


def incident_solar_radiation(
    grid: Grid, day_of_year: float, hour: float, *, hours: float = 1.0, days: float = 365.2425
) -> Array:
    """Sunlight at the top of the atmosphere over the `hours` before a time, J m-2: (H W); ERA5's has one hour."""
    steps = max(round(_SUBDIVISIONS * hours), 1)
    ends = hour - hours * (np.arange(steps) + 0.5) / steps
    total = np.zeros(grid.shape)
    for instant in ends:
        total += solar_flux(grid, day_of_year, float(instant), days)
    return total * (hours * 3600 / steps)


FORCINGS = {
    "year_progress_sin": "1", "year_progress_cos": "1", "day_progress_sin": "1", "day_progress_cos": "1",
    "toa_incident_solar_radiation": "J m-2",
}  # fmt: skip
"""What `forcing_fields` makes, with units. Progress of the day is that of local mean solar time, as in GraphCast."""


def forcing_fields(
    names: Sequence[str], axis: TimeAxis, index: int, grid: Grid, *, solar_hours: float = 1.0
) -> npt.NDArray[np.float32]:
    """Forcings at a time: (F H W), in the order of `names`. Raises `InputError` for names that are not `FORCINGS`."""
    problems = [unknown("forcings", "forcing", name, FORCINGS) for name in names if name not in FORCINGS]
    if problems:
        raise InputError(problems)
    day, hour, days = float(axis.day_of_year[index]), float(axis.hour_of_day[index]), year_length(axis.calendar)
    found = np.empty((len(names), *grid.shape), dtype=np.float32)
    local = 2 * np.pi * hour / 24 + np.deg2rad(np.array(grid.longitudes))
    for i, name in enumerate(names):
        if name == "toa_incident_solar_radiation":
            found[i] = incident_solar_radiation(grid, day, hour, hours=solar_hours, days=days)
        else:
            angle = year_angle(day, hour, days) if name.startswith("year") else local[None, :]
            found[i] = np.sin(angle) if name.endswith("sin") else np.cos(angle)
    return found
