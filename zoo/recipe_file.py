"""A recipe from disk: every problem at once, each with file and line, and ``--set`` overrides.

Types are strict and never guessed: ``"32"`` in quotes is text and not a number. Names of models, tasks and
techniques are checked by `zoo.resolve`, which knows what is installed.
"""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.errors import InputError, nearest, unknown
from zoo.explain import got, names, shape, validate
from zoo.recipe import Recipe
from zoo.resources import find_recipe, shared
from zoo.strict_yaml import Key, Places, Problems, dotted, read_yaml, undotted

EXCLUSIVE = (
    ("data", "source", "path", True),
    ("budget", "device", "gpu", False),
    ("train", "epochs", "max_steps", True),
)
"""A section, two keys of which at most one may be given, and whether one has to be."""


@dataclass(frozen=True)
class RecipeFile:
    """A valid recipe, the file it came from, its text as written, and the overrides that were applied to it."""

    recipe: Recipe
    path: Path
    text: str
    overrides: tuple[str, ...] = ()
    places: Places = field(default_factory=lambda: Places("recipe"), repr=False, compare=False)

    def where(self, dotted_path: str | Key = ()) -> str:
        """``recipes/x.yaml:14 train.epochs``: a key with its line, or the line of its nearest existing parent.

        A key given by an override is ``--set train.epochs``. A key whose names hold dots is given as a tuple.
        """
        return self.places.where(dotted_path)


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> RecipeFile:
    """Read, override and check one recipe; shipped ones are found from any directory.

    `overrides` are ``a.b=value`` with a YAML value. A section that does not exist is created, ``null`` removes a key,
    the last of several for one key wins, one of two exclusive keys (`EXCLUSIVE`) replaces the other one of the
    file, and ``techniques.adapter.lora.rank=8`` makes ``adapter: full`` a ``lora``. Raises `InputError` with every
    problem found.
    """
    file = find_recipe(path)
    text = _text(file)
    places, problems = Places(str(file)), Problems()
    data = read_yaml(text, places, problems)
    if not isinstance(data, dict):
        what = "the file is empty" if data is None else f"got {got(data)}"
        raise InputError(
            f"{places.where(())}: {what}; a recipe is a mapping with the keys {', '.join(names(Recipe, ()))}"
        )
    changes, malformed = _parse(overrides)
    for target, value in changes:
        _apply(data, places, problems, target, value, [t for t, v in changes if v is not None])
    recipe, wrong = _check(data, places.unusable)
    problems += [problem for problem in wrong if problem[0] not in places.unusable]
    if problems or malformed or recipe is None:
        rest, _ = _check(_without(data, [key for key, _ in problems]), places.unusable)
        usable = None if rest is None else RecipeFile(rest, file, text, tuple(overrides), places)
        raise RecipeError([*places.sentences(problems), *malformed], usable)
    return RecipeFile(recipe, file, text, tuple(overrides), places)


def changed(file: RecipeFile, overrides: Sequence[str], allowed: Sequence[Key]) -> RecipeFile:
    """A recipe that was read before, with `overrides` (see `read_recipe`) of keys that are `allowed`, or inside these.

    Raises `InputError` with every problem found.
    """
    changes, malformed = _parse(overrides)
    known = ", ".join(dotted(key) for key in allowed) or "nothing"
    wrong = [
        f"--set {dotted(target)}: cannot be changed in a finished run (can be changed: {known})"
        for target, _ in changes
        if not any(target[: len(key)] == key for key in allowed)
    ]
    if malformed or wrong:
        raise InputError([*malformed, *wrong])
    data, places, problems = file.recipe.model_dump(mode="json"), Places(str(file.path)), Problems()
    for target, value in changes:
        _apply(data, places, problems, target, value, [t for t, v in changes if v is not None])
    recipe, wrong_keys = _check(data, places.unusable)
    problems += [problem for problem in wrong_keys if problem[0] not in places.unusable]
    if problems or recipe is None:
        raise InputError(places.sentences(problems))
    return RecipeFile(recipe, file.path, file.text, (*file.overrides, *overrides), places)


class RecipeError(InputError):
    """A recipe whose shape is wrong. `usable` is what is left of it without the wrong keys, where that is a recipe:
    the names in it can still be looked up, so that those that are wrong are reported at the same time."""

    def __init__(self, problems: Sequence[str], usable: RecipeFile | None) -> None:
        super().__init__(problems)
        self.usable = usable


