"""One run from recipe to summary: plan, build, train, test, save, report."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from zoo.card import Source
from zoo.data.prepare import Data
from zoo.errors import DoesNotFit, InputError
from zoo.memory.allocator import grows
from zoo.memory.predict import Footprint, context_of
from zoo.memory.scaling import Estimate
from zoo.planner import decide, limits_of, survey, what_is_free
from zoo.plans import Decision, Limits, Plan, Workload
from zoo.resolve import Job, lacks_data
from zoo.step import Setup, build, describe, reproducible
from zoo.training import inference, state
from zoo.training.baselines import floors
from zoo.training.export import save_model, size_on_disk
from zoo.training.files import RunFolder, environment, read_json, write_json, write_table, write_text
from zoo.training.loop import Loop
from zoo.training.meter import Meter, meter_for, with_peak
from zoo.training.recovery import within
from zoo.training.values import loader_of
from zoo.training.watcher import Watcher
from zoo.units import format_bytes
from zoo.weights import fetch, is_local
from zoo.weights.cache import sha256_of

Fetch = Callable[[Source], Path]


def training_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fetcher(*, progress: bool) -> Fetch:
    return lambda source: fetch(source, progress=progress)


def plan(job: Job, *, local_only: bool = True, exhaustive: bool = False) -> tuple[Decision, Workload, Data | None]:
    """Plan a job. With `local_only` nothing is downloaded: data that is not at hand is planned at its largest.

    `exhaustive`: see `decide`.
    """
    workload, data = _surveyed(job, local_only=local_only)
    return decide(job, workload, limits_of(job.recipe.budget), exhaustive=exhaustive), workload, data


def workload_of(job: Job) -> Workload:
    """What the job's data demands; of data that is not at hand, the most that is allowed. Nothing is downloaded."""
    return _surveyed(job, local_only=True)[0]


def _surveyed(job: Job, *, local_only: bool) -> tuple[Workload, Data | None]:
    sources = [job.dataset.source] if job.dataset else []
    sources += [job.card.source] if job.card.source and job.card.tokenizer_files else []
    local = not local_only or (not lacks_data(job.recipe) and all(is_local(source) for source in sources))
    return survey(job, fetcher(progress=False), local=local)


@dataclass(frozen=True)
class Finished:
    """A run that ended: its folder and what its summary says."""

    folder: RunFolder
    summary: dict[str, Any]


