"""A recipe from disk: every problem at once, each with file and line, and ``--set`` overrides.

Types are strict and never guessed: ``"32"`` in quotes is text and not a number. Names of models, tasks and
techniques are checked by `zoo.resolve`, which knows what is installed.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from zoo.errors import InputError, nearest, unknown
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
        got = "the file is empty" if data is None else f"got {_got(data)}"
        raise InputError(f"{places.where(())}: {got}; a recipe is a mapping with the keys {', '.join(_names(()))}")
    changes = _parse(overrides)
    for target, value in changes:
        _apply(data, places, problems, target, value, [t for t, v in changes if v is not None])
    recipe, wrong = _check(data, places.unusable)
    problems += [problem for problem in wrong if problem[0] not in places.unusable]
    if problems or recipe is None:
        raise InputError(places.sentences(problems))
    return RecipeFile(recipe, file, text, tuple(overrides), places)


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


def _parse(overrides: Sequence[str]) -> list[tuple[Key, Any]]:
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
    if wrong:
        raise InputError(wrong)
    return changes


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
            problems.append((target, f"{dotted(target[:n])} is {_got(inner)} and not a section"))
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
            if (allowed := _names(target[:n])) and name not in allowed:
                places.override(target, None)
                problems.append((target[: n + 1], _unknown_key(str(name), allowed)))
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
    try:
        # As JSON, because there strict validation takes a list for a tuple.
        recipe = Recipe.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    else:
        return recipe, problems
    extra = [(e["loc"][:-1], str(e["loc"][-1])) for e in errors if e["type"] == "extra_forbidden"]
    for e in errors:
        key, kind = e["loc"], e["type"]
        if kind == "extra_forbidden":
            problems.append((key, _unknown_key(str(key[-1]), _names(key[:-1]))))
        elif kind == "missing" and isinstance(key[-1], str):
            if not any(section == key[:-1] and nearest(got, [key[-1]]) for section, got in extra):
                problems.append((key, f"missing; needs {_needs(key)}"))
        elif kind == "value_error":
            if not any(k[: len(key)] == key for k in found):  # rules between keys: `_combinations` says it better
                problems.append((key, str(e["ctx"]["error"])))
        elif key[0] not in ("task", "techniques"):  # branches of a union: `_choices` says it better
            key = key[:-1] if kind == "missing" else key  # a list that is too short
            problems.append((key, _got_needs(_value(data, key), key)))
    return None, problems


def _combinations(data: Mapping[str, Any], unusable: Set[Key]) -> Iterator[tuple[Key, str]]:
    """Rules between keys. Pydantic would try them only once every single key is right."""
    for head, a, b, needed in EXCLUSIVE:
        section = data.get(head)
        if not isinstance(section, dict):
            continue
        given = [key for key in (a, b) if section.get(key) is not None or (head, key) in unusable]
        misspelt = any(nearest(key, [a, b]) for key in section if key not in _names((head,)))
        if len(given) == 2:
            yield (head, b), f"cannot stand beside {a}; give one of the two"
        elif not given and needed and not misspelt:
            yield (head,), f"needs either {a} or {b}"
    split = data["data"].get("split") if isinstance(data.get("data"), dict) else None
    if not isinstance(split, dict):
        return
    method, column, fractions = split.get("method", "random"), split.get("column"), split.get("fractions")
    misspelt = any(nearest(key, ["method", "column"]) for key in split if key not in _names(("data", "split")))
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
        yield ("techniques",), f"got {_got(techniques)}; needs auto, or a section such as {{adapter: lora}}"


def _choice(key: Key, value: Any, what: str) -> Iterator[tuple[Key, str]]:
    if isinstance(value, dict):
        for option, parameters in value.items():
            if not isinstance(parameters, dict):
                yield (*key, option), f"got {_got(parameters)}; needs a section of its options, {{}} for none"
    elif not isinstance(value, str):
        yield key, f"got {_got(value)}; needs {what}, or a section {{NAME: {{option: value}}}}"


def _value(data: Any, key: Key) -> Any:
    return _value(data[key[0]], key[1:]) if key else data


def _unknown_key(got: str, allowed: Sequence[str]) -> str:
    sections: tuple[Key, ...] = ((), ("data",), ("data", "split"), ("budget",), ("train",))
    homes = [dotted(section) or "the top level" for section in sections if got in _names(section)]
    belongs = f"; it belongs to {' or '.join(homes)}" if homes else ""
    return unknown("", "key here", got, allowed).removeprefix(": ") + belongs


# ---------------------------------------------------------------------------------------------------- schema


@functools.cache
def _shape() -> dict[str, Any]:
    return Recipe.model_json_schema()


def _at(key: Key) -> dict[str, Any]:
    """What the schema says of a key; empty where anything goes."""
    node = _shape()
    for part in (*key, None):
        kinds = [kind for kind in node.get("anyOf", ()) if kind != {"type": "null"}]
        node = kinds[0] | {k: v for k, v in node.items() if k != "anyOf"} if len(kinds) == 1 else node
        if "$ref" in node:
            node = _shape()["$defs"][node["$ref"].rpartition("/")[2]]
        if isinstance(part, int):
            node = dict(enumerate(node.get("prefixItems", ()))).get(part, {})
        elif part is not None:
            others = node.get("additionalProperties")
            node = node.get("properties", {}).get(part, others if isinstance(others, dict) else {})
    return node


def _names(key: Key) -> list[str]:
    """The keys of a section; none where any name goes."""
    return list(_at(key).get("properties", ()))


def _needs(key: Key) -> str:
    """What a key takes, in words."""
    node = _at(key)
    bounds = {"minimum": "of at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = " and ".join(f"{word} {node[bound]}" for bound, word in bounds.items() if bound in node)
    about = f" ({node['description']})" if "description" in node else ""
    if "enum" in node:
        return f"one of {', '.join(node['enum'])}"
    if "properties" in node:
        return f"a section with the keys {', '.join(node['properties'])}"
    kind = str(node.get("type"))
    words = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
    if kind == "array":
        return f"a list of {len(node['prefixItems'])} numbers{about}"
    if kind == "object":
        return f"a section of NAME: text{about}"
    if kind not in words:
        return str(node.get("description", "another value"))
    return " ".join(filter(None, (words[kind], limits))) + (about if kind == "string" else "")


def _got(value: Any) -> str:
    """A value as a person would name it."""
    if isinstance(value, str):
        return f'the text "{value if len(value) <= 60 else value[:57] + "..."}"'
    if isinstance(value, dict | list):
        return "a section" if isinstance(value, dict) else f"a list of {len(value)}"
    return "nothing" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


def _got_needs(value: Any, key: Key) -> str:
    kind = _at(key).get("type")
    hint = ""
    if isinstance(value, str) and kind in ("integer", "number") and _is_number(value):
        hint = "; take the quotes away"
    elif isinstance(value, int | float) and kind == "string" and "enum" not in _at(key):
        hint = "; write it in quotes"
    return f"got {_got(value)}; needs {_needs(key)}{hint}"


def _is_number(text: str) -> bool:
    try:
        return isinstance(read_yaml(text, Places(""), []), int | float)
    except InputError:
        return False


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe for editors, with the names that are installed here."""
    from zoo.domain import datasets, domains, models

    found: dict[str, Any] = json.loads(json.dumps(_shape()))
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
