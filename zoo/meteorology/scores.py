"""Definitions of verification scores on plain arrays: weights, averages, CRPS, spread, correlation, zonal spectrum.

The averages over forecasts are in `zoo.meteorology.verification`. Everything is float64. Legend of shapes: `H` x `W`
grid points (latitude x longitude), `M` ensemble members, `K` zonal wavenumbers, ``...`` any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zoo.errors import InputError, unknown

Array = NDArray[np.float64]
Weights = Literal["area", "cosine"]
WEIGHTS: tuple[Weights, ...] = ("area", "cosine")

EARTH_RADIUS_M = 1000 * (6357 + 6378) / 2
"""Mean of the polar and the equatorial radius, as WeatherBench 2 has it (``schema.EARTH_RADIUS_M``)."""


def latitude_weights(latitudes_degrees: ArrayLike, kind: Weights = "area") -> Array:
    """Weight of each row of a grid, with mean 1: (H) -> (H).

    ``area`` is the area of the row's cells, whose bounds lie midway between latitudes and, where no other row has room
    before it, at the pole (WeatherBench 2, ``get_lat_weights``, which is for whole globes); the outermost cells of a
    region end half a step beyond their row. ``cosine`` is the cosine of the latitude (ClimaX). Rows may run north or
    south. Raises `InputError` for latitudes outside of -90 to 90, for none, for those in no order, and where all rows
    are poles.
    """
    if kind not in WEIGHTS:
        raise InputError(unknown("weights", "kind of latitude weights", kind, WEIGHTS))
    degrees = np.asarray(latitudes_degrees, dtype=np.float64)
    if degrees.ndim != 1 or not len(degrees) or not bool((np.abs(degrees) <= 90).all()):
        raise InputError("latitudes: expected a list of degrees from -90 to 90; give the grid's latitude coordinate")
    if kind == "cosine":
        weights = np.cos(np.deg2rad(degrees))
    else:
        steps = np.diff(degrees)
        if not (bool((steps > 0).all()) or bool((steps < 0).all())):
            raise InputError("latitudes: cell areas need latitudes in order, from south to north or north to south")
        if not len(steps):
            return np.ones(1)
        outer = np.array([degrees[0] - steps[0], degrees[-1] + steps[-1]])  # where further rows would be
        at_pole = np.abs(outer) > 90 - 1e-3
        ends = np.where(at_pole, np.sign(outer) * 90, (outer + degrees[[0, -1]]) / 2)
        bounds = np.concatenate([ends[:1], (degrees[:-1] + degrees[1:]) / 2, ends[1:]])
        weights = np.abs(np.diff(np.sin(np.deg2rad(bounds))))
    if weights.mean() < 1e-12:
        raise InputError("latitudes: all of them are poles, where cells have no area; give the whole grid's")
    result: Array = weights / weights.mean()
    return result


def weighted_sum(values: Array, weights: Array, valid: NDArray[np.bool_] | None = None) -> Array:
    """Sum over the grid with row weights: (... H W), (H) -> (...). Points that are not `valid` count as nothing."""
    if valid is not None:
        values = np.where(valid, values, 0.0)
    total: Array = np.einsum("...hw,h->...", values, weights)
    return total


def crps(members: Array, truth: Array, *, fair: bool) -> Array:
    """Continuous ranked probability score of an ensemble: (M ...), (...) -> (...), in units of the field.

    E|X - y| - E|X - X'| / 2. The mean over pairs of members is over all M^2 of them where not `fair` (the score of
    the empirical distribution; Gneiting and Raftery 2007, eq. 21), and over the M (M - 1) pairs of different members
    where `fair`, which does not punish small ensembles (Ferro 2014; Zamo and Naveau 2018, eq. 7). Raises `InputError`
    for one member where `fair`.
    """
    m = len(members)
    if m < 1 or (fair and m < 2):
        raise InputError(f"CRPS: {m} members; the fair score needs at least 2, the plain one 1")
    ranks = (2 * np.arange(1, m + 1) - m - 1).reshape(-1, *[1] * truth.ndim)  # sum |xi - xj| = 2 sum ranks * sorted
    pairs = 2 * (ranks * np.sort(members, axis=0)).sum(axis=0)
    score: Array = np.abs(members - truth).mean(axis=0) - pairs / (2 * m * (m - 1 if fair else m))
    return score


def ensemble_variance(members: Array) -> Array:
    """Unbiased variance of the members, (M ...) -> (...), in squared units. Raises `InputError` for one member."""
    if len(members) < 2:
        raise InputError("spread: an ensemble of 1 member has none; give at least 2")
    variance: Array = members.var(axis=0, ddof=1)
    return variance


def spread_skill_ratio(variance: Array, mean_squared_error: Array, members: int) -> Array:
    """Spread over the error of the ensemble mean, with the factor for finite ensembles; 1 where they agree.

    sqrt((M + 1) / M * variance / MSE), Fortin et al. 2014, J. Hydrometeor. 15, eq. 15.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Array = np.sqrt((members + 1) / members * variance / mean_squared_error)
    return ratio


