"""A small hub on loopback: the part of Hugging Face's web API (and of ModelScope's) that their client packages really call.

Repositories are dictionaries of bytes; faults are switched on per repository. Every request is kept in `log`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
LARGE = (".safetensors", ".bin")
"""Suffixes that a hub keeps in LFS: only these have a SHA-256 in its answers."""


@dataclass
class Repository:
    """Files at one commit, and what goes wrong with them."""

    files: dict[str, bytes]
    commit: str = COMMIT
    gated: bool = False
    """Listed, but no file is given out."""
    status: int = 0
    """Answer everything with this status."""
    drop_after: int | None = None
    """Close the connection after so many bytes of a body, as often as `drops` says."""
    drops: int = 1
    claimed: dict[str, int] = field(default_factory=dict)
    """Sizes that the listing claims instead of the real ones."""
    damaged: bool = False
    """Give out other bytes than those that the listing has digests of."""


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    range: str | None
    authorization: str | None


class FakeHub:
    """The server; `url` is what HF_ENDPOINT and MODELSCOPE_ENDPOINT are set to."""

    def __init__(self) -> None:
        self.models: dict[str, Repository] = {}
        self.datasets: dict[str, Repository] = {}
        self.pages: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def asked(self, part: str) -> list[Request]:
        """The requests whose path contains `part`."""
        return [request for request in self.log if part in request.path]


@contextmanager
def running() -> Iterator[FakeHub]:
    """A hub that answers until the block ends."""
    hub = FakeHub()
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        """The log is a list."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        headers = self.headers
        self.hub.log.append(Request(self.command, unquote(self.path), headers.get("Range"), headers.get("Authorization")))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "v1"]:
            self._modelscope(parts[2:])
        elif parts[0] == "api":
            self._information(parts[1], "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
        elif "resolve" in parts:
            self._file(parts)
        else:
            self._page("/" + "/".join(parts))

    def _information(self, kind: str, name: str, revision: str) -> None:
        repository = self._find(kind, name)
        if repository is None:
            self._error(404, "RepoNotFound")
        elif repository.status:
            self._error(repository.status, "")
        elif revision not in ("main", repository.commit):
            self._error(404, "RevisionNotFound")
        else:
            siblings = [_sibling(path, content, repository) for path, content in repository.files.items()]
            self._json({"id": name, "sha": repository.commit, "siblings": siblings})

    def _file(self, parts: list[str]) -> None:
        kind = "datasets" if parts[0] == "datasets" else "models"
        owner, name, _, revision, *path = parts[1:] if kind == "datasets" else parts
        repository = self._find(kind, f"{owner}/{name}")
        if repository is None or revision not in ("main", repository.commit):
            self._error(404, "RepoNotFound" if repository is None else "RevisionNotFound")
        elif repository.gated:
            self._error(403, "GatedRepo")
        elif repository.status:
            self._error(repository.status, "")
        else:
            self._bytes(repository.files["/".join(path)], repository)

    def _page(self, path: str) -> None:
        if path not in self.hub.pages:
            return self._error(404, "")
        self._bytes(self.hub.pages[path], Repository({}))

    def _modelscope(self, parts: list[str]) -> None:
        kind, repository = parts[0], self._find(parts[0], "/".join(parts[1:3]))
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        if repository is None or query["Revision"] not in ("master", repository.commit):
            self._json({"Code": 10010205001, "Message": "not found"}, 404)
        elif parts[3:] == ["repo"]:
            self._bytes(repository.files[query["FilePath"]], repository)
        else:
            assert parts[3:] == ["repo", "tree" if kind == "datasets" else "files"], parts
            self._json({"Code": 200, "Data": {"Files": [_entry(*item, repository) for item in repository.files.items()]}})

    def _find(self, kind: str, name: str) -> Repository | None:
        return (self.hub.datasets if kind == "datasets" else self.hub.models).get(name)

    def _bytes(self, content: bytes, repository: Repository) -> None:
        body = content[::-1] if repository.damaged else content
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start and start >= len(body):
            return self._error(416, "")
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = repository.drop_after
        if limit is not None and repository.drops and len(body) > limit:
            repository.drops -= 1
            self.wfile.write(body[start : start + limit])
            self.close_connection = True
        else:
            self.wfile.write(body[start:])

    def _error(self, status: int, code: str) -> None:
        self._json({"error": f"fake {status}"}, status, {"X-Error-Code": code} if code else {})

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _sibling(path: str, content: bytes, repository: Repository) -> dict:
    size = repository.claimed.get(path, len(content))
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    lfs = {"lfs": {"size": size, "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 134}} if path.endswith(LARGE) else {}
    return {"rfilename": path, "size": size, "blobId": blob, **lfs}


def _entry(path: str, content: bytes, repository: Repository) -> dict:
    digest = hashlib.sha256(content).hexdigest()
    return {"Path": path, "Size": len(content), "Sha256": digest, "Type": "blob", "Revision": repository.commit, "CommittedDate": 1}
