"""A Hub whose answers drip: each byte comes in time, the whole never."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pellucid.errors import DownloadFailed, HubUnreachable
from pellucid.models.sources import download, hub_client
from pellucid.models.sources.download import Download, DownloadMeter
from pellucid.models.sources.hub_client import HubClient
from pellucid.models.sources.repository import RepoFile
from pellucid.progress import ignore_progress

COMMIT = "c" * 40
DRIP_S = 0.02
ENOUGH_S = 5.0  # far more than the limits below, far less than what would drip


class Drip:
    """A server that sends ``at_once``, then ``byte`` after ``byte``."""

    def __init__(self) -> None:
        self.at_once = b""
        self.byte = b"x"
        self.count: int | None = None  # None: for ever
        self.connections = 0
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._drip, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _drip(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(1 << 16)
                connection.sendall(self.at_once)
                sent = 0
                while self.count is None or sent < self.count:
                    if self._closing.wait(DRIP_S):
                        return
                    connection.sendall(self.byte)
                    sent += 1
            except OSError:
                return  # the client had enough


@pytest.fixture
def drip(monkeypatch: pytest.MonkeyPatch) -> Iterator[Drip]:
    monkeypatch.setattr(hub_client, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(download, "_PAUSE_S", 0.0)
    server = Drip()
    yield server
    server.close()


def client(drip: Drip) -> HubClient:
    return HubClient(endpoint=drip.endpoint, token=None, timeout_s=0.2)


def head(length: int) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode()


@pytest.mark.parametrize("at_once", [b"HTTP/1.1 200 OK\r\nX-", head(10_000)], ids=["head", "body"])
def test_a_dripping_listing_is_given_up(drip: Drip, at_once: bytes) -> None:
    drip.at_once = at_once
    started = time.monotonic()
    with pytest.raises(HubUnreachable, match=r"no whole answer within 0\.4 s"):
        client(drip).list_files("owner/name", None)
    assert time.monotonic() - started < ENOUGH_S


def fetch(drip: Drip, folder: Path, *, size: int, path: str = "tokenizer.json") -> Path:
    blob = folder / "blob"
    Download(
        client=client(drip),
        model_id="owner/name",
        commit=COMMIT,
        file=RepoFile(path=path, size=size, git_sha1="0" * 40),
        blob=blob,
        lock=folder / "lock",
    ).run(DownloadMeter(model_id="owner/name", total_bytes=size, progress=ignore_progress))
    return blob


def test_a_dripping_small_file_is_given_up_and_what_came_is_kept(
    drip: Drip, tmp_path: Path
) -> None:
    drip.at_once = head(2_000)
    started = time.monotonic()
    with pytest.raises(DownloadFailed, match=r"it was not there after 0\.5 s") as failed:
        fetch(drip, tmp_path, size=2_000)
    assert time.monotonic() - started < ENOUGH_S
    assert drip.connections == 1
    assert failed.value.facts["received_bytes"] == (tmp_path / "blob.partial").stat().st_size > 0


def test_weights_may_drip_as_long_as_they_come(
    drip: Drip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"x" * 40  # 0.8 s, twice the limit of an answer
    drip.at_once, drip.count = head(len(content)), len(content)
    monkeypatch.setattr(download, "_SMALL_BYTES", 10)
    monkeypatch.setattr(Download, "_hash", lambda self: self.file.blob_name)
    blob = fetch(drip, tmp_path, size=len(content), path="model.safetensors")
    assert blob.read_bytes() == content
    assert drip.connections == 1


def test_weights_whose_head_drips_are_given_up(
    drip: Drip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drip.at_once = b"HTTP/1.1 200 OK\r\nX-"
    monkeypatch.setattr(download, "_SMALL_BYTES", 10)
    started = time.monotonic()
    with pytest.raises(DownloadFailed):
        fetch(drip, tmp_path, size=1_000, path="model.safetensors")
    assert time.monotonic() - started < ENOUGH_S
    assert drip.connections == 3


def test_weights_that_stop_coming_are_given_up(
    drip: Drip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drip.at_once, drip.byte = head(1_000) + b"xx", b""
    monkeypatch.setattr(download, "_SMALL_BYTES", 10)
    with pytest.raises(DownloadFailed, match=r"no byte came within 0\.2 s"):
        fetch(drip, tmp_path, size=1_000, path="model.safetensors")