def _without(data: Mapping[str, Any], keys: Sequence[Key]) -> dict[str, Any]:
    """`data` without `keys`, and with something in the places of what has no default and no name to look up."""
    rest: dict[str, Any] = copy.deepcopy(dict(data))
    for key in keys:
        section: Any = rest
        for name in key[:-1]:
            section = section.get(name) if isinstance(section, dict) else None
        if key and isinstance(section, dict):
            section.pop(key[-1], None)
    rest.setdefault("name", "unnamed")
    train = rest.setdefault("train", {})
    if isinstance(train, dict) and "epochs" not in train:
        train.setdefault("max_steps", 1)
    return rest


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except FileNotFoundError:
        shipped = sorted(str(p.relative_to(shared()).as_posix()) for p in (shared() / "recipes").rglob("*.yaml"))
        close = difflib.get_close_matches(file.as_posix(), shipped, n=3, cutoff=0.6) or [
            name for name in shipped if difflib.SequenceMatcher(a=file.stem, b=Path(name).stem).ratio() > 0.7
        ]
        hint = f"; nearest shipped recipes: {', '.join(close)}" if close else ""
        raise InputError(f"{file}: no such file{hint}; list all with: ls {shared() / 'recipes'}/*") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text (byte {error.start + 1}); save the recipe as UTF-8") from None
    except IsADirectoryError:
        raise InputError(f"{file}: is a folder; name a recipe file inside it") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None


# ------------------------------------------------------------------------------------------------- overrides


def _parse(overrides: Sequence[str]) -> tuple[list[tuple[Key, Any]], list[str]]:
    """Keys and values, and what is wrong with those that are none."""
    changes: list[tuple[Key, Any]] = []
    wrong: list[str] = []
    for override in overrides:
        path, equals, text = override.partition("=")
        key, places, problems = undotted(path.strip()), Places(f"--set {path.strip()} (value)"), Problems()
        if not equals or not key or not all(key):
            wrong.append(f"--set {override}: not of the form KEY=VALUE, for example train.epochs=3")
        elif not text.strip():
            wrong.append(f"--set {override}: has no value; write {path}=null to remove the key")
        else:
            try:
                changes.append((key, read_yaml(text, places, problems)))
            except InputError as error:
                wrong.extend(error.problems)
            wrong.extend(places.sentences(problems))
    return changes, wrong


def _apply(
    data: dict[str, Any], places: Places, problems: Problems, target: Key, value: Any, also_set: Sequence[Key]
) -> None:
    section: Any = data
    for n, name in enumerate(target[:-1], 1):
        inner = section.get(name)
        if isinstance(inner, str) and target[0] in ("task", "techniques"):  # a name or auto becomes a section
            section[name] = {inner: {}} if inner == target[n] else {}
        elif inner is None and value is not None:
            section[name] = {}
        elif inner is None:
            break
        elif not isinstance(inner, dict):
            places.override(target, None)
            problems.append((target, f"{dotted(target[:n])} is {got(inner)} and not a section"))
            return
        section = section[name]
    else:
        if value is not None:
            section[target[-1]] = value
            places.override(target, value)
        elif section.pop(target[-1], None) is not None:
            places.forget(target)
            return
    if value is None:  # there was nothing to remove: at least the key must exist
        for n, name in enumerate(target):
            if (allowed := names(Recipe, target[:n])) and name not in allowed:
                places.override(target, None)
                problems.append((target[: n + 1], unknown("", "key here", str(name), allowed).removeprefix(": ")))
                return
    for head, a, b, _ in EXCLUSIVE:
        for one, other in (((head, a), (head, b)), ((head, b), (head, a))):
            if value is not None and target == one and other not in also_set:
                section.pop(other[-1], None)
                places.forget(other)


# ---------------------------------------------------------------------------------------------------- checks


def _check(data: dict[str, Any], unusable: Set[Key]) -> tuple[Recipe | None, Problems]:
    """The recipe, or every reason why it is none."""
    problems: Problems = [*_choices(data), *_combinations(data, unusable)]
    found = (*unusable, *(key for key, _ in problems))
    recipe, others = validate(Recipe, data)
    for key, kind, sentence in others:
        if key[0] in ("task", "techniques") and kind == "type":
            continue  # one problem for each branch of a union: `_choices` says it once
        if kind == "rule" and any(k[: len(key)] == key for k in found):
            continue  # a rule between keys: `_combinations` says which key it is
        problems.append((key, sentence + _belongs(key[-1]) if kind == "unknown" else sentence))
    return recipe, problems


