"""Where fetched files live: one shelf per release, placed atomically, safe for processes that run at the same time::

$ZOO_CACHE or ~/.cache/science-zoo
  pypi/antiberty==0.1.3/antiberty/trained_models/vocab.txt
  pypi/antiberty==0.1.3.json      what is there, with size and SHA-256 of each file
  pypi/antiberty==0.1.3.lock      held while something is fetched
  pypi/antiberty==0.1.3.part/     unfinished downloads
  hf/facebook--esm2_t6_8M_UR50D@COMMIT/...
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def root() -> Path:
    """The cache's folder: ``$ZOO_CACHE``, else ``~/.cache/science-zoo``. It may not exist yet."""
    given = os.environ.get("ZOO_CACHE")
    return (Path(given) if given else Path.home() / ".cache" / "science-zoo").expanduser().absolute()


def sha256_of(path: Path, seen: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file in hexadecimal; `seen` is told how many bytes each read brought."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if seen:
                seen(len(chunk))
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Make sure that a file's bytes are on the disk before its name says that they are."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.cache
def _is(file: Path, modified: int, sha256: str) -> bool:
    """Whether a file that was last `modified` then, in nanoseconds, has the checksum: read once in a process."""
    return sha256_of(file) == sha256


@dataclass(frozen=True)
class Shelf:
    """The files of one release. A file counts as present only when the record beside the folder says so.

    The record is written after the file is in place, so a process killed in between leaves a file that is
    fetched again, never a half-written one that is believed.
    """

    folder: Path

    def _beside(self, suffix: str) -> Path:
        return self.folder.with_name(self.folder.name + suffix)

    @property
    def parts(self) -> Path:
        """The folder of unfinished downloads."""
        return self._beside(".part")

    def record(self) -> dict[str, Any]:
        """What was fetched: ``files`` (path -> sha256, size), ``whole`` (folder -> its paths), and facts of the source.

        A record that is missing or damaged is an empty one: everything is then fetched again.
        """
        try:
            record = json.loads(self._beside(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            record = {}
        if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
            record = {"files": {}}
        record.setdefault("whole", {})
        return record

    def holds(self, record: Mapping[str, Any], path: str, sha256: str | None = None) -> bool:
        """Whether `path` is present as it was recorded, and with the given checksum.

        Its bytes are read where the file is not as old as the record says.
        """
        known = record["files"].get(path)
        if known is None or (sha256 is not None and known["sha256"] != sha256.lower()):
            return False
        file = self.folder / path
        try:
            facts = file.stat()
            if facts.st_size != int(known["size"]):
                return False
            return facts.st_mtime_ns == known.get("modified") or _is(file, facts.st_mtime_ns, known["sha256"])
        except OSError:
            return False

    def drop_damaged(self) -> None:
        """Read every recorded file and remove those whose bytes are not the recorded ones. Call it under `locked`."""
        for path, known in self.record()["files"].items():
            file = self.folder / path
            if file.is_file() and sha256_of(file) != known["sha256"]:
                file.unlink()

    def place(self, files: Mapping[str, tuple[Path, str]], **facts: Any) -> None:
        """Move checked files (path -> temporary file on the same disk, its SHA-256) in, then record them and `facts`.

        `facts` are recorded as they are, except ``whole``, which adds to what the record has. Call it under `locked`.
        """
        record = self.record()
        for path, (temporary, sha256) in files.items():
            target = self.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            found = temporary.stat()
            flush(temporary)
            os.replace(temporary, target)
            record["files"][path] = {"sha256": sha256, "size": found.st_size, "modified": found.st_mtime_ns}
        record["whole"].update(facts.pop("whole", {}))
        record.update(facts)
        temporary = self._beside(f".json.{os.getpid()}.tmp")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
        flush(temporary)
        os.replace(temporary, self._beside(".json"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the release for this process; another one that wants it waits."""
        from filelock import FileLock

        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._beside(".lock")):
            yield


def shelf(kind: str, name: str) -> Shelf:
    """The shelf of a release; `kind` is ``hf`` or ``pypi``."""
    return Shelf(root() / kind / name.replace("/", "--"))
