"""A server in a process of its own, to be harmed: started, signalled, killed, watched."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import httpx

START_S = 120.0  # torch takes long to import on a busy machine
PELLUCID = ("-m", "pellucid", "serve")


@dataclass
class ServerProcess:
    """The process, and what it has told on stdout so far."""

    process: subprocess.Popen[bytes]
    stderr_path: Path
    port: int = 0

    def __post_init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._arrived: Queue[dict[str, Any] | None] = Queue()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def client(self, *, timeout_s: float = 30.0) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=timeout_s)

    def wait_for_event(self, kind: str) -> dict[str, Any]:
        """The data of the next event of a type."""
        until = time.monotonic() + START_S
        while True:
            try:
                event = self._arrived.get(timeout=max(0.01, until - time.monotonic()))
            except Empty:
                raise AssertionError(f"no {kind} came: {self.events}\n{self.stderr()}") from None
            assert event is not None, f"ended without {kind}: {self.events}\n{self.stderr()}"
            if event["type"] == kind:
                return dict(event["data"])

    def wait_until_ready(self, *, within_s: float = START_S) -> None:
        until = time.monotonic() + within_s
        with self.client() as client:
            while (answer := client.get("/ready")).status_code != 200:
                assert time.monotonic() < until, f"{answer.text}\n{self.stderr()}"
                time.sleep(0.02)

    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace")

    def end(self, *, within_s: float = 30.0) -> int:
        """The exit code, when it has ended by itself or was told to."""
        return self.process.wait(within_s)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line.removeprefix(b"PROGRESS:"))
            self.events.append(event)
            self._arrived.put(event)
        self._arrived.put(None)


@contextmanager
def server_process(
    folder: Path,
    *,
    program: Sequence[str] = PELLUCID,
    environment: dict[str, str] | None = None,
    **settings: Any,
) -> Iterator[ServerProcess]:
    """``pellucid serve`` (or another Python program like it) with these settings, on a port that
    the system chooses, its data in ``folder``; killed when the block ends."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PELLUCID_")}
    chosen = {"port": 0, "data_dir": folder / "data", **settings}
    variables = {f"PELLUCID_{name.upper()}": str(value) for name, value in chosen.items()}
    stderr_path = folder / "stderr"
    with stderr_path.open("ab") as stderr:
        process = subprocess.Popen(
            [sys.executable, *program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=folder,
            env=kept | variables | (environment or {}),
        )
    server = ServerProcess(process, stderr_path)
    try:
        server.port = server.wait_for_event("server_ready")["port"]
        yield server
    finally:
        server.close()


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    text = client.get("/metrics").text
    assert f"# TYPE {name.removesuffix('_total')} " in text, f"there is no {name}"
    total = 0.0
    for line in text.splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)(?: .*)?", line)
        if match is None or match[1] != name:
            continue
        found = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
        if labels.items() <= found.items():
            total += float(match[3])
    return total
