"""Why a value does not have the shape of a pydantic model, in words: what was got, what is allowed, what to do.

What a field takes is read from the model's JSON schema, so that messages and editors say the same.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from zoo.errors import InputError, nearest, unknown
from zoo.strict_yaml import Key, Places, read_yaml

M = TypeVar("M", bound=BaseModel)

_BOUNDS = {"minimum": "of at least", "exclusiveMinimum": "above", "maximum": "of at most", "exclusiveMaximum": "below"}
_WORDS = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}


class Problem(NamedTuple):
    """`kind`: ``unknown`` key, ``missing`` key, wrong ``type`` or range, or a ``rule`` of a validator's own."""

    key: Key
    kind: str
    sentence: str


def validate(model: type[M], data: Mapping[str, Any], what: str = "key here") -> tuple[M | None, list[Problem]]:
    """`data` as a `model` with strict types, or every reason why it is none. `what` names a key in messages."""
    try:
        # As JSON, because there strict validation takes a list for a tuple.
        return model.model_validate_json(json.dumps(data), strict=True), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    extra = [(e["loc"][:-1], str(e["loc"][-1])) for e in errors if e["type"] == "extra_forbidden"]
    problems = []
    for e in errors:
        key, kind = e["loc"], e["type"]
        if kind == "extra_forbidden":
            sentence = unknown("", what, str(key[-1]), names(model, key[:-1])).removeprefix(": ")
            problems.append(Problem(key, "unknown", sentence))
        elif kind == "missing" and isinstance(key[-1], str):
            if not any(section == key[:-1] and nearest(got, [key[-1]]) for section, got in extra):
                problems.append(Problem(key, kind, f"missing; needs {needs(shape_at(model, key))}"))
        elif kind == "value_error":
            problems.append(Problem(key, "rule", str(e["ctx"]["error"])))
        else:
            key, value = _existing(data, key)  # not the branches of a union, nor what a list is too short for
            problems.append(Problem(key, "type", _got_needs(value, shape_at(model, key))))
    deepest = [p for p in problems if not (p.kind == "type" and any(_inside(other, p) for other in problems))]
    return None, list(dict.fromkeys(deepest))


def _inside(inner: Problem, outer: Problem) -> bool:
    """Whether `inner` already says what is wrong in `outer` (a list of wrong values also counts as too short)."""
    return len(inner.key) > len(outer.key) and inner.key[: len(outer.key)] == outer.key


@functools.cache
def shape(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a model; not to be changed."""
    return model.model_json_schema()


def shape_at(model: type[BaseModel], key: Key) -> dict[str, Any]:
    """What the schema says of one key, references followed and null left out; empty where anything goes."""
    node = shape(model)
    for part in (*key, None):
        kinds = [kind for kind in node.get("anyOf", ()) if kind != {"type": "null"}]
        node = {**kinds[0], **{k: v for k, v in node.items() if k != "anyOf"}} if len(kinds) == 1 else node
        if "$ref" in node:
            node = shape(model)["$defs"][node["$ref"].rpartition("/")[2]]
        if isinstance(part, int):
            node = dict(enumerate(node.get("prefixItems", ()))).get(part, node.get("items", {}))
        elif part is not None:
            others = node.get("additionalProperties")
            node = node.get("properties", {}).get(part, others if isinstance(others, dict) else {})
    return node


def names(model: type[BaseModel], key: Key = ()) -> list[str]:
    """The keys of a section; none where any name goes."""
    return list(shape_at(model, key).get("properties", ()))


def needs(node: Mapping[str, Any]) -> str:
    """What a piece of a JSON schema takes, in words."""
    kind = str(node.get("type"))
    about = f" ({node['description']})" if "description" in node else ""
    if "enum" in node or "const" in node:
        return f"one of {', '.join(node['enum'])}" if "enum" in node else str(node["const"])
    if "properties" in node:
        return f"a section with the keys {', '.join(node['properties'])}"
    if kind == "array":
        length = len(node.get("prefixItems", ()))
        return (f"a list of {length} numbers" if length else f"a list of {needs(node.get('items', {}))}") + about
    if kind == "object":
        return f"a section of NAME: text{about}"
    if kind not in _WORDS:
        either = " or ".join(needs(option) for option in node.get("anyOf", ()) if option != {"type": "null"})
        return str(node.get("description", either or "another value"))
    limits = " and ".join(f"{word} {node[bound]}" for bound, word in _BOUNDS.items() if bound in node)
    return " ".join(filter(None, (_WORDS[kind], limits))) + (about if kind == "string" else "")


def got(value: Any) -> str:
    """A value as a person would name it."""
    if isinstance(value, dict | list):
        return "a section" if isinstance(value, dict) else f"a list of {len(value)}"
    shown = "nothing" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f'the text "{shown}"' if isinstance(value, str) else shown


def _got_needs(value: Any, node: Mapping[str, Any]) -> str:
    kind, hint = node.get("type"), ""
    if isinstance(value, str) and kind in ("integer", "number", "boolean") and not isinstance(_plain(value), str):
        hint = "; take the quotes away"
    elif isinstance(value, int | float) and kind == "string" and not {"enum", "const"} & node.keys():
        hint = "; write it in quotes"
    elif isinstance(value, str | int | float) and kind == "array" and "items" in node:
        hint = f"; write [{value}]"
    return f"got {got(value)}; needs {needs(node)}{hint}"


def _plain(text: str) -> Any:
    """What `text` would be without quotes."""
    try:
        return read_yaml(text, Places(""), [])
    except InputError:
        return text


def _existing(data: Any, key: Key) -> tuple[Key, Any]:
    """The part of `key` that exists in `data`, and the value there."""
    for n, part in enumerate(key):
        if not (part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))):
            return key[:n], data
        data = data[part]
    return key, data
