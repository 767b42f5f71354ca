"""Scores of a forecast file told to people and machines, and kept: tables, JSON, a NetCDF file, a picture."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from zoo.domain import Scores
from zoo.errors import InputError, ZooError
from zoo.meteorology.evaluation import CLIMATOLOGY, FORECAST
from zoo.meteorology.names import field_name
from zoo.meteorology.skill_plot import draw_skill
from zoo.meteorology.times import MONTH_HOURS
from zoo.places import Place, local

Row = dict[str, Any]

SPREAD = "ensemble spread"
PANELS = 12
"""Fields of a picture, at most."""
BESIDE = 6
"""Leads that are shown beside each other."""
_SHOWN = {
    "rmse": "rmse", "bias": "bias", "acc_uncentred": "acc uncentred", "acc_climax": "acc climax",
    "crps_fair": "crps fair", "spread": "spread", "spread_skill_ratio": "spread / skill",
}  # fmt: skip


def told(
    scores: xr.Dataset,
    deviations: Mapping[str, float],
    floor: str,
    members: int,
    left_out: Mapping[str, int],
    times_left_out: Mapping[str, int],
    unit_of_time: str,
) -> Scores:
    """Facts, tables and notes of what `Verification.scores` gives.

    `deviations` by field are those that ``nrmse`` is counted in; it is the mean over fields and leads, as in training.
    `floor` is what stands beside climatology, `left_out` forecasts by reason, `times_left_out` times of the
    truth, and leads are told in `unit_of_time`.
    """
    rows = list(_rows(scores))
    systems = (FORECAST, floor, CLIMATOLOGY)
    overall = {
        system: float(np.mean([row["rmse"] / deviations[row["field"]] for row in rows if row["system"] == system]))
        for system in systems
    }
    skill = {f"skill_{system}": 1 - overall[FORECAST] / overall[system] for system in systems[1:] if overall[system]}
    leads = list(dict.fromkeys(row["lead_hours"] for row in rows))
    words = [lead_in_words(lead, unit_of_time) for lead in leads]
    everything = {**left_out, **{f"times of the truth {reason}": n for reason, n in times_left_out.items()}}
    facts = {
        "forecast": scores.attrs["forecast"], "truth": scores.attrs["truth"], "members": members,
        "left_out": everything, "nrmse": overall, **skill, "scores": rows,
    }  # fmt: skip
    tables = {
        "all fields and leads, in units of each field's deviation": [
            {"": "nrmse", **{system: number(value) for system, value in overall.items()}},
            {"": "skill over it", **{system: number(skill.get(f"skill_{system}", np.nan)) for system in systems}},
        ]
    }
    for field in dict.fromkeys(row["field"] for row in rows):
        mine = [row for row in rows if row["field"] == field]
        by_lead = [{row["system"]: row for row in mine if row["lead_hours"] == lead} for lead in leads]
        for first in range(0, len(leads), BESIDE):
            part = dict(zip(words[first : first + BESIDE], by_lead[first : first + BESIDE], strict=True))
            more = f", {' to '.join(dict.fromkeys((*list(part)[:1], *list(part)[-1:])))}" if len(leads) > BESIDE else ""
            tables[f"{field}, {mine[0]['unit']}{more}"] = list(_lines(part))
    notes = [f"forecasts left out: {count} ({reason})" for reason, count in left_out.items()]
    notes += [f"times of the truth left out: {count} ({reason})" for reason, count in times_left_out.items()]
    if members > 1:
        notes.append(f"{members} members: rmse, bias and acc are of their mean")
    return Scores(facts, tables, tuple(notes))


def _rows(scores: xr.Dataset) -> Iterator[Row]:
    """A row for each field, lead and system; what is not known of it is left out."""
    hours = (scores["prediction_timedelta"].values / np.timedelta64(1, "h")).tolist()
    metrics = scores["metric"].values.tolist()
    for name, array in scores.data_vars.items():
        if "metric" not in array.dims:
            continue
        levels = array["level"].values.tolist() if "level" in array.dims else [None]
        values = array if "level" in array.dims else array.expand_dims("level")
        table = values.transpose("level", "prediction_timedelta", "system", "metric").values.tolist()
        for level, of_level in zip(levels, table, strict=True):
            for lead, of_lead in zip(hours, of_level, strict=True):
                for system, row in zip(scores["system"].values.tolist(), of_lead, strict=True):
                    known = {metric: v for metric, v in zip(metrics, row, strict=True) if np.isfinite(v)}
                    known["forecasts"] = int(known["forecasts"])
                    del known["missing_points"]  # there are none
                    facts = {"field": field_name(str(name), level), "unit": array.attrs["units"], "lead_hours": lead}
                    yield {**facts, "system": system, **known}


def _lines(by_lead: Mapping[str, Mapping[str, Row]]) -> Iterator[dict[str, str]]:
    """A line for each score of the forecast, and for the error of each floor; a column for each lead."""
    own = {lead: rows[FORECAST] for lead, rows in by_lead.items()}
    yield {"": "forecasts", **{lead: str(row["forecasts"]) for lead, row in own.items()}}
    for metric, title in _SHOWN.items():
        if any(metric in row for row in own.values()):
            yield {"": title, **{lead: number(row.get(metric, np.nan)) for lead, row in own.items()}}
        if metric == "rmse":
            for system in next(iter(by_lead.values())):
                if system != FORECAST:
                    yield {"": f"rmse {system}", **{t: number(rows[system]["rmse"]) for t, rows in by_lead.items()}}


def number(value: float) -> str:
    """To four digits; a dash for what is not known."""
    return "-" if np.isnan(value) else f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def lead_in_words(hours: float, unit: str) -> str:
    """``24 h``; in months where the run's steps are."""
    months = round(hours / MONTH_HOURS)
    return f"{hours:g} h" if unit == "hours" else "1 month" if months == 1 else f"{months} months"


