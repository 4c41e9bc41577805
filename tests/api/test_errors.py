"""Every error has one status and one form."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from conftest import MakeClient, plain_settings
from fake_models import fake_engine
from pellucid.api import problems
from pellucid.api.error_handlers import ANY_PROBLEM, STATUS_OF, problem_document
from pellucid.errors import (
    InternalError,
    LayerOutOfRange,
    ModelNotFound,
    Overloaded,
    PellucidError,
    TooManyTokens,
)
from stub_engine import StubEngine

INSPECTION = {"text": "a b c"}
STANDARD = {"type", "title", "status", "detail", "code", "request_id", "error"}


def test_every_code_has_exactly_one_line_in_the_table() -> None:
    codes = [kind.code for kind in PellucidError.tree()]
    inherited = {InternalError.code}  # the root and its first child are one error
    assert set(codes) == set(STATUS_OF)
    assert {code for code in codes if codes.count(code) > 1} <= inherited


def test_only_what_is_our_fault_or_passes_is_a_5xx() -> None:
    server_errors = {code for code, status in STATUS_OF.items() if status >= 500}
    wrong_requests = {kind.code for kind in problems.InvalidInput.tree()}
    assert not (server_errors & wrong_requests) - {"invalid_settings"}


def test_documented_statuses_are_those_of_the_table() -> None:
    assert {int(status) for status in ANY_PROBLEM} <= set(STATUS_OF.values())
    for status, response in ANY_PROBLEM.items():
        for code in response["description"].removeprefix("Codes: ").rstrip(".").split(", "):
            assert STATUS_OF[code.strip("`")] == status


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(TooManyTokens(field="text", tokens=9, model_id="m", max_tokens=4), id="4xx"),
        pytest.param(LayerOutOfRange(layer=7, model_id="m", last_layer=1), id="layer"),
        pytest.param(ModelNotFound(model_id="m", revision="main"), id="404"),
        pytest.param(InternalError(), id="500"),
    ],
)
def test_an_error_of_the_engine_becomes_a_problem_document(
    client: TestClient, engine: StubEngine, error: PellucidError
) -> None:
    engine.error = error
    response = client.post("/v1/inspections", json=INSPECTION)
    body = response.json()
    assert response.status_code == STATUS_OF[error.code]
    assert response.headers["content-type"] == "application/problem+json"
    assert set(body) >= STANDARD
    assert body["detail"] == error.detail
    assert body["error"]["message"] == error.detail
    assert body["code"] == body["error"]["code"] == error.code
    assert body["request_id"] == response.headers["x-request-id"]
    assert {name: body[name] for name in error.facts} == error.facts


def test_a_fact_never_hides_a_standard_member() -> None:
    error = InternalError(status=200, detail="fine", code="ok", error=None)
    document = problem_document(error, request_id="r")
    assert (document["status"], document["code"]) == (500, "internal_error")
    assert document["detail"] == error.detail
    assert document["error"]["code"] == "internal_error"


def test_the_unexpected_is_a_500_that_tells_nothing_of_the_inside(
    client: TestClient, engine: StubEngine
) -> None:
    engine.error = RuntimeError("secret path /srv/keys")
    response = client.post("/v1/inspections", json=INSPECTION, headers={"X-Request-ID": "abc-1"})
    assert response.status_code == 500
    assert response.json()["code"] == "internal_error"
    assert response.json()["request_id"] == "abc-1"
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    engine.error = None
    assert client.post("/v1/inspections", json=INSPECTION).status_code == 200


def test_a_refusal_for_load_says_when_to_ask_again(client: TestClient, engine: StubEngine) -> None:
    engine.error = Overloaded(waiting=256, model_id="m", max_waiting=256, retry_after_s=2.3)
    response = client.post("/embed", json={"texts": ["a"]})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"


def test_an_unknown_address_and_a_wrong_method_are_problems_too(client: TestClient) -> None:
    missing = client.get("/v1/nothing")
    assert (missing.status_code, missing.json()["code"]) == (404, "route_not_found")
    wrong = client.get("/process")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert client.put("/health").headers["allow"] == "GET, HEAD"
    assert client.put("/unload").headers["allow"] == "GET, POST"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        pytest.param("/v1/inspections", {"text": 1}, "text", id="number-for-text"),
        pytest.param("/v1/inspections", {"text": "a", "layers": ["0"]}, "layers[0]", id="layers"),
        pytest.param("/v1/inspections", {"text": "a", "layers": []}, "layers", id="no-layers"),
        pytest.param("/v1/inspections", {"text": "a", "layers": [1, 1]}, "layers", id="twice"),
        pytest.param("/v1/inspections", {"text": "a", "heads": 1.5}, "heads", id="heads"),
        pytest.param("/v1/inspections", {"text": "a", "include": ["x"]}, "include[0]", id="enum"),
        pytest.param("/v1/inspections", {"text": "a", "dtype": "int4"}, "dtype", id="dtype"),
        pytest.param("/v1/inspections", {"text": "a", "store": "yes"}, "store", id="string-bool"),
        pytest.param("/v1/inspections", {"text": "a", "max_tokens": 0}, "max_tokens", id="zero"),
        pytest.param("/v1/inspections", {"text": "a", "truncate": "start"}, "truncate", id="side"),
        pytest.param(
            "/v1/inspections",
            {"text": "a", "projection": {"method": "tsne"}},
            "projection.method",
            id="nested",
        ),
        pytest.param(
            "/v1/inspections",
            {"text": "a", "knockouts": [{"layers": [0]}, {"heads": "all"}]},
            "knockouts[1].heads",
            id="nested-list",
        ),
        pytest.param(
            "/v1/inspections", {"messages": [{"role": "user"}]}, "messages[0].content", id="missing"
        ),
        pytest.param("/v1/inspections", {"txet": "a"}, "txet", id="misspelt"),
        pytest.param(
            "/v1/inspections", {"text": "a", "revision": "main"}, "revision", id="of-what"
        ),
        pytest.param("/v1/embeddings", {"input": {}}, "input", id="object-for-input"),
        pytest.param("/v1/embeddings", {"input": []}, "input", id="no-input"),
        pytest.param("/v1/embeddings", {"input": ["a", 1]}, "input[1]", id="mixed-input"),
        pytest.param("/v1/embeddings", {"input": [[]]}, "input[0]", id="no-ids"),
        pytest.param("/v1/embeddings", {"input": "a", "dimensions": -1}, "dimensions", id="dim"),
        pytest.param("/v1/embeddings", {"input": "a", "extra": 1}, "extra", id="extra"),
        pytest.param("/v1/models/estimate", {}, "model_id", id="no-model"),
        pytest.param("/process", {"text": None}, "text", id="null-text"),
        pytest.param("/process", {"text": "a", "do_pca": 1}, "do_pca", id="number-bool"),
        pytest.param("/embed", {"texts": "a"}, "texts", id="string-for-list"),
        pytest.param("/embed", {"texts": []}, "texts", id="no-texts"),
        pytest.param("/embed", [], "body", id="list-for-object"),
    ],
)
def test_a_wrong_type_names_its_field(
    client: TestClient, engine: StubEngine, path: str, body: Any, field: str
) -> None:
    response = client.post(path, json=body)
    problem = response.json()
    assert response.status_code == 422
    assert problem["code"] == "invalid_request"
    assert field in [entry["field"] for entry in problem["problems"]]
    assert field in problem["detail"]
    assert [query for query in engine.seen if query is not None] == []  # no model was asked


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        pytest.param(5, {"input": "input should be a valid string or a valid list"}, id="number"),
        pytest.param([], {"input": "it has 0 items, at least 1 needed"}, id="none"),
        pytest.param([[1, "a"]], {"input[0][1]": "input should be a valid integer"}, id="ids"),
    ],
)
def test_of_several_forms_only_what_was_meant_is_told(
    client: TestClient, given: Any, problems: dict[str, str]
) -> None:
    problem = client.post("/v1/embeddings", json={"input": given}).json()
    assert {entry["field"]: entry["problem"] for entry in problem["problems"]} == problems


@pytest.mark.parametrize(
    ("given", "field"), [("", "input"), (["a", ""], "input[1]"), ([["a"]], "input[0][0]")]
)
def test_an_embedding_error_names_the_field_of_the_request(
    make_client: MakeClient, given: Any, field: str
) -> None:
    client = make_client(fake_engine(plain_settings()))
    problem = client.post("/v1/embeddings", json={"input": given}).json()
    assert (problem["field"], problem["error"]["param"]) == (field, field)
    assert problem["detail"].startswith(field)


@pytest.mark.parametrize(("given", "field"), [([-1], "input"), ([[1], [-1]], "input[1]")])
def test_an_id_that_is_none_names_the_field_of_the_request(
    make_client: MakeClient, given: Any, field: str
) -> None:
    client = make_client(fake_engine(plain_settings()))
    problem = client.post("/v1/embeddings", json={"input": given}).json()
    assert (problem["code"], problem["field"]) == ("invalid_input_ids", field)


def test_a_missing_body_is_a_problem(client: TestClient) -> None:
    response = client.post("/process")
    assert (response.status_code, response.json()["field"]) == (422, "body")
    assert "it is empty" in response.json()["detail"]
    a_list = client.post("/process", json=[]).json()
    assert a_list["problems"] == [{"field": "body", "problem": "input should be a valid object"}]


def test_root_contracts_ignore_fields_that_they_do_not_know(client: TestClient) -> None:
    assert client.post("/embed", json={"texts": ["a"], "batch": 3}).status_code == 200
    assert client.post("/process", json={"text": "a", "x": 3}).status_code == 200