def _combinations(data: Mapping[str, Any], unusable: Set[Key]) -> Iterator[tuple[Key, str]]:
    """Rules between keys. Pydantic would try them only once every single key is right."""
    for head, a, b, needed in EXCLUSIVE:
        section = data.get(head)
        if not isinstance(section, dict):
            continue
        given = [key for key in (a, b) if section.get(key) is not None or (head, key) in unusable]
        misspelt = any(nearest(key, [a, b]) for key in section if key not in names(Recipe, (head,)))
        if len(given) == 2:
            yield (head, b), f"cannot stand beside {a}; give one of the two"
        elif not given and needed and not misspelt:
            yield (head,), f"needs either {a} or {b}"
    split = data["data"].get("split") if isinstance(data.get("data"), dict) else None
    if not isinstance(split, dict):
        return
    method, column, fractions = split.get("method", "random"), split.get("column"), split.get("fractions")
    misspelt = any(nearest(key, ["method", "column"]) for key in split if key not in names(Recipe, ("data", "split")))
    if method == "column" and column is None and not misspelt:
        yield (
            ("data", "split", "method"),
            "method: column needs the key column beside it, which names the column of the words train, valid, test",
        )
    elif isinstance(method, str) and method != "column" and column is not None and not misspelt:
        yield ("data", "split", "column"), f"is for method: column only; the method is {method}"
    numbers = isinstance(fractions, list) and all(type(f) in (int, float) for f in fractions)
    if isinstance(fractions, list) and numbers and len(fractions) == 3:
        total = sum(fractions)
        if any(not 0 <= f <= 1 for f in fractions) or abs(total - 1) > 1e-9:
            yield ("data", "split", "fractions"), f"must lie between 0 and 1 and sum to 1; they sum to {total:g}"


def _choices(data: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """The shape of `task` and `techniques`: a name, or sections of options."""
    task, techniques = data.get("task"), data.get("techniques", "auto")
    if "task" in data:
        yield from _choice(("task",), task, "a task's name")
        if isinstance(task, dict) and len(task) != 1:
            yield ("task",), f"got {len(task)} tasks; name one: `NAME`, or `{{NAME: {{option: value}}}}`"
    if isinstance(techniques, dict):
        for name, choice in techniques.items():
            yield from _choice(("techniques", name), choice, "auto, an option's name")
            if choice == {}:
                yield ("techniques", name), "names no option; name one, or write auto to leave it open"
    elif techniques != "auto":
        yield ("techniques",), f"got {got(techniques)}; needs auto, or a section such as {{adapter: lora}}"


def _choice(key: Key, value: Any, what: str) -> Iterator[tuple[Key, str]]:
    if isinstance(value, dict):
        for option, parameters in value.items():
            if not isinstance(parameters, dict):
                yield (*key, option), f"got {got(parameters)}; needs a section of its options, {{}} for none"
    elif not isinstance(value, str):
        yield key, f"got {got(value)}; needs {what}, or a section {{NAME: {{option: value}}}}"


def _belongs(name: object) -> str:
    """Where a key that stands at the wrong place does exist."""
    sections: tuple[Key, ...] = ((), ("data",), ("data", "split"), ("budget",), ("train",))
    homes = [dotted(section) or "the top level" for section in sections if name in names(Recipe, section)]
    return f"; it belongs to {' or '.join(homes)}" if homes else ""


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe for editors, with the names that are installed here."""
    from zoo.domain import datasets, domains, models

    found: dict[str, Any] = json.loads(json.dumps(shape(Recipe)))
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "science-zoo recipe"}
    top, parts = found["properties"], found["$defs"]
    top["domain"]["enum"] = sorted(domains())
    top["model"]["enum"] = sorted(models())
    tasks = sorted({task for card in models().values() for task in card.tasks})
    top["task"]["anyOf"] = [
        {"enum": tasks},
        {**top["task"]["anyOf"][1], "propertyNames": {"enum": tasks}, "maxProperties": 1},
    ]
    parts["DataSpec"]["properties"]["source"]["anyOf"] = [{"enum": sorted(datasets())}, {"type": "null"}]
    for head, a, b, needed in EXCLUSIVE:
        section = parts[top[head]["$ref"].rpartition("/")[2]]
        given = [{"required": [key], "properties": {key: {"not": {"type": "null"}}}} for key in (a, b)]
        section |= {"oneOf": given} if needed else {"not": {"allOf": given}}
    return found
