"""SIGTERM under load, on a real process: what has begun is finished, the rest is told, exit 0."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

TESTS = Path(__file__).resolve().parents[1]
START_S = 60.0


@contextmanager
def _process(shutdown_timeout_s: float) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    command = [sys.executable, str(TESTS / "stub_server.py"), str(shutdown_timeout_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            event = json.loads(line.removeprefix(b"PROGRESS:"))
            if event["type"] == "server_ready":
                break
        yield process, f"http://127.0.0.1:{event['data']['port']}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _embed(url: str, seconds: float) -> httpx.Response:
    return httpx.post(f"{url}/embed", json={"texts": [str(seconds)]}, timeout=30)


def _until_all_are_in(url: str, count: int) -> None:
    until = time.monotonic() + START_S
    while f"pellucid_requests_in_flight {count + 1}.0" not in httpx.get(f"{url}/metrics").text:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_what_has_begun_is_finished_and_the_rest_is_told() -> None:
    with _process(1.5) as (process, url), ThreadPoolExecutor(20) as clients:
        short = [clients.submit(_embed, url, 0.8) for _ in range(8)]
        long = [clients.submit(_embed, url, 60) for _ in range(8)]
        _until_all_are_in(url, 16)
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as idle:
            idle.settimeout(5)
            process.send_signal(signal.SIGTERM)
            begin = time.monotonic()
            assert idle.recv(1) == b""  # closed, politely
        time.sleep(0.3)
        try:
            refused = httpx.get(f"{url}/health").status_code
        except httpx.ConnectError:
            refused = 0
        assert refused == 0, "new connections are refused"
        for answer in short:
            assert answer.result().status_code == 200
        for answer in long:
            response = answer.result()
            assert (response.status_code, response.json()["code"]) == (503, "not_ready")
            assert int(response.headers["retry-after"]) > 0
        assert process.wait(10) == 0
        assert 1.2 < time.monotonic() - begin < 6


def test_a_body_that_does_not_come_does_not_hold_it_up() -> None:
    with _process(0.5) as (process, url):
        _until_all_are_in(url, 0)
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as slow:
            slow.settimeout(10)
            slow.sendall(
                b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b'Content-Length: 100\r\n\r\n{"texts"'
            )
            _until_all_are_in(url, 1)
            process.send_signal(signal.SIGTERM)
            assert slow.recv(65536).startswith(b"HTTP/1.1 503 ")
        assert process.wait(10) == 0


def test_told_twice_it_ends_at_once() -> None:
    with _process(30) as (process, url), ThreadPoolExecutor(1) as clients:
        answer = clients.submit(_embed, url, 60)
        _until_all_are_in(url, 1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
        assert time.monotonic() - begin < 2
        assert isinstance(answer.exception(), httpx.RemoteProtocolError)