# ------------------------------------------------------------------------------------------------------------- kept


def scores_file(path: Path, read: Sequence[Place]) -> Path:
    """Where scores are written. Raises `InputError` for another ending than ``.nc``, and for one of the files read."""
    target = path.expanduser().absolute()
    if target.suffix != ".nc":
        raise InputError(f"{path}: scores are written as NetCDF; give a name that ends in .nc")
    mine = [other for one in read if (other := local(one)) and other.exists()]
    if target.exists() and any(target.samefile(other) for other in mine):
        raise InputError(f"{path}: is one of the files that are scored; write the scores to another file")
    return target


def save_scores(target: Path, scores: xr.Dataset, facts: Mapping[str, Any]) -> None:
    """Write all scores, spectra too, whole or not at all. Raises `ZooError` where it cannot be written."""
    hours = scores["prediction_timedelta"].values / np.timedelta64(1, "h")
    attributes = {"units": "hours", "standard_name": "forecast_period", "long_name": "time since the start"}
    plain = scores.assign_coords(prediction_timedelta=("prediction_timedelta", hours, attributes))
    if "level" in plain.coords:
        plain["level"].attrs = {"standard_name": "air_pressure", "units": "hPa", "positive": "down"}
    if "zonal_wavenumber" in plain.dims:
        numbers = np.arange(plain.sizes["zonal_wavenumber"])
        plain = plain.assign_coords(zonal_wavenumber=("zonal_wavenumber", numbers, {"units": "1"}))
    plain = plain.assign_attrs(Conventions="CF-1.11", members=facts["members"], left_out=json.dumps(facts["left_out"]))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        plain.to_netcdf(temporary, engine="netcdf4")
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ZooError(f"{target}: the scores cannot be written ({reason})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def draw_scores(picture: Path, scores: xr.Dataset) -> None:
    """The error against lead time, and the spread of an ensemble, of the first `PANELS` fields."""
    if "spread" in scores["metric"].values:
        spread = scores.sel(system=[FORECAST], metric=["spread"]).assign_coords(system=[SPREAD], metric=["rmse"])
        scores = xr.concat([scores.sel(metric=["rmse"]), spread], dim="system")
    panels: list[tuple[str, float | None]] = []
    for name, array in scores.data_vars.items():
        if "metric" in array.dims:
            panels += [(str(name), level) for level in (array["level"].values if "level" in array.dims else [None])]
    draw_skill(picture, scores, panels[:PANELS])
