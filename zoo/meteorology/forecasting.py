"""The task of forecasting: fields at one time in, the same or other fields some hours later out.

Legend of shapes: `B` batch, `V` fields given, `O` fields wanted, `R` steps of a rollout, `H` x `W` grid points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from zoo.card import ModelCard, Source
from zoo.data.prepare import Data, Skipped
from zoo.domain import Batch, DataRequest, Scores
from zoo.errors import InputError
from zoo.meteorology.archive import LATITUDE, SPLITS, Archive, Wanted, check_alone, check_grid, corner_of, open_archive
from zoo.meteorology.climatology_files import wrong_climatology
from zoo.meteorology.fields import Fields
from zoo.meteorology.forecast_options import canonical, changing, checked, region, wrong_options
from zoo.meteorology.forecast_scores import SYSTEMS, scores_of, summary
from zoo.meteorology.forecasters import ForecastHead
from zoo.meteorology.grids import Grid, even_globe, layout
from zoo.meteorology.inputs import Inputs
from zoo.meteorology.learned import Learned, Predicts
from zoo.meteorology.perturbations import Ensemble
from zoo.meteorology.rollout import roll_out, ways
from zoo.meteorology.scores import latitude_weights
from zoo.places import Place

if TYPE_CHECKING:
    import pandas as pd


Weighting = Literal["cosine", "area"]


@dataclass(frozen=True)
class Initial:
    """An initial time: number `number` of the samples of `part`, forecast `steps` times by `lead` steps of the data.

    A `lead` of 0 is drawn anew for each epoch.
    """

    row: int
    text: str
    part: str
    number: int
    lead: int = 0
    steps: int = 1
    target: str = ""


class Forecast:
    """Forecasts of fields, scored against what came, against persistence and against climatology.

    Options: `variables` are the fields given, as ``geopotential_500``; `targets` those wanted (where nothing is said
    the same, without those that never change). `lead_hours`, or `lead_steps` of the data (months, years), are the
    leads, of which one is drawn for each sample of an epoch; a `rollout` of r goes r such steps, each from what the
    last one gave, and trains on all.
    `predicts`: ``state``, ``difference`` (from the state given), or ``anomaly`` (from climatology; anomalies are given,
    too); the model's own way where nothing is said. `weighting` of the loss over latitudes is ``cosine`` (as ClimaX)
    or ``area``; scores weigh cells by their area. `target_weights` by field. `forcings`: what is known of any time, see
    `zoo.meteorology.forcings`. `box`: ``north, south, west, east`` in degrees. `files`, `years` and `series`: see
    `zoo.meteorology.archive.Wanted`. `climatology`: ``day``, ``month``, ``all``, or files by day and hour, see
    `zoo.meteorology.climatology_files`. `every`: score each so-many-th initial time only. `ensemble`: forecast files
    are of several members, see `zoo.meteorology.perturbations`; training and its scores know nothing of them.
    """

    name = "forecast"
    monitor = "nrmse"
    lower_is_better = True
    length_unit = "grid points"
    splits = SPLITS
    systems = SYSTEMS
    when_predicting: tuple[str, ...] = ("ensemble", "files")

    def __init__(
        self,
        variables: list[str],
        targets: list[str] | None = None,
        lead_hours: list[float] | None = None,
        lead_steps: list[int] | None = None,
        rollout: int = 1,
        predicts: Predicts | None = None,
        weighting: Weighting = "cosine",
        target_weights: dict[str, float] | None = None,
        forcings: list[str] | None = None,
        box: dict[str, float] | None = None,
        files: dict[str, dict[str, dict[str, Any]]] | None = None,
        years: dict[str, tuple[int, int]] | None = None,
        series: dict[str, str] | None = None,
        climatology: str | None = None,
        every: int = 1,
        ensemble: Ensemble | None = None,
    ) -> None:
        problems = wrong_options(variables, targets, lead_hours, lead_steps, rollout, forcings, every)
        problems += wrong_climatology(climatology)
        self.variables = tuple(canonical(name) for name in variables)
        self.targets_wanted = tuple(canonical(name) for name in targets or changing(variables))
        weights = {canonical(name): value for name, value in (target_weights or {}).items()}
        if strange := [name for name in weights if name not in self.targets_wanted]:
            problems.append(f"target_weights: {', '.join(strange)}: no target")
        if any(value < 0 for value in weights.values()) or (weights and not any(weights.values())):
            problems.append("target_weights: numbers >= 0, not all of them 0")
        aside = [name for name in self.targets_wanted if name not in self.variables]
        if aside and (rollout > 1 or predicts == "difference"):
            what = f"rollout: {rollout}" if rollout > 1 else "predicts: difference"
            problems.append(f"{what} needs every target among the variables; {', '.join(aside)} are not")
        if problems:
            raise InputError(problems)
        self.target_weights = [weights.get(name, 1.0) for name in self.targets_wanted]
        self.lead_hours, self.lead_steps = lead_hours, lead_steps
        self.rollout, self.predicts, self.weighting, self.every = rollout, predicts, weighting, every
        self.ensemble = ensemble
        self.forcings = tuple(forcings or ())
        self.wanted = Wanted(
            tuple(dict.fromkeys((*self.variables, *self.targets_wanted))), region(box),
            checked(files or {}), years, series,
        )  # fmt: skip
        self.latitudes: tuple[float, ...] = ()
        self.longitudes: tuple[float, ...] = ()
        self.corner = (0, 0)
        self.leads: tuple[int, ...] = ()
        self.step = 0.0, "hours"
        self.seed = 0
        self.archive: Archive | None = None
        self.files: dict[str, int] = {}
        self.learned = Learned(self.wanted.fields, self.targets_wanted, climatology)
        self.inputs = Inputs(self.learned, self.variables, self.targets_wanted, self.forcings, rollout)
        self._drawn: tuple[int, Any] = (-1, None)

    # ------------------------------------------------------------------------------------------------------- data

    @property
    def head(self) -> ForecastHead:
        given = (*self.variables, *self.forcings)
        where = self.grid.shape, self.corner, self.grid.latitudes, self.grid.longitudes
        return ForecastHead("forecast", len(self.targets_wanted), given, self.targets_wanted, *where)

    def prepare(self, request: DataRequest, fetch: Callable[[Source], Path]) -> Data:
        self.inputs.settle(request.card, self.predicts)
        if self.learned.predicts == "difference" and (aside := set(self.targets_wanted) - set(self.variables)):
            raise InputError(
                f"{request.card.name} predicts differences: every target must be among the variables; "
                f"{', '.join(sorted(aside))} are not; add them, or say predicts: state"
            )
        series = open_archive(request, fetch, self.wanted)
        axis = series[0].axis
        if request.recipe.data.split.method not in SPLITS:
            check_alone(series[0], self.grid, self.step)
        self.step = axis.step, axis.unit
        self.leads = tuple(self.lead_steps or (axis.steps(hours) for hours in self.lead_hours or ()))
        self.archive = Archive(series, self.inputs.needs.window(self.leads, self.rollout, axis), request, self.wanted)
        self.files = self.archive.files
        self.latitudes, self.longitudes = series[0].grid.latitudes, series[0].grid.longitudes
        if self.ensemble is not None:
            self.ensemble.check(self.grid)
        self.corner = corner_of(series[0], self.wanted.box, request.card)
        self.seed = request.recipe.train.seed
        self._drawn = -1, None
        if not self.archive.whole:  # what is scored alone is measured against what the model was trained on
            self.learned.from_archive(self.archive)
        found, row = {}, 0
        for part in ("train", "valid", "test"):
            found[part] = self._initials(part, row, scored=part != "train" or self.archive.whole)
            row += len(found[part])
        skipped = [
            Skipped(index, "all", f"{fields.label}: {reason}" if len(series) > 1 else reason)
            for fields, bad in zip(series, self.archive.bad, strict=True)
            for index, reason in bad.items()
        ]
        return Data(
            found["train"], found["valid"], found["test"], self.archive.split, tuple(skipped), self.archive.notes
        )

    def _initials(self, part: str, row: int, *, scored: bool) -> tuple[Initial, ...]:
        archive = self._opened
        samples = archive.samples[part]
        found: list[Initial] = []
        wanted = sorted(ways(self.leads, self.rollout).values()) if scored else [(0, self.rollout)]
        for number in range(0, len(samples), self.every if scored else 1):
            axis = archive.series[int(samples.series[number])].axis
            start = int(samples.start[number])
            for lead, steps in wanted:
                end = samples.indices(number, lead or max(self.leads))[1][steps - 1]
                label = axis.label(end) if scored else ""
                found.append(Initial(row + len(found), axis.label(start), part, number, lead, steps, label))
        return tuple(found)

    @property
    def _opened(self) -> Archive:
        if self.archive is None:
            raise ValueError("forecast: no data yet: call prepare first")
        return self.archive

    def read_inputs(
        self, request: DataRequest, fetch: Callable[[Source], Path], table: pd.DataFrame
    ) -> tuple[list[Any], dict[int, str]]:
        raise InputError("forecast: predicts from files of fields, not from tables; give a NetCDF, Zarr or GRIB file")

    def seen(self, fields: Fields) -> Fields:
        """Fields as the model is given them."""
        return fields

    def of_file(self, fields: Fields) -> Fields:
        """Fields of a file to forecast from, as the model is given them. Raises `InputError` for another grid."""
        check_grid(fields, self.grid)
        return self.seen(fields)

    def length(self, example: Initial) -> int:
        return math.prod(self.grid.shape)

    @property
    def grid(self) -> Grid:
        return Grid(self.latitudes, self.longitudes)

    # ------------------------------------------------------------------------------------------------------ batches

    def blank_batch(self, card: ModelCard, rows: int, length: int) -> Batch:
        self.inputs.settle(card, self.predicts)
        if not self.latitudes:
            self._assume(card, card.config.get("grid"))
        grid = self.grid.shape
        targets = torch.zeros(rows, self.rollout, len(self.targets_wanted), *grid)
        return Batch(self.inputs.blank(rows, grid), targets, rows)

    def assume(self, request: DataRequest) -> int:
        """Grid points where the data is not at hand: of the model's grid, or of that of the dataset's card."""
        of_data = request.dataset.grid if request.dataset else None
        self._assume(request.card, request.card.config.get("grid") or of_data)
        return math.prod(self.grid.shape)

    def _assume(self, card: ModelCard, shape: tuple[int, int] | None) -> None:
        """An even grid of the globe: all that a model with a grid of its own takes, else what the recipe's box has."""
        if not shape:
            raise InputError(f"{card.name} is made for the grid of the data, which is not at hand; fetch it first")
        globe = even_globe(shape)
        box = None if card.config.get("grid") else self.wanted.box
        grid = layout(card.name, globe, latitude=LATITUDE, box=box).grid
        self.latitudes, self.longitudes = grid.latitudes, grid.longitudes

    def collate(self, examples: Sequence[Initial], rows: Sequence[int], epoch: int | None) -> Batch:
        made = [self._one(example, epoch) for example in examples]
        whole = {name: torch.tensor(np.stack([one[name] for one in made])) for name in made[0]}
        return Batch(whole, whole.pop("target"), len(made), tuple(rows))

    def _one(self, example: Initial, epoch: int | None) -> dict[str, Any]:
        archive, states = self._opened, self.learned.states
        lead = example.lead or self._lead(example, epoch)
        fields, start, ends = archive.read(example.part, example.number, lead)
        seen, ends = self.seen(fields), ends[: example.steps]
        wanted = fields.read(ends, self.targets_wanted)
        found = self.inputs.given(self.inputs.before(seen, start, self.step), seen, fields.axis, [start, *ends], lead)
        own = states.of(self.targets_wanted)
        if epoch is not None:
            found["target"] = own.normalise(wanted - self.inputs.usual(fields.axis, ends, self.targets_wanted))
            return found
        before = seen.read(start, self.targets_wanted)
        usual = self.learned.climatology.at(fields.axis, ends[-1], self.targets_wanted)
        found["target"] = np.stack([wanted[-1], before, usual])
        found["steps"], found["lead"] = np.int64(example.steps), np.int64(lead)
        return found

    def _lead(self, example: Initial, epoch: int | None) -> int:
        if epoch is None:
            return max(self.leads)
        if self._drawn[0] != epoch:
            self._drawn = epoch, self._opened.samples["train"].leads(self.seed, epoch)
        return int(self._drawn[1][example.number])

    # -------------------------------------------------------------------------------------------- loss and predictions

    def steps(self, model: nn.Module, batch: Batch, steps: int) -> Iterator[Tensor]:
        """Normalised forecasts (B O H W) after each of some steps."""
        return roll_out(model, batch.inputs, (*self.variables, *self.forcings), self.targets_wanted, steps)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Squared errors of normalised fields (of normalised differences), weighted by latitude and field."""
        device = batch.targets.device
        rows = torch.tensor(latitude_weights(self.latitudes, self.weighting), dtype=torch.float32, device=device)
        fields = torch.tensor(self.target_weights, device=device)
        weights = rows[:, None] * (fields * len(self.target_weights) / sum(self.target_weights))[:, None, None]
        total = batch.targets.new_zeros(())
        for step, said in enumerate(self.steps(model, batch, self.rollout)):
            error = said - batch.targets[:, step]
            if "scale" in batch.inputs:
                error = error / batch.inputs["scale"]
            total = total + (error.square() * weights).mean(dim=(1, 2, 3)).sum()
        return total / self.rollout

    def predict(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Errors of each forecast, of persistence and of climatology, and the anomaly correlation, field by field."""
        said = self.fields(model, batch)
        truth, before, usual = (batch.targets[:, i].double().cpu().numpy() for i in range(3))
        weights = latitude_weights(self.latitudes, "area")
        hours = (batch.inputs["hours"] * batch.inputs["steps"]).tolist()
        leads = (batch.inputs["lead"] * batch.inputs["steps"]).tolist()
        found = []
        for i, forecast in enumerate(said):
            scores = scores_of(self.targets_wanted, forecast, truth[i], before[i], usual[i], weights, self.systems)
            found.append({"lead_steps": leads[i], "lead_hours": round(hours[i], 3), **scores})
        return found

    def fields(self, model: nn.Module, batch: Batch) -> Any:
        """Forecasts (B O H W) in the units of the table of names, float64, each after the steps that it asks for."""
        steps = [int(n) for n in batch.inputs["steps"]]
        last: list[Any] = [None] * len(steps)
        for number, said in enumerate(self.steps(model, batch, max(steps)), 1):
            for i, wanted in enumerate(steps):
                if wanted == number:
                    last[i] = said[i]
        return self.inputs.in_units(torch.stack(last), batch.targets[:, 2].cpu().numpy())

    def combine(
        self, predictions: Sequence[Mapping[str, Any]], examples: Sequence[Initial]
    ) -> dict[int, Mapping[str, Any]]:
        return {example.row: prediction for example, prediction in zip(examples, predictions, strict=True)}

    def targets(self, examples: Sequence[Initial]) -> dict[int, str]:
        """The time that is forecast, by row."""
        return {example.row: example.target for example in examples}

    def metrics(self, predictions: Sequence[Mapping[str, Any]], targets: Sequence[Any]) -> dict[str, float]:
        return summary(
            predictions, self.targets_wanted, self.learned.states.of(self.targets_wanted).std, systems=self.systems
        )

    def floors(self, predictions: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
        """Metrics of persistence and climatology over the same forecasts."""
        deviations = self.learned.states.of(self.targets_wanted).std
        return {
            system.rstrip("_"): found
            for system in self.systems[1:]
            if (found := summary(predictions, self.targets_wanted, deviations, system, self.systems))
        }

    # ------------------------------------------------------------------------------------------------- a finished run

    def state(self) -> dict[str, Any]:
        return {
            "latitudes": list(self.latitudes),
            "longitudes": list(self.longitudes),
            "corner": list(self.corner),
            "leads": list(self.leads),
            "step": list(self.step),
            "files": self.files,
            **self.learned.to_json(self.leads),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.latitudes, self.longitudes = tuple(state["latitudes"]), tuple(state["longitudes"])
        self.corner, self.leads = (state["corner"][0], state["corner"][1]), tuple(state["leads"])
        self.step = state["step"][0], state["step"][1]
        self.files = state["files"]
        self.learned.from_json(state)

    def save_files(self, folder: Path) -> None:
        """What a finished run needs and is too large for `state`."""
        self.learned.save(folder)

    def load_files(self, folder: Path) -> None:
        self.learned.load(folder, self.grid)

    def predict_file(
        self, request: DataRequest, model: nn.Module, device: torch.device, source: Place, target: Path
    ) -> tuple[int, int, dict[str, int]]:
        """See `zoo.meteorology.forecast_runs.predict_file`."""
        from zoo.meteorology.forecast_runs import predict_file

        return predict_file(self, request, model, device, source, target)

    def score_file(
        self, request: DataRequest, forecast: Place, truth: Place, target: Path | None, picture: Path | None
    ) -> Scores:
        """See `zoo.meteorology.scoring.score_file`."""
        from zoo.meteorology.scoring import score_file

        return score_file(self, request, forecast, truth, target, picture)

    def illustrate(
        self, model: nn.Module, device: torch.device, data: Data, scores: Sequence[Mapping[str, Any]], folder: Path
    ) -> None:
        """See `zoo.meteorology.forecast_runs.illustrate`."""
        from zoo.meteorology.forecast_runs import illustrate

        illustrate(self, model, device, data, scores, folder)
