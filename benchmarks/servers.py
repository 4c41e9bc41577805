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
from pathlib import Path
from typing import IO, Any

import psutil

# Nothing that is measured asks the Hub, or reports to anybody.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
}
_START_S = 180.0
_END_S = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer and the time from the first byte sent to the last byte received."""

    body: bytes
    seconds: float


@dataclass(frozen=True, slots=True)
class Server:
    port: int
    process: subprocess.Popen[bytes]
    ready_s: float  # from the start of its process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

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

    def get(self, path: str) -> Any:
        """The JSON answer."""
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return json.load(response)

    def resident_bytes(self) -> int:
        """Of the process and all that it started."""
        first = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in (first, *first.children(recursive=True)))


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
def pellucid(data_dir: Path | None = None, **settings: str) -> Iterator[Server]:
    """Pellucid as it starts by default, but for ``settings``. Without ``data_dir`` nothing is
    kept from an earlier start."""
    port = free_port()
    with tempfile.TemporaryDirectory() as fresh:
        command = [sys.executable, "-m", "pellucid", "serve", "--port", str(port)]
        with _running(
            command, port, ready="/ready", environment=environment(data_dir or fresh, **settings)
        ) as server:
            yield server


@contextmanager
def infinity(python: Path, folder: str, *, model: str) -> Iterator[Server]:
    """Infinity as its own documentation starts it, on PyTorch and the CPU."""
    port = free_port()
    command = [str(python.parent / "infinity_emb"), "v2", "--model-id", folder, "--engine", "torch"]
    command += ["--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", model]
    with _running(command, port, ready="/health") as server:
        yield server


def environment(data_dir: Path | str, **settings: str) -> dict[str, str]:
    """This process's environment without settings of Pellucid, but with these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PELLUCID_")}
    given = {f"PELLUCID_{name.upper()}": value for name, value in settings.items()}
    return (
        kept | QUIET | {"PELLUCID_DATA_DIR": str(data_dir), "PELLUCID_LOG_LEVEL": "warning"} | given
    )


@contextmanager
def _running(
    command: list[str], port: int, *, ready: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment or (os.environ | QUIET)
        )
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}{ready}", process)
            yield Server(port, process, time.perf_counter() - started)
        except RuntimeError:
            _show(log)
            raise
        finally:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _show(log: IO[bytes]) -> None:
    log.seek(0)
    sys.stderr.write(log.read().decode(errors="replace"))


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.02)
    raise RuntimeError(f"{url} did not become ready in {_START_S:.0f} s")
