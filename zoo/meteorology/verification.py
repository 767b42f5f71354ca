"""Scores of many forecasts, gathered one forecast at a time: memory stays that of one field.

A `Verification` adds sums; two of them, for example of two processes, merge. `zoo.meteorology.evaluation` feeds it a
forecast dataset, with persistence and climatology beside it. Deterministic scores of an ensemble are those of its mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from zoo.errors import InputError, unknown
from zoo.meteorology import scores
from zoo.meteorology.scores import Array, ClimaxCorrelation, Weights

if TYPE_CHECKING:
    import pandas as pd

Missing = Literal["propagate", "skip"]
Key = tuple[str, int, str]  # system, lead time in nanoseconds, variable

MEMBERS = ("number", "realization")
GRID = ("latitude", "longitude")
TRUTH = "truth"
METRICS: dict[str, str] = {
    "rmse": "root of the mean squared error over all forecasts (WeatherBench 2)",
    "rmse_climax": "root of each forecast's mean squared error, then the mean (ClimaX)",
    "bias": "mean of forecast minus truth",
    "mae": "mean absolute error",
    "acc_uncentred": "anomaly correlation of each forecast, not centred, then the mean (WeatherBench 2)",
    "acc_climax": "anomaly correlation centred with the unweighted mean, over all forecasts at once (ClimaX)",
    "crps_fair": "continuous ranked probability score, over pairs of different members",
    "crps": "continuous ranked probability score of the members' empirical distribution",
    "spread": "root of the mean unbiased variance of the members",
    "spread_skill_ratio": "spread over rmse of the ensemble mean, with the factor (M + 1) / M",
    "forecasts": "number of forecasts in the averages",
    "missing_points": "number of points where forecast, truth or climatology is NaN",
}
_NO_UNIT = ("acc_uncentred", "acc_climax", "spread_skill_ratio", "forecasts", "missing_points")


@dataclass
class Verification:
    """Sums from which scores follow, by system, lead time and variable; each has an entry per level.

    `weights`: ``area`` or ``cosine`` (`scores.latitude_weights`). `missing` says what a NaN does: ``propagate`` makes
    the score NaN, ``skip`` leaves the point out; both count it in ``missing_points``. `spectrum`: gather zonal energy
    spectra, averaged over the rows of the grid with their weights; with ``skip``, fields with a NaN have none.
    Raises `InputError` for another word.
    """

    weights: Weights = "area"
    missing: Missing = "propagate"
    spectrum: bool = True
    sums: dict[Key, dict[str, Array]] = field(default_factory=dict)
    members: dict[str, int] = field(default_factory=dict)
    coordinates: dict[str, Array] = field(default_factory=dict)
    levels: dict[str, Array | None] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weights not in scores.WEIGHTS:
            raise InputError(unknown("weights", "kind of latitude weights", self.weights, scores.WEIGHTS))
        if self.missing not in ("propagate", "skip"):
            raise InputError(unknown("missing", "treatment of NaNs", self.missing, ("propagate", "skip")))

    def add(
        self,
        system: str,
        lead: np.timedelta64,
        forecast: xr.Dataset,
        truth: xr.Dataset,
        climatology: xr.Dataset | None = None,
    ) -> None:
        """Add one forecast, or several along a dimension ``time``, valid when `truth` is.

        Dimensions are (time) (level) latitude longitude in any order, and ``number`` or ``realization`` of an ensemble
        in `forecast` only. `truth` and `climatology` may have more variables, levels and points than the forecast, in
        any order. Raises `InputError` where they lack some, or have other units or dimensions.
        """
        lead_ns = int(lead / np.timedelta64(1, "ns"))
        for name, values in forecast.data_vars.items():
            observed = same_points(str(name), values, truth, "truth")
            normal = None if climatology is None else same_points(str(name), values, climatology, "climatology")
            self._check_grid(system, str(name), values)
            self._add(system, lead_ns, str(name), values, observed, normal)

    def _check_grid(self, system: str, name: str, values: xr.DataArray) -> None:
        for dimension in GRID:
            here = np.asarray(values[dimension].values, dtype=np.float64)
            known = self.coordinates.setdefault(dimension, here)
            if known.shape != here.shape or not np.allclose(known, here, atol=1e-4):
                raise InputError(
                    f"{system}: {name} has another {dimension} than what was added before; regrid it first"
                )
        if self.spectrum:
            scores.check_circle(self.coordinates["longitude"])
        levels = np.asarray(values["level"].values, dtype=np.float64) if "level" in values.dims else None
        known_levels = self.levels.setdefault(name, levels)
        if (known_levels is None) != (levels is None) or (
            levels is not None and not np.array_equal(known_levels, levels)  # type: ignore[arg-type]
        ):
            raise InputError(f"{system}: {name} has other levels than what was added before: {known_levels}, {levels}")
        if unit := str(values.attrs.get("units", "")):
            self.units.setdefault(name, unit)
        size = next((values.sizes[d] for d in MEMBERS if d in values.dims), 1)
        if self.members.setdefault(system, size) != size:
            raise InputError(f"{system}: {size} members here, {self.members[system]} before; score them separately")

    def _add(
        self, system: str, lead: int, name: str, values: xr.DataArray, truth: xr.DataArray, normal: xr.DataArray | None
    ) -> None:
        ensemble, observed = _plain(values), _plain(truth)[0]  # (members, times, levels, H, W), (times, levels, H, W)
        if observed.shape != ensemble.shape[1:]:
            raise InputError(f"{system}: {name} is {ensemble.shape[1:]}, truth {observed.shape}; give the same times")
        forecast = ensemble.mean(axis=0)
        expected = None if normal is None else np.broadcast_to(_plain(normal)[0], observed.shape)
        nan = np.isnan(forecast) | np.isnan(observed)
        if expected is not None:
            nan = nan | np.isnan(expected)
        row = scores.latitude_weights(self.coordinates["latitude"], self.weights)
        valid = ~nan if self.missing == "skip" else np.ones_like(nan)
        new = _Sums(self.sums.setdefault((system, lead, name), {}), row, valid, self.missing)
        new.plain("forecasts", np.ones(observed.shape[:2]))
        new.plain("missing_points", nan.sum(axis=(2, 3)).astype(np.float64))
        error = forecast - observed
        weight, squares = new.mean("w", np.ones_like(error)), new.mean("ee", error**2)
        new.mean("e", error)
        new.mean("ae", np.abs(error))
        with np.errstate(invalid="ignore", divide="ignore"):
            new.valid_mean("root", np.sqrt(squares / weight))
        if expected is not None:
            anomalies = forecast - expected, observed - expected
            new.valid_mean("acc", scores.uncentred_acc(*anomalies, row, valid))
            for term, value in ClimaxCorrelation.sums(*anomalies, row, valid).items():
                new.plain(f"climax_{term}", value)
        if len(ensemble) > 1:
            for fair in (True, False):
                new.mean("crps_fair" if fair else "crps", scores.crps(ensemble, observed, fair=fair))
            new.mean("variance", scores.ensemble_variance(ensemble))
        if self.spectrum:
            latitudes = self.coordinates["latitude"]
            for term, fields in (("spectrum", ensemble), ("truth_spectrum", observed[None])):
                spectra = scores.zonal_energy_spectrum(fields, latitudes)
                new.valid_mean(term, np.einsum("mtlhk,h->tlk", spectra, row) / len(row) / len(fields))

    def merge(self, other: Verification) -> None:
        """Add the sums of `other`. Raises `InputError` where it has other settings, another grid, levels or members."""
        mine, theirs = (self.weights, self.missing, self.spectrum), (other.weights, other.missing, other.spectrum)
        if mine != theirs:
            raise InputError(f"merge: settings differ (weights, missing, spectrum): {mine} and {theirs}")
        for what in ("coordinates", "levels", "members", "units"):
            known, new = getattr(self, what), getattr(other, what)
            for name in known.keys() & new.keys():
                if not np.array_equal(known[name], new[name]):
                    raise InputError(f"merge: {what} of {name} differ: {known[name]} and {new[name]}")
            known.update(new)
        for key, terms in other.sums.items():
            store = self.sums.setdefault(key, {})
            for name, value in terms.items():
                store[name] = store[name] + value if name in store else value.copy()

    def scores(self) -> xr.Dataset:
        """Every variable with dimensions metric, system, prediction_timedelta (and level); float64.

        `METRICS` says what each metric is; those that were not gathered are left out. ``NAME_spectrum`` and
        ``NAME_spectrum_truth`` have dimensions system, prediction_timedelta (level) zonal_wavenumber. Raises
        `InputError` where nothing was added.
        """
        if not self.sums:
            raise InputError("scores: no forecasts were added")
        systems = list(dict.fromkeys(system for system, _, _ in self.sums))
        leads = sorted({lead for _, lead, _ in self.sums})
        names = list(dict.fromkeys(name for _, _, name in self.sums))
        found = {
            key: _scores(terms, self.members[key[0]], self.levels[key[2]] is None) for key, terms in self.sums.items()
        }
        metrics = [metric for metric in METRICS if any(metric in values for values in found.values())]
        coordinates: dict[str, Any] = {
            "system": systems,
            "prediction_timedelta": np.array(leads, dtype="timedelta64[ns]"),
            "metric": metrics,
        }
        data: dict[str, Any] = {}
        for name in names:
            levels = self.levels[name]
            by_level: tuple[str, ...] = () if levels is None else ("level",)
            if levels is not None:
                known = coordinates.setdefault("level", levels)
                coordinates["level"] = np.union1d(known, levels)
            attributes = {"units": self.units.get(name, "")}
            for metric_names, suffix, last in (
                (metrics, "", ()),
                (["spectrum"], "_spectrum", ("zonal_wavenumber",)),
                (["truth_spectrum"], "_spectrum_truth", ("zonal_wavenumber",)),
            ):
                table = [[[found.get((s, t, name), {}).get(m) for t in leads] for s in systems] for m in metric_names]
                shape = next((value.shape for m in table for s in m for value in s if value is not None), None)
                if shape is None:
                    continue
                filled = np.array([[[np.full(shape, np.nan) if v is None else v for v in s] for s in m] for m in table])
                dims = ("system", "prediction_timedelta", *by_level, *last)
                array = xr.DataArray(
                    filled if not suffix else filled[0],
                    dims=dims if suffix else ("metric", *dims),
                    coords={} if levels is None else {"level": levels},
                    attrs={"units": f"m ({attributes['units']})^2"} if suffix else attributes,
                )
                data[name + suffix] = array
        result = xr.Dataset(data).reindex(level=coordinates["level"]) if "level" in coordinates else xr.Dataset(data)
        result = result.assign_coords({name: value for name, value in coordinates.items() if name != "level"})
        result.attrs |= {"weights": self.weights, "missing": self.missing}
        return result.assign_attrs({f"metric_{metric}": METRICS[metric] for metric in metrics})


class _Sums:
    """The sums of one system, lead time and variable; fields are (times, levels, H, W)."""

    def __init__(self, store: dict[str, Array], row: Array, valid: Any, missing: Missing) -> None:
        self.store, self.row, self.valid, self.missing = store, row, valid, missing

    def plain(self, name: str, values: Array) -> None:
        """Add values (times, levels, ...) over times."""
        self.store[name] = self.store.get(name, np.zeros(values.shape[1:])) + values.sum(axis=0)

    def mean(self, name: str, values: Array) -> Array:
        """Add weighted sums over the grid, and hand them back (times, levels)."""
        total = scores.weighted_sum(values, self.row, self.valid)
        self.plain(name, total)
        return total

    def valid_mean(self, name: str, values: Array) -> None:
        """Add values of whole fields (times, levels, ...) and their number, without NaNs where those are skipped."""
        keep = ~np.isnan(values) if self.missing == "skip" else np.ones(values.shape, dtype=bool)
        self.plain(name, np.where(keep, values, 0.0))
        self.plain(f"{name}_n", keep.astype(np.float64))


def _scores(sums: dict[str, Array], members: int, flat: bool) -> dict[str, Array]:
    """Scores by metric, each (levels), or () where the variable has no levels; spectra with K at the end."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            "rmse": np.sqrt(sums["ee"] / sums["w"]),
            "rmse_climax": sums["root"] / sums["root_n"],
            "bias": sums["e"] / sums["w"],
            "mae": sums["ae"] / sums["w"],
            "forecasts": sums["forecasts"],
            "missing_points": sums["missing_points"],
        }
        if "acc" in sums:
            found["acc_uncentred"] = sums["acc"] / sums["acc_n"]
            found["acc_climax"] = ClimaxCorrelation.coefficient(
                {name: sums[f"climax_{name}"] for name in ClimaxCorrelation.names}
            )
        if "crps" in sums:
            variance = sums["variance"] / sums["w"]
            found |= {"crps_fair": sums["crps_fair"] / sums["w"], "crps": sums["crps"] / sums["w"]}
            found["spread"] = np.sqrt(variance)
            found["spread_skill_ratio"] = scores.spread_skill_ratio(variance, sums["ee"] / sums["w"], members)
        for name in ("spectrum", "truth_spectrum"):
            if name in sums:
                found[name] = sums[name] / sums[f"{name}_n"]
    return {name: value[0] for name, value in found.items()} if flat else found


