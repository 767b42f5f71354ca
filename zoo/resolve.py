"""What a recipe's names mean here: its domain, model, task, data and techniques, or every name that is wrong."""

from __future__ import annotations

import contextlib
import glob
import inspect
import itertools
import re
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from pydantic import ConfigDict, Field, create_model

from zoo.card import DatasetCard, ModelCard, Ref, load_ref
from zoo.data.tables import CORE_SUFFIXES, columns_of
from zoo.domain import Domain, Task, datasets, domains, left_out, models
from zoo.errors import InputError, nearest, unknown
from zoo.explain import validate
from zoo.recipe import Budget, Recipe
from zoo.recipe_file import RecipeError, RecipeFile, read_recipe
from zoo.strict_yaml import Key, Problems
from zoo.techniques import Technique, registry


@dataclass(frozen=True)
class Job:
    """A recipe with its names looked up.

    `choices` maps every technique key to the options that are left open: one where the recipe names it, all where it
    says nothing or auto. `left_out` are open options that the model cannot have, with the reason.
    """

    file: RecipeFile
    recipe: Recipe
    domain: Domain
    card: ModelCard
    task: Task
    dataset: DatasetCard | None
    choices: Mapping[str, tuple[Technique, ...]]
    left_out: tuple[tuple[Technique, str], ...] = ()


def load_job(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    budget: str | int | None = None,
    gpu: str | None = None,
    max_steps: int | None = None,
) -> Job:
    """Read a recipe and look up its names. Raises `InputError` with the problems of both, in the order of the file.

    `budget`, `gpu` and `max_steps` override ``budget.device``, ``budget.gpu`` and ``train.max_steps``. On a CPU, whose
    memory is the host's, `budget` overrides ``budget.host`` where the recipe has less.
    """
    if isinstance(overrides, str):
        raise InputError(f"overrides: is one text; give a list of them: [{overrides!r}]")
    named = {"budget.device": budget, "budget.gpu": gpu, "train.max_steps": max_steps}
    examples = {"budget": (budget, "an amount such as 8GiB"), "gpu": (gpu, "a device's name, or auto")}
    if empty := [f"--{key}: is empty; give {what}, or leave it out" for key, (v, what) in examples.items() if v == ""]:
        raise InputError(empty)
    given = [*overrides, *(f"{key}={value}" for key, value in named.items() if value is not None)]
    try:
        file = read_recipe(path, given)
        if budget is not None and file.recipe.budget.host_is_less and _on_a_cpu():
            file = read_recipe(path, [f"budget.host={budget}", *given])  # one that is given by name comes later
    except RecipeError as error:
        problems = list(error.problems)
        if error.usable is not None:
            try:
                resolve(error.usable)
            except InputError as more:
                problems += [problem for problem in more.problems if problem not in problems]
        raise InputError(sorted(problems, key=_line)) from None
    return resolve(file)


def _on_a_cpu() -> bool:
    from zoo.memory.devices import detect

    return detect().name == "cpu"


def lacks_data(recipe: Recipe) -> bool:
    """Whether the recipe's data is a file, a folder or a pattern of files, and there is none.

    A table has to be there; fields on grids of a domain's own formats are planned for before they are.
    """
    path = recipe.data.path
    return path is not None and "://" not in path and not glob.glob(path) and not Path(path).exists()


def _line(problem: str) -> int:
    """The line that a problem starts with; overrides come last."""
    found = re.match(r".*?:(\d+)[: ]", problem)
    return int(found[1]) if found and not problem.startswith("--set") else sys.maxsize


