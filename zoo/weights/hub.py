"""Files of a repository on the Hugging Face hub or on a mirror, one commit, resumed where a download was cut.

`huggingface_hub` 2 downloads to a name of its own for each process and removes it on failure, so nothing survives a
cut connection or a killed process. Here the bytes go to a ``.part`` file named after the file's ETag, and the next
attempt, in this process or a later one, asks for the rest with a Range request. Plain HTTP serves every file, those
in Xet storage included. Addresses, headers, redirects and errors are left to `huggingface_hub`.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import InputError, WeightsError
from zoo.units import format_bytes
from zoo.weights.cache import Shelf, sha256_of
from zoo.weights.progress import Progress
from zoo.weights.source import HubSource, check_relative

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

ATTEMPTS = 5  # in a row that bring no byte
WAIT_SECONDS = 0.5  # before the second attempt, doubled for each one after it
_BUSY = {408, 429, 500, 502, 503, 504}
_SMALL = ("*.json", "*.txt", "*.model", "*.yaml")


def endpoint() -> str:
    """The hub's address: ``HF_ENDPOINT`` (read now, not when `huggingface_hub` was imported) or the public hub."""
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not re.match(r"https?://[^/]+", address):
        raise InputError(f'HF_ENDPOINT: "{address}" is not an address; write for example https://hf-mirror.example')
    return address.rstrip("/")


def fetch_files(source: HubSource, shelf: Shelf, wanted: Mapping[str, str | None] | None, progress: Progress) -> None:
    """Place the `wanted` files (path -> SHA-256 where known; None: what ``from_pretrained`` reads) in `shelf`.

    All files of a shelf come from one commit, the one that the revision meant when the first of them was fetched.
    Each finished file is kept, so that an interrupted fetch of many shards goes on. Raises `WeightsError`.
    """
    whole = wanted is None
    if wanted is None:
        wanted = dict.fromkeys(_readable(source, _listing(source)))
    for path, sha256 in wanted.items():
        record = shelf.record()
        if shelf.holds(record, path, sha256):
            continue
        commit = record.get("commit", source.revision)
        found, temporary, digest = _fetch(source, shelf, path, sha256, commit, progress)
        shelf.place({path: (temporary, digest)}, commit=found, endpoint=endpoint())
    if whole:
        shelf.place({}, whole={"": sorted(wanted)})
    shutil.rmtree(shelf.parts, ignore_errors=True)


def _fetch(
    source: HubSource, shelf: Shelf, path: str, sha256: str | None, revision: str, progress: Progress
) -> tuple[str, Path, str]:
    """The commit, a complete checked file among the shelf's parts, and its SHA-256."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx, or httpx2 since 2.0

    url = hf_hub_url(source.repository, path, revision=revision, endpoint=endpoint())
    bar = progress.file(path)
    part: Path | None = None
    failed, size = 0, -1
    while True:
        try:
            facts = get_hf_file_metadata(url, timeout=_timeout())
            _check_facts(source, path, facts, revision)
            part = _part(shelf, path, facts.etag or "")
            _receive(source, url, part, facts, bar)
            break
        except (HTTPError, OSError) as error:
            reason = _explain(source, path, error)
            if reason is None:
                raise  # ours: the disk
            here = part.stat().st_size if part is not None and part.exists() else -1
            failed = 1 if here > size else failed + 1
            size = max(size, here)
            if not _passing(error) or failed >= ATTEMPTS:
                kept = f"; {format_bytes(here)} are kept, fetching again goes on from there" if here > 0 else ""
                raise WeightsError(reason + kept) from error
            time.sleep(WAIT_SECONDS * 2 ** (failed - 1))
    digest = sha256_of(part)
    etag = (facts.etag or "").lower()
    expected = sha256 or (etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None)  # large files carry their SHA-256
    if expected is not None and digest != expected.lower():
        part.unlink()
        raise WeightsError(
            f"{source}: checksum of {path} differs: expected sha256 {expected}, got {digest}. Nothing was kept. "
            f"Fetch again; if it still differs, {endpoint()} does not serve the file that was described"
        )
    assert facts.commit_hash is not None
    return facts.commit_hash, part, digest


def _receive(source: HubSource, url: str, part: Path, facts: HfFileMetadata, bar: Any) -> None:
    """Append what is missing to `part`. Returns only when it is complete."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

    have = part.stat().st_size if part.exists() else 0
    if facts.size is None or have > facts.size:
        have = 0  # without a size nobody can tell what is missing
    if have == facts.size and part.exists():
        return
    missing = (facts.size or 0) - have
    if missing > (free := shutil.disk_usage(part.parent).free):
        raise WeightsError(
            f"{source}: {format_bytes(missing)} are still to come and {part.parent} has {format_bytes(free)} free; "
            "free space there, or set ZOO_CACHE to a folder on another disk"
        )
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream("GET", url, headers=headers, timeout=_timeout(), follow_redirects=True) as response:
        if response.status_code == 416:
            part.unlink(missing_ok=True)
        hf_raise_for_status(response)
        resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        done = have if resumed else 0
        with part.open("ab" if resumed else "wb") as file:
            bar.at(done, facts.size)
            for chunk in response.iter_bytes():
                file.write(chunk)
                done += len(chunk)
                bar.at(done, facts.size)
    if facts.size is not None and done != facts.size:
        if done > facts.size:
            part.unlink()
        raise _Incomplete(f"{done} of {facts.size} bytes came")


