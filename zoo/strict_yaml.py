"""Strict YAML 1.2 with the line of every key: duplicate keys, tags and keys that are not text are problems.

``1e-4`` is a number, ``no`` and ``on`` are text, ``012`` is twelve. Anchors, aliases and ``<<`` work as everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.reader import ReaderError

from zoo.errors import InputError

Key = tuple[str | int, ...]
Problems = list[tuple[Key, str]]

_MAX_VALUES, _MAX_DEPTH = 10_000, 40  # aliases of aliases grow without bound; no file of ours comes near
_PREFIX = "tag:yaml.org,2002:"


def dotted(key: Key) -> str:
    """``("split", "fractions", 2)`` as ``split.fractions[2]``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def undotted(path: str | Key) -> Key:
    """The key of a dotted path; one whose names hold dots is given as a tuple."""
    return (tuple(path.split(".")) if path else ()) if isinstance(path, str) else path


@dataclass
class Places:
    """Where each key was written: its line in `file`, or an override (which has an order instead).

    `unusable` are the keys whose value could not be read and became None; each is a problem already.
    """

    file: str
    lines: dict[Key, int] = field(default_factory=lambda: {(): 1})
    given: dict[Key, int] = field(default_factory=dict)
    unusable: set[Key] = field(default_factory=set)

    def where(self, path: str | Key) -> str:
        """``recipes/x.yaml:14 train.epochs``: line of the key or of its nearest existing parent; or ``--set KEY``."""
        key = undotted(path)
        place = "--set" if self._nearest(key) in self.given else f"{self.file}:{self._order(key)}"
        return f"{place} {dotted(key)}" if key else place

    def sentences(self, problems: Problems) -> list[str]:
        """Problems as whole sentences in the order of the file, overrides last, none twice."""
        ordered = sorted(dict.fromkeys(problems), key=lambda problem: self._order(problem[0]))
        return [f"{self.where(key)}: {text}" for key, text in ordered]

    def override(self, key: Key, value: Any) -> None:
        """From now on `key`, what is below it, and sections made for it, come from an override."""
        self.forget(key)
        order = 10**9 + len(self.given)
        for n in range(1, len(key)):
            if key[:n] not in self.lines:
                self.given.setdefault(key[:n], order)
        for below in _keys_below(value):
            self.given[key + below] = order

    def forget(self, key: Key) -> None:
        for known in (self.lines, self.given):
            for gone in [k for k in known if k[: len(key)] == key]:
                del known[gone]

    def _nearest(self, key: Key) -> Key:
        return next(key[:n] for n in range(len(key), -1, -1) if key[:n] in self.lines or key[:n] in self.given)

    def _order(self, key: Key) -> int:
        near = self._nearest(key)
        return self.given[near] if near in self.given else self.lines[near]


def _keys_below(value: Any) -> Iterator[Key]:
    yield ()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        for below in _keys_below(inner):
            yield (name, *below)


class _Loader(yaml.SafeLoader):
    """Composes nodes only; plain scalars get the tags of the YAML 1.2 core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own shape


def _float(text: str) -> float:
    return float(re.sub(r"\.(?=[a-zA-Z])", "", text))  # .inf and .nan are Python's inf and nan


_CORE: dict[str, tuple[str, Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (
        r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
        lambda text: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)),
    ),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", _float),
    "merge": (r"<<", str),
}
for _tag, (_pattern, _) in _CORE.items():
    _Loader.add_implicit_resolver(_PREFIX + _tag, re.compile(f"^(?:{_pattern})$"), None)
_CORE["str"] = (r"(?s:.*)", str)


def read_yaml(text: str, places: Places, problems: Problems) -> Any:
    """The plain value of `text`, None for an empty one. Fills `places.lines` and `problems`.

    A value that cannot be used is None and a problem. Raises `InputError` where nothing can be read: bad syntax
    (with line and column), several documents, or an alias that contains itself.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _Reader(places, problems).value(node, ())
    except yaml.MarkedYAMLError as error:
        mark, why = error.problem_mark or error.context_mark, error.problem or error.context
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        if "'\\t'" in str(why):
            why = "a tab stands where YAML needs spaces"
        raise InputError(f"{places.file}{place}: not valid YAML: {why}") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = f"U+{int(error.character):04X}"
        raise InputError(f"{places.file}:{line}: not valid YAML: the character {code} is not allowed") from None
    except RecursionError:
        raise InputError(f"{places.file}: not valid YAML: nested too deep, or an alias contains itself") from None


class _Reader:
    def __init__(self, places: Places, problems: Problems) -> None:
        self.places, self.problems, self.count = places, problems, 0

    def value(self, node: yaml.Node, key: Key) -> Any:
        self.count += 1
        if self.count > _MAX_VALUES or len(key) > _MAX_DEPTH:
            limit = f"{_MAX_VALUES} values" if self.count > _MAX_VALUES else f"{_MAX_DEPTH} levels"
            raise InputError(f"{self.places.file}:{_line(node)}: more than {limit}; does an alias contain itself?")
        if not key or isinstance(key[-1], int):
            self.places.lines[key] = _line(node)
        tag = node.tag.removeprefix(_PREFIX)
        if isinstance(node, yaml.MappingNode) and tag == "map":
            return self.mapping(node, key)
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            return [self.value(item, (*key, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and tag in _CORE:
            return self.scalar(node.value, tag, key)
        shown = f"!!{tag}" if tag != node.tag else tag
        return self.unusable(key, f"the tag {shown} is not allowed; write a plain value")

    def scalar(self, text: str, tag: str, key: Key) -> Any:
        pattern, read = _CORE[tag]
        try:
            text.encode()  # half of a surrogate pair could not be written to any file
            if re.fullmatch(pattern, text):
                return read(text)
        except ValueError:  # an integer of thousands of digits, too
            pass
        shown = ascii(text)[1:-1] if len(text) < 60 else f"{ascii(text[:60])[1:-1]}..."
        return self.unusable(key, f'"{shown}" cannot be read as !!{tag}')

    def unusable(self, key: Key, why: str) -> None:
        self.problems.append((key, why))
        self.places.unusable.add(key)

    def mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for name_node, value_node in self.pairs(node, key):
            line = _line(name_node)
            if not isinstance(name_node, yaml.ScalarNode) or name_node.tag != _PREFIX + "str":
                shown = (name_node.value or '""') if isinstance(name_node, yaml.ScalarNode) else "of several values"
                self.problems.append((key, f"the key {shown} on line {line} is not text; write it in quotes"))
                continue
            here = (*key, name_node.value)
            if name_node.value in value:
                again = f'"{name_node.value}" is written again on line {line}; remove one of the two'
                self.problems.append((here, again))
                continue
            self.places.lines[here] = line
            value[name_node.value] = self.value(value_node, here)
        return value

    def pairs(self, node: yaml.MappingNode, key: Key) -> list[tuple[yaml.Node, yaml.Node]]:
        """A mapping's own pairs, then those that ``<<`` brings and the mapping does not have."""
        own = [pair for pair in node.value if pair[0].tag != _PREFIX + "merge"]
        for name_node, value_node in node.value:
            if name_node.tag != _PREFIX + "merge":
                continue
            for other in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                if not isinstance(other, yaml.MappingNode):
                    self.problems.append((key, f"<< on line {_line(name_node)} takes an alias of a section"))
                    continue
                have = [pair[0].value for pair in own]
                own += [pair for pair in self.pairs(other, key) if pair[0].value not in have]
        return own


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
