"""A forecast dataset scored against truth, beside persistence and climatology, one field at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from zoo.errors import InputError
from zoo.meteorology.scores import Weights
from zoo.meteorology.verification import MEMBERS, Missing, Verification, same_points

Normal = Callable[[np.datetime64], xr.Dataset]
"""What is expected at a time."""

Times = NDArray[np.datetime64]
S = TypeVar("S")

FORECAST, PERSISTENCE, CLIMATOLOGY = "forecast", "persistence", "climatology"


@dataclass(frozen=True)
class Came:
    """What a forecast is scored against: the state `observed`, and the floors, where there are any: the state `before`
    the forecast, and the `normal` one of climatology."""

    observed: xr.Dataset
    before: xr.Dataset | None = None
    normal: xr.Dataset | None = None


def gather(
    verification: Verification,
    forecast: xr.Dataset,
    came: Callable[[np.datetime64, np.timedelta64], Came | None],
    *,
    floor: str = PERSISTENCE,
    finite: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Add every forecast of a dataset, and its floors, to a verification; returns the number of those left out.

    `came` says what came of a start and lead, or None for one that is left out of all systems. Of the forecast one
    variable, start and lead is in memory at a time. `floor` is what to call the states before. With `finite`, a name
    of the forecast for errors, values that are missing or not finite in it raise `InputError`.
    """
    starts = forecast["time"].values.astype("datetime64[ns]")
    leads = forecast["prediction_timedelta"].values.astype("timedelta64[ns]")
    left_out = 0
    for i, start in enumerate(starts):
        for j, lead in enumerate(leads):
            found = came(start, lead)
            left_out += found is None
            for name in forecast.data_vars if found is not None else ():
                assert found is not None
                one = forecast[[name]].isel(time=i, prediction_timedelta=j).compute()
                if finite and (broken := int((~np.isfinite(one[name].values)).sum())):
                    raise InputError(
                        f"{finite}: {name}, from {pd.Timestamp(start)} over {pd.Timedelta(lead)}: {broken} of "
                        f"{one[name].size} values are missing or not finite; leave that start out, or forecast anew"
                    )
                verification.add(FORECAST, lead, one, found.observed, found.normal)
                like = one.isel({d: 0 for d in MEMBERS if d in one.dims})
                for system, state in ((floor, found.before), (CLIMATOLOGY, found.normal)):
                    if state is not None:
                        verification.add(system, lead, _as(like, state), found.observed, found.normal)
            if progress:
                progress(i * len(leads) + j + 1, len(starts) * len(leads))
    return left_out