class _Incomplete(OSError):
    """The connection closed in good order before the end."""


def _timeout() -> float:
    return float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or 10)


def _part(shelf: Shelf, path: str, etag: str) -> Path:
    """The unfinished download of exactly this content; those of other content of the same path are removed."""
    shelf.parts.mkdir(parents=True, exist_ok=True)
    stem = hashlib.sha256(path.encode()).hexdigest()[:16]
    part = shelf.parts / f"{stem}.{hashlib.sha256(etag.encode()).hexdigest()[:16]}.part"
    for other in shelf.parts.glob(f"{stem}.*.part"):
        if other != part:
            other.unlink()
    return part


def _check_facts(source: HubSource, path: str, facts: HfFileMetadata, revision: str) -> None:
    if facts.commit_hash is None or facts.etag is None:
        raise WeightsError(
            f"{source}: {endpoint()} answered for {path} without X-Repo-Commit or ETag, so it is not a hub or a mirror "
            "of one; check HF_ENDPOINT and your proxy"
        )
    if re.fullmatch(r"[0-9a-f]{40}", revision) and facts.commit_hash != revision:
        raise WeightsError(
            f"{source}: {endpoint()} served {path} of commit {facts.commit_hash}, asked for {revision}; "
            "check HF_ENDPOINT, the mirror does not keep revisions"
        )


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _passing(error: BaseException) -> bool:
    """Whether trying again may help: a connection that failed or was cut, a server that is busy."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = _status(error)
    return not isinstance(error, OfflineModeIsEnabled) and (status is None or status == 416 or status in _BUSY)


def _explain(source: HubSource, path: str, error: BaseException) -> str | None:
    """Where, what, and what to do; None for an error that is not the hub's."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    where = f"{source}: {path} from {endpoint()}"
    page = f"{endpoint()}/{source.repository}"
    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        return f"{where}: access is gated; accept the terms at {page} and set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f'{where}: no revision "{source.revision}" in {source.repository}; see {page}/commits/main'
    if isinstance(error, errors.EntryNotFoundError):
        return f"{where}: no such file at this revision{_near(source, path)}"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return (
            f"{where}: refused with status {status}; there is no repository {source.repository}, or it is private: "
            "check its spelling, or set HF_TOKEN to a token that may read it"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{where}: HF_HUB_OFFLINE was set when huggingface_hub was imported; unset it and start again"
    if status is not None:
        return f"{where}: the server answered {status}; try again later, or set HF_ENDPOINT to a mirror"
    if isinstance(error, (HTTPError, _Incomplete)):
        kind = "timed out" if "Timeout" in type(error).__name__ else "failed"
        return (
            f"{where}: the connection {kind} ({type(error).__name__.lstrip('_')}: {error}); check the network and the "
            "proxy, set HF_ENDPOINT to a mirror, or fetch elsewhere and name the folder with file:PATH"
        )
    return None


def _listing(source: HubSource) -> list[str]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        info = HfApi(endpoint=endpoint()).model_info(source.repository, revision=source.revision, timeout=_timeout())
    except (HTTPError, OSError) as error:
        raise WeightsError(_explain(source, "the list of files", error) or str(error)) from error
    return [check_relative(file.rfilename, str(source)) for file in info.siblings or ()]


def _readable(source: HubSource, names: list[str]) -> list[str]:
    """What ``from_pretrained`` reads: configuration, vocabulary, and safetensors, or pickles where there are none."""
    top = [name for name in names if "/" not in name]
    small = [name for name in top if any(fnmatch.fnmatch(name, pattern) for pattern in _SMALL)]
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        if weights := fnmatch.filter(top, pattern):
            index = pattern.partition("*")[0] + "*.index.json"
            others = [n for n in fnmatch.filter(small, "*.index.json") if not fnmatch.fnmatch(n, index)]
            return [name for name in (*small, *weights) if name not in others]
    raise WeightsError(
        f"{source}: no model*.safetensors and no pytorch_model*.bin among its files ({', '.join(top) or 'none'}); "
        "name the files that you want"
    )


def _near(source: HubSource, path: str) -> str:
    try:
        close = difflib.get_close_matches(path, _listing(source), n=5, cutoff=0.5)
    except WeightsError:
        return ""  # the missing file is the news, not the list that might have helped
    return f"; near names: {', '.join(close)}" if close else ""
