"""The page at /docs, the OpenAPI document, metrics and logs."""

from __future__ import annotations

import html
import json
import logging
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from conftest import MakeClient
from pellucid.api.docs_page import docs_page
from pellucid.api.openapi import openapi_document, openapi_text
from pellucid.errors import NotReady, PellucidError
from stub_engine import StubEngine

ROOT = Path(__file__).resolve().parents[2]
BINARY = {
    "application/vnd.safetensors",
    "application/octet-stream",
    "application/openmetrics-text",
    "text/html",
}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if "id" in found:
            self.ids.append(str(found["id"]))
        if tag == "a":
            self.links.append(str(found["href"]))
        elif "src" in found or "href" in found or tag in ("script", "link"):
            self.loads.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, operations in openapi_document()["paths"].items()
        for method, operation in operations.items()
    ]


def test_the_page_loads_nothing_and_tells_everything(client: TestClient) -> None:
    response = client.get("/docs")
    page = _Page()
    page.feed(response.text)
    assert page.loads == []
    assert page.open == []
    assert "script" not in response.headers["content-security-policy"]
    assert not re.search(r"url\(|@import|<script", response.text)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.ids) >= {operation["operationId"] for _, _, operation in _operations()}
    assert set(page.ids) >= {kind.code for kind in PellucidError.tree()}
    for link in page.links:
        assert link.removeprefix("#") in page.ids or link == "/openapi.json"


def test_the_type_of_a_problem_leads_to_its_section(client: TestClient) -> None:
    path, _, anchor = client.get("/nothing").json()["type"].partition("#")
    assert f'id="{anchor}"' in client.get(path).text


def test_a_browser_gets_the_page_and_a_program_a_pointer(client: TestClient) -> None:
    assert client.get("/").json()["docs"] == "/docs"
    assert "<html" in client.get("/", headers={"Accept": "text/html,*/*;q=0.8"}).text


def test_a_made_up_host_cannot_write_into_the_page(
    make_client: MakeClient, engine: StubEngine
) -> None:
    client = make_client(engine, auth_token="t")  # with a token any host name is taken
    response = client.get("/docs", headers={"Host": "<script>alert(1)</script>"})
    assert "<script" not in response.text
    page = docs_page(openapi_document(), base_url="http://<b>", needs_token=False)
    assert "<b>" not in page


def test_the_committed_document_is_the_current_one(client: TestClient) -> None:
    committed = (ROOT / "contract" / "openapi.json").read_text(encoding="utf-8")
    assert committed == openapi_text(), "run `make contract`"
    assert client.get("/openapi.json").json() == json.loads(committed)


def test_operation_ids_are_readable_and_distinct() -> None:
    ids = [operation["operationId"] for _, _, operation in _operations()]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-z]+([A-Z][a-z]+)*", name) for name in ids)


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [pytest.param(*found, id=f"{found[0]} {found[1]}") for found in _operations()],
)
def test_every_answer_is_documented(method: str, path: str, operation: dict[str, Any]) -> None:
    for kind, media in operation["responses"]["200"]["content"].items():
        schema = media["schema"]
        assert schema, f"{method} {path} says nothing about {kind}"
        assert kind in BINARY or "$ref" in schema or schema.get("type") == "object"
    for status, response in operation["responses"].items():
        if status.startswith("4") or (status.startswith("5") and path != "/ready"):
            assert list(response["content"]) == ["application/problem+json"]


def test_only_what_is_public_goes_without_a_token() -> None:
    public = {path for _, path, operation in _operations() if operation["security"] == []}
    assert public == {"/", "/docs", "/openapi.json", "/health", "/ready"}


def test_metrics_count_by_route_and_code(client: TestClient) -> None:
    client.post("/v1/embeddings", json={"input": ["a", "b"]})
    client.post("/v1/embeddings", json={"input": 1})
    client.get("/v1/models/stub/model")
    client.get("/made-up-1")
    client.request("BREW", "/made-up-2")
    text = client.get("/metrics").text
    for line in (
        'pellucid_requests_total{method="POST",route="/v1/embeddings",status="200"} 1.0',
        'pellucid_requests_total{method="POST",route="/v1/embeddings",status="422"} 1.0',
        'pellucid_requests_total{method="GET",route="/v1/models/{model_id:path}",status="200"} 1.0',
        'pellucid_errors_total{code="invalid_request"} 1.0',
        'pellucid_tokens_total{work="embedding"} 6.0',
        'pellucid_stage_seconds_count{stage="forward",work="embedding"} 1.0',
        "pellucid_models_loaded 1.0",
        "pellucid_model_memory_bytes 4000.0",
    ):
        assert line in text
    assert "made-up" not in text  # a caller cannot make new time series
    assert "BREW" not in text


@pytest.mark.parametrize(
    ("given", "is_kept"), [("abc-1.2:3_4", True), ("a b", False), ("x" * 65, False), ("", False)]
)
def test_a_request_keeps_its_id(client: TestClient, given: str, is_kept: bool) -> None:
    answer = client.get("/health", headers={"X-Request-ID": given}).headers["x-request-id"]
    assert (answer == given) == is_kept
    assert re.fullmatch(r"[\w.:-]{1,64}", answer)


def test_a_failure_of_ours_is_logged_with_its_traceback(
    client: TestClient, engine: StubEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.error = RuntimeError("inside")
    with caplog.at_level(logging.ERROR, logger="pellucid.api"):
        client.post("/embed", json={"texts": ["a"]}, headers={"X-Request-ID": "abc"})
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.msg, dict)
    assert record.msg["request_id"] == "abc"


def test_the_commands_of_the_page_can_be_run(client: TestClient) -> None:
    page = html.unescape(client.get("/docs").text)
    commands = re.findall(r"<pre>(curl .*?)</pre>", page, re.DOTALL)
    assert len(commands) == len(_operations())
    for command in commands:
        words = shlex.split(command)
        url = next(word for word in words if word.startswith("http"))
        path = url.removeprefix("http://localhost:8421").replace("{model_id}", "stub/model")
        body = words[words.index("-d") + 1] if "-d" in words else None
        method = "POST" if body is not None or "POST" in words else "GET"
        headers = {"Content-Type": "application/json"} if body else {}
        response = client.request(method, path, content=body, headers=headers)
        assert response.status_code == 200, (command, response.text)


def test_the_commands_sign_in_where_a_token_is_needed(
    make_client: MakeClient, engine: StubEngine, client: TestClient
) -> None:
    signs_in = "-H 'Authorization: Bearer TOKEN'"
    assert signs_in in html.unescape(make_client(engine, auth_token="t").get("/docs").text)
    assert signs_in not in html.unescape(client.get("/docs").text)


def test_an_answer_that_was_meant_is_logged_without_one(
    client: TestClient, engine: StubEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.error = NotReady(phase="shutting down", retry_after_s=5)
    with caplog.at_level(logging.ERROR, logger="pellucid.api"):
        client.post("/embed", json={"texts": ["a"]})
    (record,) = caplog.records
    assert record.exc_info is None
    assert isinstance(record.msg, dict)
    assert record.msg["code"] == "not_ready"
