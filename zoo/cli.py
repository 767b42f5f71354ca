"""The command line: arguments in, words and exit codes out. What it prints is drawn by `zoo.console`.

Nothing heavy is imported before a command needs it, so that ``zoo --help`` answers at once.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.places import target

if TYPE_CHECKING:
    from zoo.resolve import Job

app = typer.Typer(
    name="zoo",
    help="Models for science, fine-tuned inside a memory budget that is predicted before anything runs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RecipePath = Annotated[Path, typer.Argument(help="A recipe file, or the path of a shipped one.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key: --set train.epochs=3", metavar="A.B=V")
]
BudgetOption = Annotated[str | None, typer.Option("--budget", help="Device memory, for example 8GiB.")]
GpuOption = Annotated[str | None, typer.Option("--gpu", help="Plan for this device by name, or auto.")]
Anew = Annotated[list[str] | None, typer.Option("--set", help="Tell anew: task.forecast.files={..}", metavar="A.B=V")]
_TO: dict[str, Any] = {"parser": target, "metavar": "PATH"}
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from zoo import __version__

        print(f"science-zoo {__version__}")
        raise typer.Exit


def _job(
    path: Path,
    overrides: list[str] | None,
    budget: str | None = None,
    gpu: str | None = None,
    max_steps: int | None = None,
) -> Job:
    from zoo.resolve import load_job

    return load_job(path, overrides or (), budget=budget, gpu=gpu, max_steps=max_steps)


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2))


@app.command()
def plan(
    recipe: RecipePath,
    budget: BudgetOption = None,
    gpu: GpuOption = None,
    overrides: Overrides = None,
    show_all: Annotated[bool, typer.Option("--all", help="Try and show every combination.")] = False,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="Plan for every device; with --gpu or --budget, find the largest that it holds."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Say whether a recipe fits, what it takes, and which techniques to use. Exit code 1 if nothing fits."""
    gc.disable()  # a short life: looking for garbage among what is imported takes a fifth of it
    from zoo.weights.lean import only_plans

    job = _job(recipe, overrides, budget, gpu)
    only_plans()
    from zoo import console
    from zoo.training.run import plan as make_plan

    console.note_data_that_is_lacking(job)
    if sweep:
        _sweep(job, as_json, every=budget is None and gpu is None)
        return
    decision, _, _ = make_plan(job, exhaustive=show_all)
    if as_json:
        content = decision.to_json()
        if show_all:
            content["considered"] = [p.to_json() for p in decision.considered]
        _print_json(content)
    else:
        console.show_plan(job, decision, show_all=show_all)
    if not decision.fits:
        raise typer.Exit(1)


def _sweep(job: Job, as_json: bool, *, every: bool) -> None:
    """Every device in turn, or the largest that the one of the budget holds."""
    from zoo import console
    from zoo.planner import limits_of
    from zoo.sweep import largest, on_every_device
    from zoo.training.run import workload_of

    workload = workload_of(job)
    if not every:
        limits = limits_of(job.recipe.budget)
        found = largest(job, workload, limits)
        if as_json:
            _print_json({"device": limits.device.name, "budget_bytes": limits.device_bytes, **found.to_json()})
        else:
            console.show_largest(job, limits, found)
        if not found.rows and not found.tokens:
            raise typer.Exit(1)
        return
    decisions = on_every_device(job, workload)
    if as_json:
        _print_json([decision.to_json() for decision in decisions])
    else:
        console.show_sweep(job, workload, decisions)


