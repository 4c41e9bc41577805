"""HEAD on every address that answers GET."""

from __future__ import annotations

import http.client
from contextlib import closing

import httpx
import pytest
from starlette.testclient import TestClient

from conftest import plain_settings
from pellucid.api.app import create_app
from pellucid.services import build_services
from serving import served
from stub_engine import StubEngine

PATHS = ("/", "/health", "/ready", "/info", "/docs", "/openapi.json", "/v1/models", "/v1/models/a")


@pytest.mark.parametrize("path", PATHS)
def test_head_is_get_without_the_body(client: TestClient, path: str) -> None:
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    for name in ("content-type", "content-length"):
        # Request ids differ, but not in their length.
        assert head.headers[name] == got.headers[name]


def test_head_runs_nothing_that_changes_something(client: TestClient, engine: StubEngine) -> None:
    before = len(engine.seen)
    for path in ("/unload", "/process", "/v1/models/load"):
        assert client.head(path).status_code in (404, 405)
    assert len(engine.seen) == before


def test_head_is_counted_under_its_route(client: TestClient) -> None:
    client.head("/v1/models/stub/model")
    line = 'pellucid_requests_total{method="HEAD",route="/v1/models/{model_id:path}",status="200"}'
    assert line in client.get("/metrics").text


def test_a_connection_goes_on_after_head(engine: StubEngine) -> None:
    with (
        served(create_app(build_services(plain_settings(), engine=engine))) as url,
        closing(http.client.HTTPConnection(httpx.URL(url).netloc.decode())) as connection,
    ):
        for _ in range(2):
            connection.request("HEAD", "/docs")
            head = connection.getresponse()
            assert (head.status, head.read()) == (200, b"")
            assert int(head.headers["content-length"]) > 10_000
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
