"""A server on this machine that speaks what huggingface_hub asks of the hub, with its faults.

Large files are redirected to another origin, as the hub does, which must not be shown the token.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_canaryCanaryCanary"
LARGE = (".safetensors", ".gguf", ".bin", "MathInstruct.json")
"""Endings of files that the hub keeps apart (LFS): their sha256 is listed, and they come from elsewhere."""


def commit_id(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


@dataclass
class Repo:
    """Commits of a repository, newest last.

    Attributes:
        gated: listing is free, files and auth-check need the token.
        granted: whether the token's owner agreed to the licence.
        code: what the hub calls its refusal; a fine-grained token without the right to gated files gets none.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    granted: bool = True
    code: str = "GatedRepo"

    @property
    def main(self) -> str:
        return list(self.commits)[-1]

    def push(self, files: dict[str, bytes]) -> str:
        revision = commit_id(repr(sorted(files.items())))
        self.commits[revision] = files
        return revision


@dataclass
class Hub:
    """What the server serves and how it fails.

    Attributes:
        repos: ``models/<id>`` or ``datasets/<id>``.
        cuts: path -> how often its download breaks off, and after how many bytes of an answer.
        swapped: path -> bytes that are sent in place of the right ones.
        failing: path -> how often the answer is 503.
        ranges: whether a part of a file can be asked for.
        hold: path -> bytes after which the answer stops and waits for `release`.
        requests: method, path, Range or "", and whether the token came with it.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    swapped: dict[str, bytes] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)
    ranges: bool = True
    hold: dict[str, int] = field(default_factory=dict)
    release: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str, bool]] = field(default_factory=list)
    url: str = ""
    elsewhere: str = ""

    def repo(self, name: str, files: dict[str, bytes] | None = None, **facts: Any) -> Repo:
        found = self.repos.setdefault(name, Repo(**facts))
        if files is not None:
            found.push(files)
        return found

    def fetched(self, ending: str) -> list[str]:
        """Ranges of the downloads of a file, in order; "" where all of it was asked for."""
        return [asked for _, path, asked, _ in self.requests if "/api/" not in path and path.endswith(ending)]


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub that runs while inside."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url, hub.elsewhere = (f"http://{host}:{server.server_port}" for host in ("127.0.0.1", "localhost"))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        self.hub.requests.append((self.command, path, self.headers.get("Range", ""), token))
        if path.startswith("/api/"):
            self._api(path.removeprefix("/api/"), token)
        elif path.startswith("/elsewhere/"):
            if "Authorization" in self.headers:
                self._refuse(400, "TokenLeak")
            else:
                self._file(path.removeprefix("/elsewhere/"))
        else:
            self._resolve(path.strip("/"), token)

    def _api(self, path: str, token: bool) -> None:
        kind, owner, name, *rest = [*path.split("/"), "", ""]
        rest = [part for part in rest if part]
        repo = self.hub.repos.get(f"{kind}/{owner}/{name}")
        if self.headers.get("Authorization") and not token:
            return self._refuse(401, message="Invalid credentials in Authorization header")
        if repo is None:
            return self._refuse(404 if token else 401, "RepoNotFound")
        if rest == ["auth-check"]:
            return self._gate(repo, token) or self._json({})
        revision = repo.main if not rest or rest[1] == "main" else rest[1]
        if revision not in repo.commits:
            return self._refuse(404, "RevisionNotFound")
        files = [_listed(path, content) for path, content in repo.commits[revision].items()]
        gated = "manual" if repo.gated else False
        return self._json({"id": f"{owner}/{name}", "sha": revision, "gated": gated, "siblings": files})

    def _resolve(self, path: str, token: bool) -> None:
        kind, rest = ("datasets", path[9:]) if path.startswith("datasets/") else ("models", path)
        owner, name, _, revision, *parts = rest.split("/")
        repo, file = self.hub.repos.get(f"{kind}/{owner}/{name}"), "/".join(parts)
        if repo is None or file not in repo.commits.get(revision, {}):
            return self._refuse(404, "EntryNotFound")
        if self._gate(repo, token):
            return None
        where = f"{kind}/{owner}/{name}/{revision}/{file}"
        if file.endswith(LARGE):
            self.send_response(302)
            self.send_header("Location", f"{self.hub.elsewhere}/elsewhere/{where}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self._file(where)

    def _gate(self, repo: Repo, token: bool) -> bool:
        if not repo.gated or (token and repo.granted):
            return False
        self._refuse(403 if token else 401, repo.code)
        return True

    def _file(self, where: str) -> None:
        kind, owner, name, revision, *parts = where.split("/")
        file = "/".join(parts)
        if self.hub.failing.get(file, 0):
            self.hub.failing[file] -= 1
            return self._refuse(503)
        content = self.hub.repos[f"{kind}/{owner}/{name}"].commits[revision][file]
        content = self.hub.swapped.get(file, content)
        asked = self.headers.get("Range", "") if self.hub.ranges else ""
        start = int(asked.removeprefix("bytes=").partition("-")[0] or 0)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return None
        return self._send(file, content[start:])

    def _send(self, file: str, content: bytes) -> None:
        if self.hub.cuts.get(file):
            self.wfile.write(content[: self.hub.cuts[file].pop(0)])
            self.close_connection = True
        elif file in self.hub.hold:
            self.wfile.write(content[: self.hub.hold[file]])
            self.wfile.flush()
            self.hub.held.set()
            self.hub.release.wait(60)
            self.close_connection = True
        else:
            self.wfile.write(content)

    def _json(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, code: str = "", message: str = "") -> None:
        self.send_response(status)
        for name, value in (("X-Error-Code", code), ("X-Error-Message", message)):
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _listed(path: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob}
    if path.endswith(LARGE):
        found["lfs"] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "pointerSize": 130,
        }
    return found