@app.command()
def train(
    recipe: RecipePath,
    budget: BudgetOption = None,
    gpu: GpuOption = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", min=1, help="Stop after this many updates.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", **_TO, help="The run's folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also train from random weights and run the domain's floors.")
    ] = False,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Train as planned and write everything about it to a folder."""
    job = _job(recipe, overrides, budget, gpu, max_steps)
    from zoo import console
    from zoo.training.run import train as run_training

    with console.TrainingView(job, quiet=as_json) as view:
        finished = run_training(
            job, output=output, resume=resume, with_baselines=baselines,
            watcher=view, progress=not as_json, on_plan=view.planned,
        )  # fmt: skip
    if as_json:
        _print_json(finished.summary)
    else:
        console.show_summary(finished.summary, finished.folder.path)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A file with the input column of the recipe.")],
    output: Annotated[Path, typer.Option("--output", "-o", **_TO, help="CSV, TSV, Parquet; NetCDF, Zarr.")],
    overrides: Anew = None,
    as_json: Json = False,
) -> None:
    """Predict every row of a file. Rows, order and columns stay; rows that cannot be read get an error."""
    from zoo.errors import counted
    from zoo.training.finished import Run, predict_file

    opened = Run.open(run, progress=not as_json, overrides=overrides or ())
    notes: dict[str, int] = {}
    rows, unread = predict_file(opened, source, output, notes)
    fields = hasattr(opened.job.task, "predict_file")
    if as_json:
        known = {"left_out" if fields else "notes": notes}
        _print_json({"rows": rows, "unreadable": unread, **known, "output": str(output)})
    else:
        table = f"{rows} rows, {unread} of them could not be read (see column error)"
        told = f"; {'left out: ' * fields}{counted(notes)}" if notes else ""
        print(f"{output}: {f'from {rows} times; {unread} others could not be read' if fields else table}{told}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    source: Annotated[str | None, typer.Argument(metavar="[INPUT]", help="A file with inputs and targets.")] = None,
    forecast: Annotated[str | None, typer.Option("--forecast", help="Score this file; INPUT is what came.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", **_TO, help="Its scores, as NetCDF.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", **_TO, help="Its errors by lead time, as PNG.")] = None,
    overrides: Anew = None,
    as_json: Json = False,
) -> None:
    """Score a finished run on its own test part, or on a file of yours; or forecasts of a file against what came."""
    from zoo import console
    from zoo.training.finished import Run, score_file

    opened = Run.open(run, progress=not as_json, overrides=overrides or ())
    if forecast or output or plot:
        scores = score_file(opened, forecast, source, output, plot)
        _print_json(scores.facts) if as_json else console.show_scores(scores)
        return
    found, notes, split = opened.scored(source)
    if as_json:
        _print_json({part: {**own, "notes": notes} if source else own for part, own in found.items()})
    else:
        console.show_metrics(found, split, notes)


@app.command()
def check(recipe: RecipePath, overrides: Overrides = None, as_json: Json = False) -> None:
    """Validate a recipe: every problem at once, with file and line. Exit code 2 if there are any."""
    from zoo.errors import InputError

    try:
        job = _job(recipe, overrides)
    except InputError as error:
        if not as_json:
            raise
        _print_json({"valid": False, "problems": list(error.problems)})
        raise typer.Exit(error.exit_code) from None
    from zoo import console

    console.note_data_that_is_lacking(job)
    if as_json:
        _print_json({"valid": True, "problems": []})
    else:
        print(f"{recipe}: valid ({job.card.name}, {job.recipe.task_name})")


@app.command()
def models(
    domain: Annotated[str | None, typer.Option("--domain", help="Only models of this domain.")] = None,
    as_json: Json = False,
) -> None:
    """List the models."""
    from zoo.domain import domains
    from zoo.domain import models as all_models
    from zoo.errors import InputError, unknown

    if domain is not None and domain not in domains():
        raise InputError(unknown("--domain", "domain", domain, domains()))
    cards = [card for card in all_models().values() if domain in (None, card.domain)]
    if as_json:
        facts = "name", "domain", "parameters", "licence", "tasks", "title"
        _print_json([{fact: getattr(card, fact) for fact in facts} for card in cards])
    else:
        from zoo import console

        console.show_models(cards)


@app.command()
def datasets(as_json: Json = False) -> None:
    """List the datasets."""
    from zoo.domain import datasets as all_datasets

    cards = list(all_datasets().values())
    if as_json:
        _print_json([card.model_dump(mode="json") for card in cards])
    else:
        from zoo import console

        console.show_datasets(cards)


@app.command()
def show(name: Annotated[str, typer.Argument(help="A model or a dataset.")], as_json: Json = False) -> None:
    """Show the card of a model or a dataset."""
    card = _card(name, "zoo show")
    if as_json:
        _print_json(card.model_dump(mode="json"))
    else:
        from zoo import console

        console.show_card(card)


def _card(name: str, where: str) -> Any:
    """The card of a model or a dataset."""
    from zoo.domain import datasets as all_datasets
    from zoo.domain import models as all_models
    from zoo.errors import InputError, unknown

    cards: dict[str, Any] = {**all_datasets(), **all_models()}
    if name not in cards:
        raise InputError(unknown(where, "model or dataset", name, cards))
    return cards[name]


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A model or a dataset.")],
    as_json: Json = False,
) -> None:
    """Download the files of a model or a dataset ahead of time, and check those that are here."""
    from zoo.errors import InputError
    from zoo.weights import fetch as get

    source = _card(name, "zoo fetch").source
    if source is None:
        raise InputError(f"{name} has no published weights: there is nothing to fetch")
    folder = get(source, progress=not as_json, name=name, verify=True)
    if as_json:
        _print_json({"name": name, "folder": str(folder)})
    else:
        print(f"{name}: {folder}")


@app.command()
def schema(as_json: Json = True) -> None:
    """Print the JSON schema of recipes, for editors."""
    from zoo.recipe_file import schema as recipe_schema

    _print_json(recipe_schema())
