"""Scores of single forecasts, and what they come to over many: beside persistence and climatology, by lead time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoo.meteorology.scores import Array, uncentred_acc, weighted_sum

SYSTEMS = ("", "persistence_", "climatology_")
"""The forecast itself, and what it has to beat: the state that it began with, and the climatology."""


def scores_of(
    names: Sequence[str],
    forecast: Array,
    truth: Array,
    before: Array,
    usual: Array,
    weights: Array,
    systems: Sequence[str] = SYSTEMS,
) -> dict[str, float]:
    """Of one forecast: ``mse_FIELD``, ``persistence_mse_FIELD``, ``climatology_mse_FIELD``, ``bias_FIELD`` and
    ``acc_FIELD`` (WeatherBench 2's uncentred one), each field in its own unit; (O H W) each, weights (H) with mean 1.

    `before` is the state that the forecast began with, `usual` the climatology; where one is not known it is NaN, and
    what would follow from it is left out.
    """
    points = truth.shape[-1] * truth.shape[-2]
    found: dict[str, float] = {}
    for system, fields in zip(systems, (forecast, before, usual), strict=True):
        errors = weighted_sum((fields - truth) ** 2, weights) / points
        found |= {f"{system}mse_{name}": float(e) for name, e in zip(names, errors, strict=True) if _known(system, e)}
    bias = weighted_sum(forecast - truth, weights) / points
    found |= {f"bias_{name}": float(value) for name, value in zip(names, bias, strict=True)}
    if np.isfinite(usual).all():
        correlation = uncentred_acc(forecast - usual, truth - usual, weights)
        known = np.isfinite(correlation) | ~np.isfinite(bias)  # none where an anomaly is 0 everywhere
        found |= {f"acc_{name}": float(r) for name, r, here in zip(names, correlation, known, strict=True) if here}
    return found


def _known(system: str, error: Any) -> bool:
    """What is not known of a floor is left out; an error of the forecast that is no number must be seen."""
    return system == "" or math.isfinite(error)


def summary(
    scores: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    deviations: Array,
    system: str = "",
    systems: Sequence[str] = SYSTEMS,
) -> dict[str, float]:
    """Over many forecasts, of one of `systems`: ``nrmse``, then ``rmse_FIELD``, ``bias_FIELD`` and ``acc_FIELD``.

    Roots are taken of means over forecasts (WeatherBench 2). With several lead times a name ends in its hours, such as
    ``rmse_geopotential_500_24h`` (in steps of the data where these are months). ``nrmse`` is the mean over fields and
    lead times of the rmse in units of the field's `deviations`; ``skill_persistence`` and ``skill_climatology`` of the
    forecast are 1 - its ratio to that of the floor. What is not known is left out.
    """
    leads = sorted({score["lead_steps"] for score in scores})
    found: dict[str, float] = {}
    for lead in leads:
        mine = [score for score in scores if score["lead_steps"] == lead]
        hours = {score["lead_hours"] for score in mine}  # a month has more or fewer of them
        end = "" if len(leads) == 1 else f"_{hours.pop():g}h" if len(hours) == 1 else f"_{lead}steps"
        for name in names:
            errors = [score[f"{system}mse_{name}"] for score in mine if f"{system}mse_{name}" in score]
            if errors:
                found[f"rmse_{name}{end}"] = math.sqrt(sum(errors) / len(errors))
            for what in ("bias", "acc") if system == "" else ():
                if values := [score[f"{what}_{name}"] for score in mine if f"{what}_{name}" in score]:
                    found[f"{what}_{name}{end}"] = sum(values) / len(values)
    overall = {which: normalised(scores, names, deviations, which) for which in systems}
    own = overall[system]
    first = {} if own is None else {"nrmse": own}
    for which in systems[1:] if system == "" else ():
        floor = overall[which]
        if own is not None and floor:
            first[f"skill_{which.rstrip('_')}"] = 1 - own / floor
    return {**first, **found}


def normalised(
    scores: Sequence[Mapping[str, Any]], names: Sequence[str], deviations: Array, system: str
) -> float | None:
    """Mean over fields and lead times of the rmse in units of the field's deviation; None where nothing is known."""
    parts: dict[tuple[str, int], list[float]] = {}
    for score in scores:
        for name in names:
            if (error := score.get(f"{system}mse_{name}")) is not None:
                parts.setdefault((name, score["lead_steps"]), []).append(error)
    scale = dict(zip(names, deviations, strict=True))
    roots = [math.sqrt(sum(errors) / len(errors)) / float(scale[name]) for (name, _), errors in parts.items()]
    return sum(roots) / len(roots) if roots else None