def train(
    job: Job,
    *,
    output: Path | None = None,
    resume: bool = False,
    with_baselines: bool = False,
    watcher: Watcher | None = None,
    progress: bool = False,
    on_plan: Callable[[Decision, Data], None] | None = None,
) -> Finished:
    """Run a recipe to the end.

    Raises `DoesNotFit` when no allowed plan stays inside the budget, `InputError`, `WeightsError`, `TrainingError`, and
    `Interrupted` after Ctrl-C (the state is saved).
    """
    folder = RunFolder(output or job.recipe.output_folder)
    new = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
    try:
        return _train(job, folder, resume, with_baselines, watcher or Watcher(), progress, on_plan)
    except BaseException:
        for path in new:  # what failed before there was anything to say leaves no folder behind
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _train(
    job: Job,
    folder: RunFolder,
    resume: bool,
    with_baselines: bool,
    watcher: Watcher,
    progress: bool,
    on_plan: Callable[[Decision, Data], None] | None,
) -> Finished:
    folder.prepare(resume=resume, needed_bytes=0)
    get = fetcher(progress=progress)
    workload, data = survey(job, get, local=True)
    assert data is not None
    resolved = _resolved(job)
    _check_same(folder, job, resolved)
    limits = what_is_free(limits_of(job.recipe.budget), training_device())
    started = folder.resolved.exists() and folder.plan.exists()
    decision = _as_started(folder, job, workload, limits) if started else decide(job, workload, limits)
    if not decision.fits:
        raise DoesNotFit("; ".join(decision.reasons) + f"; it would use {_named(decision.chosen)}")
    if on_plan is not None:
        on_plan(decision, data)
    with (
        _deterministic(job.recipe.train.seed),
        _metered(training_device()) as (device, meter),
        within(device, decision.limits.device_bytes - context_of(limits.device), growing=grows(limits.device)),
    ):
        setup = build_for(job, decision.chosen, device, progress=progress)
        folder.prepare(resume=resume, needed_bytes=size_on_disk(setup))
        if (limits.device.name == "cpu") != (device.type == "cpu"):
            setup.notes.append(
                f"planned for {limits.device.title}, trained on {device.type}: "
                "predicted and measured memory are those of different devices"
            )
        if resume and not folder.resolved.exists():
            setup.notes.append(f"{folder.path}: there was no run to go on with, so it was started")
        _describe(folder, job, resolved, decision, data)
        setup.phase = meter.phase
        before = state.progress_in(folder.checkpoint) if resume and folder.checkpoint.exists() else state.Progress()
        longest = decision.chosen.tokens
        unadapted: dict[str, dict[str, float]] = {}
        if with_baselines and job.task.head.kind == "masked_lm" and data.test:
            unadapted["unadapted"] = _test(setup, job, data, decision.chosen, longest)[0]["test"]
        done = state.Progress()
        if before.measured:  # else it stopped in its first steps, which are run again: they are the measured ones
            done = state.restore(folder.checkpoint, setup)
            meter.stop()
        left = None if before.measured else meter
        kept = decision.limits.device_bytes if device.type == "cpu" and job.recipe.budget.device is not None else None
        loop = Loop(setup, job.task, data, decision.chosen, job.recipe.train, folder, left, kept, watcher, done)
        done = loop.run()
        state.restore_best(folder.best, setup)
        save_model(setup, folder.model, job.recipe.checkpoint)
        micro = done.micro_batch_size or decision.chosen.micro_batch_size
        metrics, table = _test(setup, job, data, replace(decision.chosen, micro_batch_size=micro), longest)
    if device.type == "cpu" and (over := max(done.measured.values(), default=0) - decision.limits.device_bytes) > 0:
        setup.notes.append(
            f"memory: at its peak the profiler saw {format_bytes(over)} beyond the budget: what kernels took inside, "
            "in none of the tensors that the budget is enforced for"
        )
    _write_predictions(folder, table)
    if (keep := getattr(job.task, "save_files", None)) is not None:
        keep(folder.path)
    if table and (illustrate := getattr(job.task, "illustrate", None)) is not None:
        illustrate(setup.model.eval(), device, data, table, folder.path)
    summary: dict[str, Any] = {
        "name": job.recipe.name,
        "model": job.card.name,
        "checkpoint": job.recipe.checkpoint,
        "task": job.recipe.task_name,
        "split": data.split,
        "rows": {part: len({e.row for e in data.part(part)}) for part in ("train", "valid", "test")},
        "data_notes": data.notes,
        "techniques": dict(describe(decision.chosen.techniques)),
        "micro_batch_size": micro,
        "accumulation_steps": -(-decision.chosen.accumulation_steps * decision.chosen.micro_batch_size // micro),
        "memory": {
            "budget_bytes": decision.limits.device_bytes,
            "predicted_bytes": with_peak(decision.chosen.estimate.peak_by_phase),
            "measured_bytes": with_peak(done.measured),
            **_reserved(decision.chosen, done),
        },
        "metrics": metrics,
        "best_step": done.best_step,
        "steps": done.step,
        "seconds": round(done.seconds, 3),
        "ran_out_of_memory": done.ran_out,
        "notes": setup.notes,
    }
    own = getattr(job.task, "floors", None)  # floors that come with the predictions
    if table and own is not None:
        summary["baselines"] = own(table)
    if with_baselines:
        summary["baselines"] = {**summary.get("baselines", {}), **floors(job, data), **unadapted}
        if job.recipe.checkpoint != "random":
            other = replace(job, recipe=job.recipe.model_copy(update={"checkpoint": "random"}))
            watcher.compares("the same from random initialisation, to see what pretraining is worth")
            beside = RunFolder(folder.path / "random_initialisation")
            again = train(other, output=beside.path, resume=beside.resolved.exists(), watcher=watcher)
            summary["baselines"]["random_initialisation"] = again.summary["metrics"].get("test", {})
    write_json(folder.summary, summary)
    return Finished(folder, summary)


def _reserved(chosen: Plan, done: state.Progress) -> dict[str, Any]:
    """What a GPU's allocator asked for, which is more than what is in tensors."""
    if not done.reserved:
        return {}
    return {"reserved_bytes": {"predicted": chosen.footprint.reserved, "measured": done.reserved}}


def build_for(job: Job, chosen: Plan, device: torch.device, *, progress: bool = False) -> Setup:
    """The planned setup, for real, with its checkpoint loaded."""
    train_spec = job.recipe.train
    return build(
        job.card, job.task, chosen.techniques, device,
        micro_batch_size=chosen.micro_batch_size, learning_rate=train_spec.learning_rate,
        weight_decay=train_spec.weight_decay, max_grad_norm=train_spec.max_grad_norm, seed=train_spec.seed,
        load=loader_of(job.card, job.recipe.checkpoint, train_spec.seed, progress=progress),
    )  # fmt: skip


def _named(chosen: Plan) -> str:
    names = ", ".join(f"{key} {value}" for key, value in describe(chosen.techniques).items())
    batch = f"micro-batch {chosen.micro_batch_size} x {chosen.accumulation_steps}"
    return f"{names}, {batch}, {format_bytes(chosen.peak_bytes)}"


@contextlib.contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """The same numbers on every run: algorithms that are, and random ones from `seed` on."""
    with reproducible():
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _metered(device: torch.device) -> Iterator[tuple[torch.device, Meter]]:
    """A meter that has stopped when the run ends, however it ends: the next one could not start otherwise."""
    meter = meter_for(device)
    try:
        yield device, meter
    finally:
        meter.stop()


def _resolved(job: Job) -> dict[str, Any]:
    """What makes a run this run and no other."""
    path = job.recipe.data.path
    if path is not None and path.lower().endswith(job.domain.formats):
        path = None  # a pattern, an address, terabytes: the task's state says what its files are
    return {
        "recipe": job.recipe.model_dump(mode="json"),
        "overrides": list(job.file.overrides),
        "task": job.task.state(),
        "data_sha256": None if path is None else sha256_of(Path(path)),
    }


def _check_same(folder: RunFolder, job: Job, resolved: dict[str, Any]) -> None:
    """A resumed run must be the one that was started. Raises `InputError` naming what differs."""
    if not folder.resolved.exists():
        return
    before, now = read_json(folder.resolved, "recipe", "task", "data_sha256"), json.loads(json.dumps(resolved))
    changed = sorted(_changed(before["recipe"], now["recipe"]))
    if not changed and before["data_sha256"] != now["data_sha256"]:
        raise InputError(
            f"{folder.path}: the data is not what this run was started with ({job.recipe.data.path} "
            "has changed); put it back, or start in another --output"
        )
    if not changed and before["task"] != now["task"]:
        differing = ", ".join(sorted(_changed(before["task"], now["task"])))
        data = job.recipe.data.path or job.recipe.data.source
        raise InputError(
            f"{folder.path}: {job.recipe.task_name} takes something else from {data} than when this run was started "
            f"({differing}); start in another --output"
        )
    if changed:
        raise InputError(
            f"{folder.path}: the recipe differs from the one that this run was started with in {', '.join(changed)}; "
            "resume with the same recipe and overrides, or start in another --output"
        )


def _changed(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """Dotted keys whose values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in before.keys() | now.keys():
            yield from _changed(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield key


def _as_started(folder: RunFolder, job: Job, workload: Workload, limits: Limits) -> Decision:
    """The plan that a resumed run was started with, however much memory this machine has free now."""
    written = read_json(folder.plan, "chosen", "budget_bytes")
    before = written["chosen"]
    same = (t for t in itertools.product(*job.choices.values()) if dict(describe(t)) == before["techniques"])
    techniques = next(same, None)
    if techniques is None or before["tokens_per_row"] != workload.tokens:
        raise InputError(
            f"{folder.plan}: the plan that this run was started with is not one that its recipe allows now; "
            "start in another --output"
        )
    estimate = Estimate(
        before["peak_by_phase"], before["peak_by_category"], before["step_seconds"], before.get("host_by_category", {})
    )
    micro, count = before["micro_batch_size"], before["accumulation_steps"]
    footprint = Footprint.of(limits.device, before["peak_bytes"]["allocated"], before["peak_bytes"]["reserved"])
    plan = Plan(techniques, micro, count, estimate, footprint, before["host_bytes"], workload.tokens, confirmed=True)
    if (reason := limits.why_not(plan)) is not None:
        raise DoesNotFit(f"{folder.path}: the plan that this run was started with ({_named(plan)}) {reason}")
    limits = replace(limits, device_bytes=written["budget_bytes"])  # as the run's report says, however it is now
    return Decision(True, limits, workload, plan, reasons=("this is the plan that the run was started with",))


def _describe(folder: RunFolder, job: Job, resolved: dict[str, Any], decision: Decision, data: Data) -> None:
    """Write what the run is before it starts; `resolved` last, which makes the folder a run's."""
    write_text(folder.recipe, job.file.text)
    if not folder.resolved.exists():
        write_json(folder.plan, decision.to_json())
    write_json(folder.environment, environment())
    if data.skipped:
        write_table(
            folder.skipped, ["row", "part", "reason"],
            ({"row": s.row + 1, "part": s.part, "reason": s.reason} for s in data.skipped),
        )  # fmt: skip
    write_json(folder.resolved, resolved)


def _test(
    setup: Setup, job: Job, data: Data, chosen: Plan, longest: int
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Metrics of the best model on the validation and test parts, and its test predictions."""
    metrics: dict[str, dict[str, float]] = {}
    table: list[dict[str, Any]] = []
    for part in ("valid", "test"):
        examples = data.part(part)
        if not examples:
            continue
        predictions = inference.predict(
            job.task, setup.model, examples, setup.device, rows=chosen.micro_batch_size, longest=longest
        )
        metrics[part] = inference.score(job.task, predictions, examples)
        if part == "test":
            texts = {e.row: e.text for e in examples}
            targets = job.task.targets(examples)
            table = [
                {"row": row + 1, "input": texts[row], "target": _in_words(targets[row]), **values}
                for row, values in job.task.combine(predictions, examples).items()
            ]
    return metrics, table


def _in_words(target: Any) -> Any:
    """A target of several labels as its predictions are written."""
    return " ".join(target) if isinstance(target, tuple) else target


def _write_predictions(folder: RunFolder, table: list[dict[str, Any]]) -> None:
    if table:
        write_table(folder.predictions, table[0], sorted(table, key=lambda entry: entry["row"]))
