"""Who is let in: by token, by name, and by origin."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from conftest import MakeClient, plain_settings
from pellucid.services import build_services
from stub_engine import StubEngine

TOKEN = "tök-en-of-the-test"
PUBLIC = ["/", "/docs", "/openapi.json", "/health", "/ready"]
GUARDED = ["/info", "/metrics", "/v1/models", "/unload", "/nothing"]
EMBED = {"texts": ["a"]}


def _bearer(token: str) -> dict[str, bytes]:
    return {"Authorization": f"Bearer {token}".encode()}


@pytest.fixture
def guarded(make_client: MakeClient, engine: StubEngine) -> TestClient:
    return make_client(engine, auth_token=TOKEN)


@pytest.mark.parametrize("path", PUBLIC)
def test_whether_it_lives_and_how_to_ask_needs_no_token(guarded: TestClient, path: str) -> None:
    assert guarded.get(path).status_code == 200


@pytest.mark.parametrize("path", GUARDED)
def test_everything_else_needs_the_token(guarded: TestClient, path: str) -> None:
    response = guarded.get(path)
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert guarded.get(path, headers=_bearer(TOKEN)).status_code != 401


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(_bearer("wrong"), id="wrong"),
        pytest.param(_bearer(TOKEN + "x"), id="longer"),
        pytest.param(_bearer(TOKEN[:-1]), id="shorter"),
        pytest.param(_bearer(""), id="empty"),
        pytest.param({"Authorization": TOKEN.encode()}, id="no-scheme"),
        pytest.param({"Authorization": f"Basic {TOKEN}".encode()}, id="other-scheme"),
        pytest.param({"Authorization": b"Bearer \xff\xfe"}, id="not-utf-8"),
    ],
)
def test_only_the_token_itself_lets_in(guarded: TestClient, headers: dict[str, bytes]) -> None:
    response = guarded.post("/embed", json=EMBED, headers=headers)
    assert response.status_code == 401
    assert TOKEN not in response.text


def test_a_request_without_token_costs_nothing(guarded: TestClient, engine: StubEngine) -> None:
    engine.seen.clear()
    body = b"x" * 50_000_000  # over the limit: it would be 413 if anything read it
    assert guarded.post("/embed", content=body).status_code == 401
    assert engine.seen == []


def test_beyond_this_machine_a_token_is_made() -> None:
    first = build_services(plain_settings(host="0.0.0.0"), engine=StubEngine())
    second = build_services(plain_settings(host="0.0.0.0"), engine=StubEngine())
    assert first.auth_token_generated
    assert first.auth_token is not None
    assert len(first.auth_token) >= 32
    assert first.auth_token != second.auth_token


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.9.1"])
def test_on_this_machine_none_is_made(host: str) -> None:
    services = build_services(plain_settings(host=host), engine=StubEngine())
    assert services.auth_token is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_any_other_address_counts_as_open(host: str) -> None:
    assert build_services(plain_settings(host=host), engine=StubEngine()).auth_token is not None


def test_a_token_that_was_set_is_never_replaced() -> None:
    settings = plain_settings(host="0.0.0.0", auth_token=TOKEN)
    services = build_services(settings, engine=StubEngine())
    assert (services.auth_token, services.auth_token_generated) == (TOKEN, False)
    assert TOKEN not in repr(settings)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8421", "[::1]:8421", "LOCALHOST:1"])
def test_on_this_machine_it_answers_to_its_own_names(client: TestClient, host: str) -> None:
    assert client.get("/info", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8421", ""]
)
@pytest.mark.parametrize("path", ["/info", "/health"])
def test_a_foreign_name_for_this_machine_is_refused(
    client: TestClient, host: str, path: str
) -> None:
    response = client.get(path, headers={"Host": host})
    assert (response.status_code, response.json()["code"]) == (421, "host_not_allowed")


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/embed"), ("POST", "/unload"), ("GET", "/unload")]
)
def test_a_foreign_page_cannot_make_the_browser_ask(
    client: TestClient, engine: StubEngine, method: str, path: str
) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        engine.seen.clear()
        json = EMBED if path == "/embed" else None
        response = client.request(method, path, json=json, headers=headers)
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")
        assert engine.seen == []


def test_its_own_page_may_ask(client: TestClient) -> None:
    headers = {"Origin": "http://localhost:8421", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/embed", json=EMBED, headers=headers).status_code == 200


def test_other_origins_only_as_set(make_client: MakeClient, engine: StubEngine) -> None:
    known, foreign = "https://notebook.example", "https://evil.example"
    client = make_client(engine, cors_origins=(known,))
    asked = {"Access-Control-Request-Method": "POST", "Origin": known}
    preflight = client.options("/embed", headers=asked)
    assert preflight.headers["access-control-allow-origin"] == known
    assert client.post("/embed", json=EMBED, headers={"Origin": known}).status_code == 200
    refused = client.options("/embed", headers={**asked, "Origin": foreign})
    assert "access-control-allow-origin" not in refused.headers
    assert client.post("/embed", json=EMBED, headers={"Origin": foreign}).status_code == 403


def test_no_origin_is_told_yes_unless_set(client: TestClient) -> None:
    response = client.get("/health", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in response.headers


def test_a_preflight_works_without_the_token(make_client: MakeClient, engine: StubEngine) -> None:
    origin = "https://notebook.example"
    client = make_client(engine, cors_origins=(origin,), auth_token=TOKEN)
    headers = {"Access-Control-Request-Method": "POST", "Origin": origin}
    assert client.options("/embed", headers=headers).status_code == 200
    assert client.post("/embed", json=EMBED, headers={"Origin": origin}).status_code == 401