def _plain(values: xr.DataArray) -> Array:
    """(members, times, levels, H, W) in float64, with ones for what there is none of."""
    member = next((d for d in MEMBERS if d in values.dims), None)
    order = [member, "time", "level", *GRID]
    for place, dimension in enumerate(order):
        if dimension not in values.dims:
            order[place] = f"_{place}"
            values = values.expand_dims(f"_{place}")
    extra = set(values.dims) - set(order)
    if extra:
        raise InputError(f"{values.name}: dimensions {sorted(map(str, extra))} are not known to scores; select first")
    return np.asarray(values.transpose(*order).values, dtype=np.float64)


def same_points(name: str, values: xr.DataArray, other: xr.Dataset, where: str) -> xr.DataArray:
    """`name` of `other` at the points and levels of `values`, in their order."""
    if name not in other.data_vars:
        raise InputError(unknown(where, "variable", name, map(str, other.data_vars)))
    found = other[name]
    mine, theirs = values.attrs.get("units"), found.attrs.get("units")
    if mine and theirs and mine != theirs:
        raise InputError(f'{where}: {name} is in "{theirs}", the forecast in "{mine}"; convert one of them')
    for dimension in (*GRID, "level"):
        if (dimension in values.dims) != (dimension in found.dims):
            raise InputError(f"{where}: {name} has dimensions {found.dims}, the forecast {values.dims}")
        if dimension not in values.dims:
            continue
        here, there = (np.asarray(a[dimension].values, dtype=np.float64) for a in (values, found))
        if here.shape == there.shape and np.allclose(here, there, atol=1e-4):
            continue
        places = [int(np.abs(there - value).argmin()) for value in here]
        if not np.allclose(there[places], here, atol=1e-4):
            absent = [
                float(value) for value, place in zip(here, places, strict=True) if abs(there[place] - value) > 1e-4
            ]
            raise InputError(f"{where}: {name} has no {dimension} {absent[:5]} that the forecast has; regrid or select")
        found = found.isel({dimension: places})
    return found


def table(result: xr.Dataset) -> pd.DataFrame:
    """Scores of `Verification.scores` as rows: variable, level, lead_hours, system, metric, value, unit; no spectra."""
    import pandas as pd

    frames = []
    for name, values in result.data_vars.items():
        if "metric" not in values.dims:
            continue
        if "level" in values.dims:
            values = values.dropna(
                "level", how="all"
            )  # of other variables; `forecasts` is a number wherever there is one
        frame = values.rename("value").to_dataframe().reset_index()
        frame["variable"], frame["unit"] = str(name), str(values.attrs.get("units", ""))
        frame.loc[frame["metric"].isin(_NO_UNIT), "unit"] = "1"
        frame["level"] = frame.get("level", np.nan)
        frame["lead_hours"] = frame["prediction_timedelta"] / pd.Timedelta(hours=1)
        frames.append(frame)
    columns = ["variable", "level", "lead_hours", "system", "metric", "value", "unit"]
    rows: pd.DataFrame = pd.concat(frames, ignore_index=True)[columns]
    return rows
