"""A stand-in for the Hub: the part of its HTTP API that downloads use, on 127.0.0.1.

    with HubStandIn() as hub:
        repo = hub.add("owner/name", folder)          # any folder becomes a repository
        repo.break_off("model.safetensors", at=1000)  # and misbehaves as told
        ... Settings(hub_endpoint=hub.endpoint, hub_cache_dir=tmp_path) ...
        hub.requests                                  # what was asked, in order

Answers, headers and error codes are those of the real Hub (status, ``X-Error-Code``, ``ETag``,
``X-Repo-Commit``, ``X-Linked-*``, ranges). Everything is served from memory.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".onnx", ".gguf", ".h5", ".msgpack")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    range_start: int | None
    token: str | None
    host: str


@dataclass
class Repo:
    """One repository at one commit, and how it misbehaves. Change it at any time."""

    model_id: str
    files: dict[str, bytes]
    revisions: set[str] = field(default_factory=lambda: {"main"})
    gated: bool = False  # listing is public, files are for those in ``readers``
    private: bool = False  # everything is for those in ``readers``
    readers: set[str] = field(default_factory=set)  # tokens
    num_parameters: dict[str, int] | None = None  # as the Hub reads it from safetensors headers
    sizes: dict[str, int] = field(default_factory=dict)  # sizes to announce instead of the true
    _breaks: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    _stalls: dict[str, int] = field(default_factory=dict)
    _corrupt: set[str] = field(default_factory=set)
    _failing: dict[str, int] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        digest = hashlib.sha1(self.model_id.encode(), usedforsecurity=False)
        for path in sorted(self.files):
            digest.update(path.encode() + hashlib.sha256(self.files[path]).digest())
        return digest.hexdigest()

    def break_off(self, path: str, *, at: int, times: int | None = 1) -> None:
        """Close the connection at byte ``at`` of a file, so many times (None: always)."""
        self._breaks[path] = (at, times)

    def stall(self, path: str, *, at: int) -> None:
        """Send a file as far as byte ``at``, and then nothing more."""
        self._stalls[path] = at

    def corrupt(self, path: str, *, corrupt: bool = True) -> None:
        """Send other bytes than announced, of the right number."""
        (self._corrupt.add if corrupt else self._corrupt.discard)(path)

    def fail(self, path: str, status: int) -> None:
        """Answer requests for a file with an error status."""
        self._failing[path] = status

    def mend(self) -> None:
        """No more faults."""
        self._breaks.clear()
        self._stalls.clear()
        self._corrupt.clear()
        self._failing.clear()

    def _end_of(self, path: str, size: int) -> int:
        at, times = self._breaks.get(path, (size, None))
        if times is not None:
            if times == 0:
                return size
            self._breaks[path] = (at, times - 1)
        return min(at, size)


class HubStandIn:
    """The server. ``status``: answer everything so; ``hangs``: answer nothing;
    ``redirects_files``: send LFS files from another host, as the Hub's CDN does;
    ``ignores_ranges``: send files from their start whatever was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.status: int | None = None
        self.hangs = False
        self.redirects_files = False
        self.ignores_ranges = False
        self.token_unknown = False  # every token is answered as invalid
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def __enter__(self) -> HubStandIn:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def add(self, model_id: str, folder: Path) -> Repo:
        """Serve a folder as a repository; its present content is its only commit."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        return self.add_files(model_id, files)

    def add_files(self, model_id: str, files: dict[str, bytes]) -> Repo:
        """Serve contents by path as a repository."""
        repo = Repo(model_id=model_id, files=files)
        self.repos[model_id] = repo
        return repo

    def requested(self, part: str) -> list[Request]:
        """The requests whose path holds ``part``."""
        return [request for request in self.requests if part in request.path]

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait_for_close(self) -> None:
        self._closing.wait(60)


class _Refusal(Exception):
    def __init__(self, status: int, code: str | None = None, message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


def _handler_of(hub: HubStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(_Exchange):
        stand_in = hub

    return Handler


class _Exchange(BaseHTTPRequestHandler):
    """One request and its answer."""

    stand_in: HubStandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._note()
        try:
            self._answer()
        except _Refusal as refusal:
            self._refuse(refusal)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    @property
    def _token(self) -> str | None:
        value = self.headers.get("Authorization")
        return value.removeprefix("Bearer ") if value else None

    def _note(self) -> None:
        match = _RANGE.match(self.headers.get("Range", ""))
        request = Request(
            method=self.command,
            path=unquote(urlsplit(self.path).path),
            range_start=int(match[1]) if match else None,
            token=self._token,
            host=self.headers["Host"].partition(":")[0],
        )
        self.stand_in.requests.append(request)

    def _answer(self) -> None:
        hub = self.stand_in
        if hub.hangs:
            hub.wait_for_close()
            self.close_connection = True
            return
        if hub.status is not None:
            raise _Refusal(hub.status)
        if hub.token_unknown and self._token is not None:
            raise _Refusal(401, message="Invalid credentials in Authorization header")
        path = urlsplit(self.path).path
        if match := re.fullmatch(r"/cdn/(.+?)/resolve/([^/]+)/(.+)", path):
            self._send_file(hub.repos[match[1]], unquote(match[3]))
        elif match := re.fullmatch(r"/api/models/(.+?)/tree/([^/]+)/?", path):
            self._send_json(_tree_of(self._repo(match[1], unquote(match[2]))))
        elif match := re.fullmatch(r"/api/models/(.+?)(?:/revision/([^/]+))?", path):
            repo = self._repo(match[1], unquote(match[2] or "main"))
            with_sizes = "blobs" in parse_qs(urlsplit(self.path).query)
            self._send_json(_info_of(repo, with_sizes=with_sizes))
        elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            self._resolve(self._repo(match[1], unquote(match[2])), unquote(match[3]))
        else:
            raise _Refusal(404)

    def _repo(self, model_id: str, revision: str) -> Repo:
        repo = self.stand_in.repos.get(model_id)
        if repo is not None and repo.private and self._token not in repo.readers:
            if self._token is not None:
                raise _Refusal(403, message="Forbidden: your token may not read this repository")
            repo = None
        if repo is None:
            status = 401 if self._token is None else 404
            raise _Refusal(status, "RepoNotFound", "Repository not found")
        if revision != repo.commit and revision not in repo.revisions:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo

    def _resolve(self, repo: Repo, path: str) -> None:
        if repo.gated and self._token not in repo.readers:
            status = 401 if self._token is None else 403
            raise _Refusal(status, "GatedRepo", f"Access to {repo.model_id} is restricted")
        if path not in repo.files:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        if path in repo._failing:
            raise _Refusal(repo._failing[path])
        if self.stand_in.redirects_files and path.endswith(_LFS_SUFFIXES):
            location = f"http://localhost:{self.stand_in.port}/cdn{self.path}"
            self._send_head(302, {"Location": location, "Content-Length": "0"}, repo, path)
        else:
            self._send_file(repo, path)

    def _send_file(self, repo: Repo, path: str) -> None:
        content = repo.files[path]
        if path in repo._corrupt:
            content = bytes(byte ^ 0xFF for byte in content)
        match = _RANGE.match(self.headers.get("Range", ""))
        start = int(match[1]) if match and not self.stand_in.ignores_ranges else 0
        if start and start >= len(content):
            raise _Refusal(416)
        headers = {"Content-Length": str(len(content) - start), "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send_head(206 if start else 200, headers, repo, path)
        if self.command == "HEAD":
            return
        end = repo._end_of(path, len(content))
        if (stalls_at := repo._stalls.get(path)) is not None:
            self.wfile.write(content[start:stalls_at])
            self.stand_in.wait_for_close()
            self.close_connection = True
            return
        self.wfile.write(content[start:end])
        if end < len(content):
            self.close_connection = True

    def _send_head(self, status: int, headers: dict[str, str], repo: Repo, path: str) -> None:
        content = repo.files[path]
        etag = f'"{_sha256(content) if _is_lfs(path) else _git_sha1(content)}"'
        headers |= {"ETag": etag, "X-Repo-Commit": repo.commit}
        if _is_lfs(path):
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, refusal: _Refusal) -> None:
        headers = Message()
        if refusal.code is not None:
            headers["X-Error-Code"] = refusal.code
        if refusal.message:
            headers["X-Error-Message"] = refusal.message
        body = json.dumps({"error": refusal.message or "Error"}).encode()
        self.send_response(refusal.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _info_of(repo: Repo, *, with_sizes: bool) -> dict[str, object]:
    siblings = [
        {"rfilename": path, **(_hashes_of(repo, path) if with_sizes else {})}
        for path in sorted(repo.files)
    ]
    info: dict[str, object] = {
        "id": repo.model_id,
        "modelId": repo.model_id,
        "sha": repo.commit,
        "private": repo.private,
        "gated": "auto" if repo.gated else False,
        "disabled": False,
        "siblings": siblings,
        "tags": [],
        "usedStorage": sum(map(len, repo.files.values())),
    }
    if repo.num_parameters is not None:
        total = sum(repo.num_parameters.values())
        info["safetensors"] = {"parameters": repo.num_parameters, "total": total}
    return info


def _hashes_of(repo: Repo, path: str) -> dict[str, object]:
    content = repo.files[path]
    size = repo.sizes.get(path, len(content))
    hashes: dict[str, object] = {"blobId": _git_sha1(content), "size": size}
    if _is_lfs(path):
        hashes["lfs"] = {"sha256": _sha256(content), "size": size, "pointerSize": 134}
    return hashes


def _tree_of(repo: Repo) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = []
    for path in sorted(repo.files):
        content = repo.files[path]
        entry: dict[str, object] = {
            "type": "file",
            "path": path,
            "oid": _git_sha1(content),
            "size": len(content),
        }
        if _is_lfs(path):
            entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
        entries.append(entry)
    return entries


def _is_lfs(path: str) -> bool:
    return path.endswith(_LFS_SUFFIXES)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_sha1(content: bytes) -> str:
    prefix = f"blob {len(content)}\0".encode()
    return hashlib.sha1(prefix + content, usedforsecurity=False).hexdigest()