def resolve(file: RecipeFile, *, needs_data: bool = True) -> Job:
    """Look up every name of a recipe. Raises `InputError` with all that are wrong, each with file and line.

    A finished run is of use without the file that it was trained on: `needs_data` false does not look for it.
    """
    recipe = file.recipe
    problems: Problems = []
    domain = domains().get(recipe.domain)
    if domain is None:
        lacking = left_out().get(recipe.domain)
        problems.append((("domain",), lacking or _unknown("domain", recipe.domain, domains())))
    card = models().get(recipe.model)
    if card is None:
        problems.append((("model",), _unknown("model", recipe.model, models())))
    elif domain is not None and card.domain != domain.name:
        own = ", ".join(sorted(model.name for model in domain.models)) or "none"
        problems.append((("model",), f"{card.name} is a model of {card.domain}, not of {domain.name} (its own: {own})"))
    task = _task(recipe, card, domain, problems)
    dataset = _data(recipe, card, domain, problems, needs_data=needs_data)
    problems += _columns(recipe, task if card and recipe.task_name in card.tasks else None, dataset, file=needs_data)
    problems += _checkpoint(recipe.checkpoint, card)
    problems += _budget(recipe.budget)
    choices, without = _techniques(recipe, card, problems)
    if problems or domain is None or card is None or task is None:
        raise InputError(file.places.sentences(problems))
    return Job(file, recipe, domain, card, task, dataset, choices, without)


def _unknown(what: str, got: str, allowed: Iterable[str]) -> str:
    return unknown("", what, got, allowed).removeprefix(": ")


# ------------------------------------------------------------------------------------------------------ task


def _task(recipe: Recipe, card: ModelCard | None, domain: Domain | None, problems: Problems) -> Task | None:
    from zoo.tasks import STANDARD

    name = recipe.task_name
    known: dict[str, Ref] = {**STANDARD, **(domain.tasks if domain else {})}
    if name not in known:
        allowed = [task for task in known if card is None or task in card.tasks]
        problems.append((("task",), _unknown("task", name, allowed)))
        return None
    if card is not None and name not in card.tasks:
        problems.append((("task",), f"{card.name} cannot do {name} (its tasks: {', '.join(sorted(card.tasks))})"))
    made = load_ref(known[name])
    options, wrong = _arguments(made, name, recipe.task_options)
    problems += [(("task", name, *key), sentence) for key, sentence in wrong]
    if wrong:
        return None
    try:
        task: Task = made(**options)
    except (InputError, ValueError, TypeError) as error:
        reasons = error.problems if isinstance(error, InputError) else (str(error),)
        problems += [(("task", name), reason) for reason in reasons]
        return None
    return task


def _class_of(name: str, domain: Domain | None) -> Any:
    """The class of a task by name, whether or not its options are right; None where there is none."""
    from zoo.tasks import STANDARD

    ref = (domain.tasks if domain else {}).get(name) or STANDARD.get(name)
    return load_ref(ref) if ref else None


def _arguments(made: Any, name: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], Problems]:
    """`given` as arguments of a constructor, with the types that its signature states."""
    try:
        hints = typing.get_type_hints(made.__init__)
    except NameError:  # names that exist for type checkers only
        hints = {}
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(made).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            required = parameter.default is parameter.empty
            default = Field() if required else Field(default=parameter.default)
            fields[parameter.name] = (hints.get(parameter.name, Any), default)
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    options, problems = validate(create_model(name, __config__=config, **fields), given, f"option of {name}")
    if options is None:
        return {}, [(problem.key, problem.sentence) for problem in problems]
    return {option: getattr(options, option) for option in given}, []


# ------------------------------------------------------------------------------------------------------ data


def _data(
    recipe: Recipe,
    card: ModelCard | None,
    domain: Domain | None,
    problems: Problems,
    *,
    needs_data: bool,
) -> DatasetCard | None:
    data, dataset = recipe.data, None
    if data.source is not None:
        dataset = datasets().get(data.source)
        if dataset is None:
            own = [name for name, d in datasets().items() if domain is None or d.domain == domain.name]
            problems.append((("data", "source"), _unknown("dataset", data.source, own)))
        elif domain is not None and dataset.domain != domain.name:
            wrong = f"{dataset.name} is a dataset of {dataset.domain}, not of {domain.name}"
            problems.append((("data", "source"), wrong))
    elif data.path is not None and needs_data:
        reason = _unreadable(data.path, domain)
        problems += [(("data", "path"), reason)] if reason else []
    method, key = data.split.method, ("data", "split", "method")
    groups = domain.groups if domain else {method: ""}
    made = _class_of(recipe.task_name, domain)  # a task may have ways of its own
    known = list(getattr(made, "splits", None) or ["random", "given", "column", *groups])
    if method not in known:
        problems.append((key, _unknown("split method", method, known)))
    elif method == "given" and data.source is None:
        instead = "write method: column with the column of the words train, valid, test"
        problems.append((key, f"given is the publisher's own split of a dataset; for a file of yours {instead}"))
    elif method == "given" and dataset is not None and "test" not in dataset.files:
        parts = ", ".join(dataset.files)
        problems.append((key, f"{dataset.name} has no test part of its publisher (parts: {parts}); choose another"))
    if card is not None and data.max_length is not None:
        low, high = card.special_tokens + 1, card.max_length
        if not low <= data.max_length <= high:
            wrong = f"got {data.max_length}; {card.name} takes {low} to {high} tokens, special tokens included"
            problems.append((("data", "max_length"), wrong))
    return dataset