def evaluate(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    climatology: xr.Dataset | Normal | None = None,
    *,
    weights: Weights = "area",
    missing: Missing = "propagate",
    missing_times: Literal["error", "skip"] = "error",
    persistence: bool = True,
    spectrum: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Scores of every variable by metric, system, lead time and level; see `Verification.scores`.

    `forecast` has dimensions ``time`` (start) and ``prediction_timedelta`` (see `zoo.meteorology.forecast_file`),
    `truth` has ``time``, `climatology` is what `climatology_at` takes or a function of the time. Variables of the
    forecast are scored, and all may be lazy: twice as many states of truth as lead times are kept, of the forecast one
    variable, start and lead. Systems are ``forecast``, ``persistence`` (truth at the start) and ``climatology``, over
    the same forecasts. Where truth lacks a time, that forecast is an error, or with ``missing_times="skip"`` left out
    of all systems and counted in the attribute ``forecasts_without_truth``. `progress` is told how many of how many are
    done.

    Raises `InputError` for missing dimensions, variables, times and for what `Verification.add` refuses.
    """
    verification, skipped = verify(
        forecast, truth, climatology, weights=weights, missing=missing, missing_times=missing_times,
        persistence=persistence, spectrum=spectrum, progress=progress,
    )  # fmt: skip
    return verification.scores().assign_attrs(forecasts_without_truth=skipped)


def verify(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    climatology: xr.Dataset | Normal | None = None,
    *,
    weights: Weights = "area",
    missing: Missing = "propagate",
    missing_times: Literal["error", "skip"] = "error",
    persistence: bool = True,
    spectrum: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Verification, int]:
    """As `evaluate`, but the sums, which merge with those of other forecasts, and the number of those left out."""
    names = [str(name) for name in forecast.data_vars]
    starts, leads, times = _times(forecast, truth, names)
    wanted = {(start, lead): _places(times, start, lead, persistence) for start in starts for lead in leads}
    absent = [pair for pair, places in wanted.items() if places is None]
    if absent and (missing_times == "error" or len(absent) == len(wanted)):
        start, lead = absent[0]
        raise InputError(
            f"truth: no state at the start or the end of {len(absent)} of {len(wanted)} forecasts, the first from "
            f"{pd.Timestamp(start)} over {pd.Timedelta(lead)}; truth has {pd.Timestamp(times[0])} to "
            f'{pd.Timestamp(times[-1])}. Give more truth, or leave these out with missing_times="skip"'
        )
    states = _states(truth[names], 2 * len(leads) + 1)

    def came(start: np.datetime64, lead: np.timedelta64) -> Came | None:
        if (places := wanted[start, lead]) is None:
            return None
        observed, before = states.at(places[1]), states.at(places[0]) if persistence else None
        return Came(observed, before, _normal(climatology, names, start + lead))

    verification = Verification(weights=weights, missing=missing, spectrum=spectrum)
    return verification, gather(verification, forecast, came, progress=progress)


def _normal(climatology: xr.Dataset | Normal | None, names: list[str], time: np.datetime64) -> xr.Dataset | None:
    if climatology is None or callable(climatology):
        return climatology(time) if climatology is not None else None
    return climatology_at(climatology[names], time).compute()


def climatology_at(climatology: xr.Dataset, time: np.datetime64) -> xr.Dataset:
    """What a climatology expects at a time.

    It may have dimensions ``dayofyear`` (1 to 366) or ``month``, and ``hour`` (WeatherBench 2); without them it is the
    same always. Raises `InputError` where it has no entry for that day, month or hour.
    """
    when = pd.Timestamp(time)
    for dimension, value in (("dayofyear", when.day_of_year), ("month", when.month), ("hour", when.hour)):
        if dimension not in climatology.dims:
            continue
        known = climatology[dimension].values.tolist()
        if value not in known:
            raise InputError(
                f"climatology: no {dimension} {value}, which {when} needs; it has {known[0]} to {known[-1]}"
            )
        climatology = climatology.isel({dimension: known.index(value)})
    return climatology


def persistence_and_climatology(
    truth: xr.Dataset,
    leads_hours: Sequence[float],
    climatology: xr.Dataset | Normal | None = None,
    *,
    every: int = 1,
    weights: Weights = "area",
) -> xr.Dataset:
    """Scores of persistence and climatology alone on `truth`, from every `every`-th state: the floor of a dataset."""
    verification = Verification(weights=weights, spectrum=False)
    names = [str(name) for name in truth.data_vars]
    times = truth["time"].values.astype("datetime64[ns]")
    states = _states(truth, 2 * len(leads_hours) + 1)
    for start in times[::every]:
        for lead in (np.timedelta64(round(hours * 3600), "s") for hours in leads_hours):
            if (places := _places(times, start, lead, True)) is None:
                continue
            observed = states.at(places[1])
            normal = _normal(climatology, names, start + lead)
            verification.add(PERSISTENCE, lead, states.at(places[0]), observed, normal)
            if normal is not None:
                verification.add(CLIMATOLOGY, lead, _as(observed, normal), observed, normal)
    return verification.scores()


class Recent(Generic[S]):
    """States by number; the last `size` that were asked for stay in memory."""

    def __init__(self, read: Callable[[int], S], size: int) -> None:
        self.read, self.size = read, size
        self.states: OrderedDict[int, S] = OrderedDict()

    def at(self, number: int) -> S:
        if number not in self.states:
            self.states[number] = self.read(number)
        self.states.move_to_end(number)
        while len(self.states) > self.size:
            self.states.popitem(last=False)
        return self.states[number]


def _states(dataset: xr.Dataset, size: int) -> Recent[xr.Dataset]:
    return Recent(lambda place: dataset.isel(time=place).compute(), size)


def _places(times: Times, start: np.datetime64, lead: np.timedelta64, both: bool) -> tuple[int, int] | None:
    """Where truth has a forecast's start and end; None where it lacks one that is needed."""
    found = []
    for time in (start, start + lead):
        place = int(np.searchsorted(times, time))
        found.append(place if place < len(times) and times[place] == time else None)
    if found[1] is None or (both and found[0] is None):
        return None
    return found[0] or 0, found[1]


def _times(
    forecast: xr.Dataset, truth: xr.Dataset, names: list[str]
) -> tuple[list[np.datetime64], list[np.timedelta64], Times]:
    problems = [
        f'{where}: no dimension "{dimension}"; dimensions are {sorted(map(str, dataset.dims))}'
        for where, dataset, dimension in (
            ("forecast", forecast, "time"), ("forecast", forecast, "prediction_timedelta"), ("truth", truth, "time"),
        )
        if dimension not in dataset.dims
    ]  # fmt: skip
    absent = [name for name in names if name not in truth.data_vars]
    if absent:
        problems.append(f"truth: no {', '.join(absent)}, which the forecast has; it has {', '.join(map(str, truth))}")
    if problems:
        raise InputError(problems)
    times = truth["time"].values.astype("datetime64[ns]")
    if not bool((np.diff(times) > np.timedelta64(0)).all()):
        raise InputError("truth: times are not in order, or some are twice; sort and deduplicate them first")
    starts = list(forecast["time"].values.astype("datetime64[ns]"))
    return starts, list(forecast["prediction_timedelta"].values.astype("timedelta64[ns]")), times


def _as(like: xr.Dataset, state: xr.Dataset) -> xr.Dataset:
    """`state` with the variables, levels and points of a forecast."""
    return xr.Dataset({name: same_points(str(name), values, state, "truth") for name, values in like.data_vars.items()})
