"""A local server that speaks the Hugging Face hub's protocol, with the faults that a network has.

What `huggingface_hub` asks of it: ``GET /api/models/OWNER/NAME/revision/REV`` for the list of files, and ``HEAD`` and
``GET /OWNER/NAME/resolve/REV/FILE`` with ETag, X-Repo-Commit, Content-Length and ranges. Large files are announced
with X-Linked-Etag, their SHA-256, as the hub does.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Hub:
    """One repository. `commits` maps a commit to its files, `refs` a branch or tag to a commit."""

    repository: str
    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    address: str = ""
    requests: list[Request] = field(default_factory=list)
    cut_after: int | None = None  # bytes of a body before the connection is closed
    cuts: int = 0  # how many bodies are still to be cut
    statuses: list[int] = field(default_factory=list)  # answers to the next requests instead of the right ones
    token: str | None = None  # without it the repository does not exist
    gated: bool = False
    delay: float = 0.0  # seconds before an answer to HEAD
    ranges: bool = True  # whether Range is honoured
    bare: bool = False  # answers as a plain file server would
    commit_header: str | None = None  # a mirror that gives another commit than it was asked for
    large: int = 1 << 20  # from here on files are announced with their SHA-256
    wrong: dict[str, bytes] = field(default_factory=dict)  # content that is not what the ETag says

    def of(self, method: str, ending: str = "") -> list[Request]:
        return [r for r in self.requests if r.method == method and r.path.endswith(ending)]


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            time.sleep(hub.delay)
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _refuse(self, status: int, code: str = "") -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _answer(self, body: bool) -> None:
            path = unquote(self.path)
            headers = self.headers
            hub.requests.append(Request(self.command, path, headers.get("Range"), headers.get("Authorization")))
            if hub.statuses:
                return self._refuse(hub.statuses.pop(0))
            if hub.gated:
                return self._refuse(403, "GatedRepo")
            api = re.fullmatch(rf"/api/models/{hub.repository}/revision/([^?]+)(\?.*)?", path)
            known = api or re.match(rf"/{hub.repository}/resolve/", path)
            if not known or (hub.token and headers.get("Authorization") != f"Bearer {hub.token}"):
                return self._refuse(401, "RepoNotFound")
            names = [*hub.refs, *hub.commits]
            if api:
                revision, name = api[1], ""
            else:
                rest = path[known.end() :]
                revision = next((n for n in names if rest.startswith(f"{n}/")), "")
                name = rest[len(revision) + 1 :]
            commit = hub.refs.get(revision, revision)
            if commit not in hub.commits:
                return self._refuse(404, "RevisionNotFound")
            if api:
                siblings = [{"rfilename": n} for n in hub.commits[commit]]
                return self._json({"id": hub.repository, "sha": commit, "siblings": siblings})
            if name not in hub.commits[commit]:
                return self._refuse(404, "EntryNotFound")
            return self._file(hub.commits[commit][name], hub.wrong.get(name), commit, body)

        def _json(self, value: object) -> None:
            text = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def _file(self, content: bytes, wrong: bytes | None, commit: str, body: bool) -> None:
            etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            linked = hashlib.sha256(content).hexdigest() if len(content) >= hub.large else None
            content = content if wrong is None else wrong
            start = 0
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if asked and hub.ranges:
                start = int(asked[1])
            if start >= len(content) > 0:
                return self._refuse(416)
            self.send_response(206 if asked and hub.ranges else 200)
            if asked and hub.ranges:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if not hub.bare:
                self.send_header("ETag", f'"{etag}"')
                self.send_header("X-Repo-Commit", hub.commit_header or commit)
                if linked:
                    self.send_header("X-Linked-Etag", f'"{linked}"')
                    self.send_header("X-Linked-Size", str(len(content)))
            rest = content[start:]
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            if not body:
                return None
            if hub.cuts > 0 and hub.cut_after is not None:
                hub.cuts -= 1
                self.wfile.write(rest[: hub.cut_after])
                self.wfile.flush()
                self.close_connection = True  # fewer bytes than announced
                return None
            self.wfile.write(rest)
            return None

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub on a free port of this machine while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