def _columns(recipe: Recipe, task: Task | None, dataset: DatasetCard | None, *, file: bool) -> Problems:
    """What the task needs of the data's columns, and whether a dataset, or a `file`, has those that are named."""
    data, place = recipe.data, ("data", "columns")
    problems: Problems = []
    keys = getattr(task, "columns", None)  # a task that reads its data in a way of its own need not say
    if keys is not None:
        what = f"column of {recipe.task_name}"
        problems += [((*place, key), _unknown(what, key, keys)) for key in data.columns if key not in keys]
        lacking = [key for key in keys if key not in data.columns]
        problems += [(place, f"{recipe.task_name} needs {key}: NAME OF A COLUMN") for key in lacking]
    known, origin = (list(dataset.columns), dataset.name) if dataset else (None, "")
    if file and keys is not None and data.path is not None:
        known, origin = columns_of(Path(data.path)), data.path
    if known:
        named: list[tuple[Key, str]] = [((*place, key), name) for key, name in data.columns.items()]
        named += [(("data", "where", name), name) for name in data.where]
        named += [(("data", "split", "column"), data.split.column)] if data.split.column is not None else []
        what = f"column of {origin}"
        problems += [(key, _unknown(what, name, known)) for key, name in named if name not in known]
    return problems


def _unreadable(path: str, domain: Domain | None) -> str | None:
    """Why a data file cannot be read, or None."""
    file = Path(path)
    if domain is not None and path.rstrip("/").lower().endswith(domain.formats or ("/",)):
        return None  # folders, patterns and addresses too: the task that reads them says what is wrong
    looked = "" if file.is_absolute() else f" (looked in {Path.cwd()})"
    if file.is_dir():
        return f"{path} is a folder; name a file"
    if not file.is_file():
        beside = [f.name for f in file.parent.iterdir() if f.is_file()] if file.parent.is_dir() else []
        close = nearest(file.name, beside)
        return f"{path}: no such file{looked}" + (f'; did you mean "{file.with_name(close)}"?' if close else "")
    suffixes = sorted({*CORE_SUFFIXES, *(domain.readers if domain else ()), *(domain.formats if domain else ())})
    if domain is not None and file.suffix.lower() not in suffixes:
        return f'{path}: files of type "{file.suffix}" cannot be read (readable: {", ".join(suffixes)})'
    try:
        with file.open("rb") as opened:
            return None if opened.read(1) else f"{path} is empty"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"


# -------------------------------------------------------------------------------------- checkpoint and budget


def _checkpoint(checkpoint: str, card: ModelCard | None) -> Problems:
    from zoo.weights.source import FileSource, GeneratedSource, parse

    words = ["pretrained", "random"]
    if checkpoint == "pretrained" and card is not None and card.source is None:
        return [(("checkpoint",), card.no_weights)]
    if checkpoint in words:
        return []
    try:
        source = parse(checkpoint)
    except InputError as error:
        close = nearest(checkpoint, words)
        if close:
            return [(("checkpoint",), _unknown("checkpoint", checkpoint, words))]
        return [(("checkpoint",), f"neither pretrained nor random, and {reason}") for reason in error.problems]
    if isinstance(source, GeneratedSource):
        return [(("checkpoint",), f"{source} makes data, not weights; write pretrained or random")]
    if isinstance(source, FileSource) and not source.path.exists():
        return [(("checkpoint",), f"{source.path}: no such file or folder")]
    return []