def uncentred_acc(forecast: Array, truth: Array, weights: Array, valid: NDArray[np.bool_] | None = None) -> Array:
    """Correlation of anomalies of each field, not centred: twice (... H W), (H) -> (...), without unit.

    sum w f t / sqrt(sum w f^2 sum w t^2), as WeatherBench 2 defines ACC; the mean over forecasts comes after. NaN for
    an anomaly that is zero everywhere, for example of the climatology itself.
    """
    both = weighted_sum(forecast * truth, weights, valid)
    squares = weighted_sum(forecast**2, weights, valid) * weighted_sum(truth**2, weights, valid)
    with np.errstate(divide="ignore", invalid="ignore"):
        acc: Array = both / np.sqrt(squares)
    return acc


class ClimaxCorrelation:
    """Sums from which ClimaX's anomaly correlation of a whole set of forecasts follows.

    Anomalies are centred with their *unweighted* mean over all forecasts and points, and the weighted sums run over
    all of them at once (ClimaX, ``lat_weighted_acc``; `zoo.meteorology.metrics.climax_acc` is the same on tensors).
    Sums of single fields add up, so that forecasts need not be in memory together.
    """

    names = ("n", "f", "t", "w", "wf", "wt", "wff", "wtt", "wft")

    @staticmethod
    def sums(forecast: Array, truth: Array, weights: Array, valid: NDArray[np.bool_]) -> dict[str, Array]:
        """Of anomalies, twice (... H W): each (...)."""
        plain = np.ones_like(weights)
        one = np.ones_like(forecast)
        terms = {
            "n": (one, plain), "f": (forecast, plain), "t": (truth, plain), "w": (one, weights),
            "wf": (forecast, weights), "wt": (truth, weights), "wff": (forecast**2, weights),
            "wtt": (truth**2, weights), "wft": (forecast * truth, weights),
        }  # fmt: skip
        return {name: weighted_sum(values, row, valid) for name, (values, row) in terms.items()}

    @staticmethod
    def coefficient(sums: dict[str, Array]) -> Array:
        """Of the sums added up, without unit; NaN where an anomaly has no variance."""
        with np.errstate(divide="ignore", invalid="ignore"):
            f, t = sums["f"] / sums["n"], sums["t"] / sums["n"]
            both = sums["wft"] - t * sums["wf"] - f * sums["wt"] + f * t * sums["w"]
            forecast = sums["wff"] - 2 * f * sums["wf"] + f**2 * sums["w"]
            truth = sums["wtt"] - 2 * t * sums["wt"] + t**2 * sums["w"]
            acc: Array = both / np.sqrt(forecast * truth)
        return acc


def zonal_energy_spectrum(fields: ArrayLike, latitudes_degrees: ArrayLike) -> Array:
    """Energy along circles of latitude by zonal wavenumber: (... H W), (H) -> (... H K), K = W // 2 + 1.

    With F the discrete Fourier transform along the circle over W and C its circumference in metres: C |F[0]|^2, and
    2 C |F[k]|^2 for k > 0. Unit: metres times the field's squared. As in WeatherBench 2 (``ZonalEnergySpectrum``),
    where the last wavenumber of an even W is doubled too. Longitudes must be the whole circle in even steps
    (`check_circle`).
    """
    values = np.asarray(fields, dtype=np.float64)
    transformed = np.fft.rfft(values, axis=-1, norm="forward")
    double = np.full(transformed.shape[-1], 2.0)
    double[0] = 1.0
    circumference = 2 * np.pi * EARTH_RADIUS_M * np.cos(np.deg2rad(np.asarray(latitudes_degrees, dtype=np.float64)))
    spectrum: Array = np.abs(transformed) ** 2 * double * circumference[:, None]
    return spectrum


def check_circle(longitudes_degrees: Sequence[float] | NDArray[Any]) -> None:
    """Raises `InputError` where longitudes are not a whole circle in even steps, which a zonal spectrum needs."""
    degrees = np.asarray(longitudes_degrees, dtype=np.float64)
    step = 360 / max(len(degrees), 1)
    if len(degrees) < 2 or not bool(np.allclose(np.abs(np.diff(degrees)), step, atol=1e-3)):
        raise InputError(
            f"zonal spectrum: {len(degrees)} longitudes that are not a whole circle in even steps; "
            "leave the spectrum out for a region (spectrum=False)"
        )
