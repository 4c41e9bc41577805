"""Servers to measure, each in a process of its own on a free port of this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer and the time from the first byte sent to the last byte received."""

    body: bytes
    seconds: float


@dataclass(frozen=True, slots=True)
class Server:
    url: str

    def post(self, path: str, body: Mapping[str, object], *, accept: str = "*/*") -> Answer:
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json", "accept": accept},
        )
        started = time.perf_counter()
        with urllib.request.urlopen(request, timeout=300) as response:
            answer = response.read()
        return Answer(answer, time.perf_counter() - started)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def plain_service(folder: str) -> Iterator[Server]:
    """The yardstick of ``plain_service.py``."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.plain_service", folder, str(port)]
    with _running(command, port, ready="/health") as server:
        yield server


@contextmanager
def pellucid() -> Iterator[Server]:
    """Pellucid as it starts by default."""
    port = free_port()
    with tempfile.TemporaryDirectory() as data_dir:
        command = [sys.executable, "-m", "pellucid", "serve", "--port", str(port)]
        command += ["--data-dir", data_dir]
        with _running(command, port, ready="/ready") as server:
            yield server


@contextmanager
def _running(command: list[str], port: int, *, ready: str) -> Iterator[Server]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ))
        try:
            server = Server(f"http://127.0.0.1:{port}")
            _wait_until_ready(server, ready, process)
            yield server
        except RuntimeError:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            raise
        finally:
            process.terminate()
            process.wait(30)


def _wait_until_ready(server: Server, path: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {process.returncode}")
        try:
            with urllib.request.urlopen(server.url + path, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise RuntimeError(f"{server.url}{path} did not become ready in 120 s")
