"""How requests are taken: bounded, strict, timed, and dropped when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from starlette.testclient import TestClient

from conftest import MakeClient, plain_settings
from pellucid.api.app import create_app
from pellucid.services import build_services
from serving import served
from stub_engine import StubEngine

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param(b'{"text": ', 400, "malformed_json", id="cut-off"),
        pytest.param(b"text=a", 400, "malformed_json", id="form"),
        pytest.param(b'{"text": NaN}', 400, "malformed_json", id="nan"),
        pytest.param(b'{"text": "a"}{}', 400, "malformed_json", id="two-documents"),
        pytest.param(b'{"text": "\xe9"}', 400, "malformed_json", id="latin-1"),
        pytest.param('{"text": "a"}'.encode("utf-16"), 400, "malformed_json", id="utf-16"),
        pytest.param(b"\x00", 400, "malformed_json", id="nul"),
        pytest.param(b'{"text": "\\ud83d"}', 422, "invalid_text", id="lone-surrogate"),
        pytest.param(b'{"text": "\\udc00 \\ud800"}', 422, "invalid_text", id="swapped-pair"),
        pytest.param(b"[" * 100_000, 400, "json_too_complex", id="deep"),
        pytest.param(b"[" * 70 + b"]" * 70, 400, "json_too_complex", id="a-little-too-deep"),
        pytest.param(b'{"a":' * 500 + b"1" + b"}" * 500, 400, "json_too_complex", id="objects"),
        pytest.param(
            b"[" + b"[]," * 200_000 + b"[]]", 400, "json_too_complex", id="many-small-lists"
        ),
        pytest.param(
            b'{"text": "a", "layers": [' + b'"x",' * 500_000 + b"1]}",
            422,
            "invalid_request",
            id="half-a-million-wrong-items",
        ),
        pytest.param(
            b'{"text": "a", "include": ' + b"[" * 30 + b"]" * 30 + b"}",
            422,
            "invalid_request",
            id="nested-but-allowed",
        ),
    ],
)
def test_a_bad_body_is_a_4xx_at_once(
    client: TestClient, body: bytes, status: int, code: str
) -> None:
    started = time.perf_counter()
    response = client.post("/v1/inspections", content=body, headers=JSON)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert len(response.content) < 2_000
    assert time.perf_counter() - started < 2


def test_brackets_inside_a_text_are_only_text(client: TestClient) -> None:
    body = json.dumps({"text": "a " + '[{"' * 60_000})
    assert client.post("/v1/inspections", content=body, headers=JSON).status_code == 200


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream"]
)
def test_only_json_is_taken(client: TestClient, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    response = client.post("/embed", content=b'{"texts": ["a"]}', headers=headers)
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")
    assert response.json()["content_type"] == content_type


def test_a_compressed_body_is_refused_as_such(client: TestClient) -> None:
    body = gzip.compress(b'{"text": "a"}')
    response = client.post("/process", content=body, headers={**JSON, "Content-Encoding": "gzip"})
    problem = response.json()
    assert (response.status_code, problem["code"]) == (415, "unsupported_encoding")
    assert problem["content_encoding"] == "gzip"
    plain = {**JSON, "Content-Encoding": "identity"}
    assert client.post("/process", content=b'{"text": "a"}', headers=plain).status_code == 200


@pytest.mark.parametrize(
    ("body", "position"),
    [
        pytest.param(b'{"text": "\\ud83d\\ude00 \\ud800"}', 23, id="half-a-pair-after-a-whole-one"),
        pytest.param(b'{"text": "caf\xe9"}', 13, id="latin-1"),
    ],
)
def test_the_place_of_a_bad_character_is_told(
    client: TestClient, body: bytes, position: int
) -> None:
    problem = client.post("/process", content=body, headers=JSON).json()
    assert problem["position"] == position


def test_a_body_that_nobody_reads_may_be_of_any_kind(client: TestClient) -> None:
    assert client.post("/unload", content=b"a=b").status_code == 200
    assert client.post("/unload", data={"a": "b"}).status_code == 200


def test_a_body_without_a_declared_type_is_refused(client: TestClient) -> None:
    response = client.post("/embed", content=b'{"texts": ["a"]}')
    assert response.status_code == 415


def test_json_may_name_its_charset(client: TestClient) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert client.post("/embed", content=b'{"texts":["a"]}', headers=headers).status_code == 200


@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
def test_a_body_over_the_limit_is_refused_before_it_is_read(
    make_client: MakeClient, engine: StubEngine, declared: bool
) -> None:
    client = make_client(engine, max_body_bytes=1_000)
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1_000):
            sent += 100
            yield b" " * 100

    content = b" " * 100_000 if declared else chunks()
    response = client.post("/embed", content=content, headers=JSON)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert response.json()["limit_bytes"] == 1_000


def test_the_limit_itself_is_allowed(make_client: MakeClient, engine: StubEngine) -> None:
    body = b'{"texts": ["a"]}'
    client = make_client(engine, max_body_bytes=len(body))
    assert client.post("/embed", content=body, headers=JSON).status_code == 200


def test_a_request_that_takes_too_long_is_ended(
    make_client: MakeClient, engine: StubEngine
) -> None:
    client = make_client(engine, request_timeout_s=0.05)
    engine.hold = asyncio.Event()
    response = client.post("/v1/inspections", json={"text": "a"})
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
    assert response.json()["timeout_s"] == 0.05
    assert engine.cancelled == 1


def test_a_timeout_inside_the_engine_is_not_taken_for_the_deadline(
    client: TestClient, engine: StubEngine
) -> None:
    engine.error = TimeoutError("inside")
    assert client.post("/v1/inspections", json={"text": "a"}).status_code == 500


def test_work_for_a_client_that_left_is_cancelled(engine: StubEngine) -> None:
    services = build_services(plain_settings(), engine=engine)
    with served(create_app(services)) as url:
        assert httpx.get(f"{url}/ready").status_code == 200  # loaded, before it is held up
        engine.hold = asyncio.Event()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/inspections", json={"text": "a"}, timeout=0.2)
        until = time.monotonic() + 5
        while not engine.cancelled and time.monotonic() < until:
            time.sleep(0.01)
        assert engine.cancelled == 1  # here: ending the server would cancel it, too


def test_a_body_that_is_too_large_is_answered_over_a_real_connection(engine: StubEngine) -> None:
    services = build_services(plain_settings(max_body_bytes=100_000), engine=engine)
    with served(create_app(services)) as url:
        body = b'{"texts": ["' + b"a" * 20_000_000 + b'"]}'
        response = httpx.post(f"{url}/embed", content=body, headers=JSON)
        assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_others_are_answered_while_one_waits(engine: StubEngine) -> None:
    services = build_services(plain_settings(), engine=engine)
    with served(create_app(services)) as url:
        assert httpx.get(f"{url}/ready").status_code == 200
        engine.hold = asyncio.Event()

        def wait() -> None:
            with contextlib.suppress(httpx.ReadTimeout):
                httpx.post(f"{url}/embed", json={"texts": ["a"]}, timeout=0.5)

        waiting = threading.Thread(target=wait)
        waiting.start()
        while len(engine.seen) < 2:
            time.sleep(0.01)
        started = time.perf_counter()
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
        assert time.perf_counter() - started < 0.4
        waiting.join(timeout=5)
    assert not waiting.is_alive()


def test_a_request_line_that_is_no_http_does_not_harm(engine: StubEngine) -> None:
    services = build_services(plain_settings(), engine=engine)
    with served(create_app(services)) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
            connection.recv(1_000)
        assert httpx.get(f"{url}/health").status_code == 200