def _budget(budget: Budget) -> Problems:
    problems: Problems = []
    if budget.count > 1:
        problems.append((("budget", "count"), f"got {budget.count}; training is on one device so far, set count: 1"))
    if budget.gpu is not None:
        from zoo.memory.devices import find

        try:
            find(budget.gpu)
        except InputError as error:
            problems += [(("budget", "gpu"), reason) for reason in error.problems]
    return problems


# ------------------------------------------------------------------------------------------------ techniques


def _techniques(
    recipe: Recipe, card: ModelCard | None, problems: Problems
) -> tuple[dict[str, tuple[Technique, ...]], tuple[tuple[Technique, str], ...]]:
    written = recipe.techniques if isinstance(recipe.techniques, dict) else {}
    for key in written:
        if key not in registry():
            problems.append((("techniques", key), _unknown("technique", key, registry())))
    choices: dict[str, tuple[Technique, ...]] = {}
    left_out: list[tuple[Technique, str]] = []
    for key, options in registry().items():
        choice = written.get(key, "auto")
        if choice == "auto":
            made = [option() for option in options if not _required(option)]
            ready = [option for option in made if option.automatic_for(card)]
            choices[key] = tuple(option for option in ready if not _missing_role(option, card))
            left_out += [(option, reason) for option in ready if (reason := _missing_role(option, card))]
            continue
        named = {choice: None} if isinstance(choice, str) else choice
        picked = [_option(key, name, parameters, card, problems) for name, parameters in named.items()]
        choices[key] = tuple(option for option in picked if option is not None)
    if card is not None and all(choices.values()):
        problems += _impossible(recipe, card, choices)
    return choices, tuple(left_out)


def _impossible(
    recipe: Recipe, card: ModelCard, choices: Mapping[str, tuple[Technique, ...]]
) -> Iterable[tuple[Key, str]]:
    """Why no combination of the choices can be, where every one says so of itself before a model is built."""
    found: dict[tuple[Key, str], None] = {}
    for combination in itertools.product(*choices.values()):
        beside = SimpleNamespace(card=card, chosen=combination, max_grad_norm=recipe.train.max_grad_norm)
        refused = []
        for technique in combination:
            with contextlib.suppress(AttributeError, InputError):  # it has to see the model
                if (reason := technique.why_not(cast("Any", beside))) is not None:
                    refused.append((("techniques", technique.key), f"{technique.name}: {reason}"))
        if not refused:
            return []
        found.update(dict.fromkeys(refused))
    named = [place for place in found if len(choices[str(place[0][1])]) == 1]
    return named or list(found)


def _required(option: type[Technique]) -> bool:
    return any(field.is_required() for field in option.model_fields.values())


def _option(
    key: str, name: str, parameters: Mapping[str, Any] | None, card: ModelCard | None, problems: Problems
) -> Technique | None:
    """One option that a recipe names; `parameters` is None where it stands as a bare name."""
    place: Key = ("techniques", key) if parameters is None else ("techniques", key, name)
    by_name = {option.name: option for option in registry()[key]}
    if name not in by_name:
        allowed = [*by_name, "auto"] if parameters is None else by_name
        problems.append((place, _unknown(key, name, allowed)))
        return None
    option, wrong = validate(by_name[name], parameters or {}, f"parameter of {name}")
    problems += [((*place, *problem.key), problem.sentence) for problem in wrong]
    if option is None:
        return None
    if reason := _missing_role(option, card):
        problems.append(((*place, "targets") if parameters else place, reason))
    return option


def _missing_role(option: Technique, card: ModelCard | None) -> str | None:
    """Why the roles that an option targets are not all there, or None."""
    if card is None:
        return None
    wrong = [role for role in getattr(option, "roles", getattr(option, "targets", ())) if role not in card.roles]
    if not wrong:
        return None
    names = ", ".join(f'"{role}"' for role in wrong)
    close = nearest(wrong[0], sorted(card.roles))
    hint = f'; did you mean "{close}"?' if close else ""
    is_not = "is not a role" if len(wrong) == 1 else "are not roles"
    return f"{names} {is_not} of {card.name}{hint} (roles: {', '.join(sorted(card.roles))})"
