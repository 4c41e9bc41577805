"""One connection, byte by byte: offered upgrades, slow clients, too many of them."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from conftest import plain_settings
from pellucid.api.app import create_app
from pellucid.inference.engine import EmbeddingQuery, Embeddings
from pellucid.services import build_services
from serving import served
from stub_engine import StubEngine

OFFER = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    app = create_app(build_services(plain_settings(), engine=StubEngine()))
    with served(app, head_timeout_s=0.3, write_timeout_s=0.3) as url:
        yield _port(url)


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _post(text: str, *, offer: bytes = b"", chunked: bool = False) -> bytes:
    body = json.dumps({"texts": [text, text]}).encode()
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    head = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    if chunked:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return head + offer + framing + b"\r\n\r\n" + body


def _get(path: bytes, *, offer: bytes = b"") -> bytes:
    return b"GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % (path, offer)


@contextlib.contextmanager
def _connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        yield connection


def _answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of one answer; (0, b"") when the connection was closed instead."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        if not piece:
            return 0, b""
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    while len(body) < length:
        body += connection.recv(65536)
    assert len(body) == length, "more than one answer"
    return int(head.split()[1]), body


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([_post("a", offer=OFFER)], id="post"),
        pytest.param([_post("a" * 300_000, offer=OFFER)], id="long-post"),
        pytest.param(_post("a", offer=OFFER).partition(b"\r\n\r\n"), id="body-comes-later"),
        pytest.param([_post("a", offer=OFFER, chunked=True)], id="chunked"),
        pytest.param(
            [_post("a", offer=OFFER)[i : i + 1] for i in range(len(_post("a", offer=OFFER)))],
            id="byte-by-byte",
        ),
        pytest.param([_get(b"/health", offer=OFFER)], id="get"),
    ],
)
def test_an_offered_upgrade_is_declined_and_nothing_is_lost(port: int, pieces: list[bytes]) -> None:
    with _connected(port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        status, body = _answer(connection)
        assert status == 200
        assert json.loads(body).get("count", 2) == 2
        connection.sendall(_post("b"))  # the connection goes on in HTTP/1.1
        assert _answer(connection)[0] == 200


def test_pipelined_offers_are_answered_in_order(port: int) -> None:
    with _connected(port) as connection:
        connection.sendall(_get(b"/nowhere", offer=OFFER) + _post("a", offer=OFFER) + _post("b"))
        received = b""
        with contextlib.suppress(TimeoutError):
            connection.settimeout(1)
            while received.count(b"HTTP/1.1 ") < 3:
                received += connection.recv(65536)
    statuses = [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [404, 200, 200]


def test_a_tunnel_is_refused(port: int) -> None:
    with _connected(port) as connection:
        connection.sendall(b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert _answer(connection)[0] == 400


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET /health HTTP/1.1\r\nX: " + b"a" * 200_000, id="one-long-header"),
        pytest.param(b"GET /health HTTP/1.1\r\n" + b"X: a\r\n" * 40_000, id="many-headers"),
        pytest.param(b"GET /" + b"a" * 200_000, id="long-address"),
        pytest.param(_post("a", chunked=True)[:-2] + b"X: a\r\n" * 40_000, id="endless-trailers"),
    ],
)
def test_a_head_without_end_is_refused(port: int, head: bytes) -> None:
    with _connected(port) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(head)
        with contextlib.suppress(ConnectionError):
            assert _answer(connection)[0] in (0, 400)
    with _connected(port) as connection:
        connection.sendall(_get(b"/health"))
        assert _answer(connection)[0] == 200


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"\r\n"], ids=["nothing", "half", "blank"])
def test_a_connection_without_a_whole_head_is_closed(port: int, sent: bytes) -> None:
    with _connected(port) as connection:
        connection.sendall(sent)
        started = time.monotonic()
        assert _answer(connection) == (0, b"")
        assert 0.2 < time.monotonic() - started < 3


@dataclass(slots=True)
class WideEngine(StubEngine):
    """Answers with more than the kernel keeps for a connection."""

    async def embed(self, query: EmbeddingQuery) -> Embeddings:
        embeddings = await StubEngine.embed(self, query)
        return replace(embeddings, vectors=np.full((2, 600_000), 1 / 3, dtype=np.float32))


def test_a_client_that_never_reads_is_cut_off() -> None:
    app = create_app(build_services(plain_settings(), engine=WideEngine()))
    with served(app, write_timeout_s=0.3) as url, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", _port(url)))
        connection.sendall(_post("a"))
        time.sleep(1.5)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(1 << 20):
                received += piece
        assert not received.endswith(LAST_CHUNK)
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_client_that_reads_slowly_gets_everything() -> None:
    app = create_app(build_services(plain_settings(), engine=WideEngine()))
    with served(app, write_timeout_s=1.0) as url, _connected(_port(url)) as connection:
        connection.sendall(_post("a"))
        received = b""
        until = time.monotonic() + 1.5
        while not received.endswith(LAST_CHUNK):
            piece = connection.recv(1 << 18)
            assert piece, f"cut off after {len(received)} bytes"
            received += piece
            if time.monotonic() < until:
                time.sleep(0.025)
        assert len(received) > 10_000_000


def test_connections_beyond_the_limit_are_told_to_come_later() -> None:
    app = create_app(build_services(plain_settings(max_connections=2), engine=StubEngine()))
    with served(app, max_connections=2) as url, contextlib.ExitStack() as held:
        port = _port(url)
        for _ in range(2):
            first = held.enter_context(_connected(port))
            first.sendall(_post("a"))
            assert _answer(first)[0] == 200
        response = httpx.post(f"{url}/embed", json={"texts": ["a"]})
        assert (response.status_code, response.json()["code"]) == (503, "too_many_connections")
        assert response.json()["max_connections"] == 2
        assert int(response.headers["retry-after"]) > 0
        assert response.headers["connection"] == "close"
        assert httpx.get(f"{url}/health").status_code == 200  # whoever watches it gets its answer
        first.sendall(_post("b"))
        assert _answer(first)[0] == 200
        held.close()
        until = time.monotonic() + 5
        while httpx.post(f"{url}/embed", json={"texts": ["a"]}).status_code != 200:
            assert time.monotonic() < until


JAVA = """
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

class Ask {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        URI embed = URI.create(arguments[0] + "/embed");
        for (int i = 0; i < 3; i++) {
            for (String text : new String[] {"short", "long ".repeat(50_000)}) {
                String body = "{\\"texts\\": [\\"" + text + "\\"]}";
                HttpRequest request = HttpRequest.newBuilder(embed)
                    .header("Content-Type", "application/json")
                    .POST(HttpRequest.BodyPublishers.ofString(body))
                    .build();
                System.out.println(client.send(request, BodyHandlers.ofString()).statusCode());
            }
            HttpRequest get = HttpRequest.newBuilder(URI.create(arguments[0] + "/health")).build();
            System.out.println(client.send(get, BodyHandlers.ofString()).statusCode());
        }
    }
}
"""


@pytest.mark.skipif(shutil.which("java") is None, reason="needs a Java runtime")
def test_java_s_own_client_is_answered(port: int, tmp_path: Path) -> None:
    (tmp_path / "Ask.java").write_text(JAVA)
    command = ["java", str(tmp_path / "Ask.java"), f"http://localhost:{port}"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert told.stdout.split() == ["200"] * 9, told.stderr
