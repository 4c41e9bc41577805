"""``POST /v1/embeddings`` on the wire; what the vectors mean is tested with the engine."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import safetensors.numpy
from starlette.testclient import TestClient

from pellucid.errors import EmptyText
from pellucid.inference.engine import EmbeddingQuery
from pellucid.models.backend import ModelRef
from stub_engine import StubEngine


def _query(engine: StubEngine) -> EmbeddingQuery:
    query = engine.seen[-1]
    assert isinstance(query, EmbeddingQuery)
    return query


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        pytest.param("a", ["a"], id="text"),
        pytest.param(["a", "b"], ["a", "b"], id="texts"),
        pytest.param([101, 5], [[101, 5]], id="ids"),
        pytest.param([[101, 5], [7]], [[101, 5], [7]], id="lists-of-ids"),
    ],
)
def test_each_form_of_input(
    client: TestClient, engine: StubEngine, given: object, inputs: list[object]
) -> None:
    body = client.post("/v1/embeddings", json={"input": given}).json()
    assert list(_query(engine).inputs) == inputs
    assert [item["index"] for item in body["data"]] == list(range(len(inputs)))
    assert body["usage"] == {"prompt_tokens": 3 * len(inputs), "total_tokens": 3 * len(inputs)}
    assert body["model"] == "stub/model"
    assert [item["truncated"] for item in body["data"]] == [False] * len(inputs)


def test_base64_holds_the_same_numbers_to_the_last_bit(client: TestClient) -> None:
    request = {"input": ["a", "b", "c"]}
    as_json = client.post("/v1/embeddings", json=request).json()
    as_text = client.post("/v1/embeddings", json={**request, "encoding_format": "base64"}).json()
    for numbers, text in zip(as_json["data"], as_text["data"], strict=True):
        decoded = np.frombuffer(base64.b64decode(text["embedding"]), dtype="<f4")
        # Shortest decimals of float32: read back as float32 they are the same numbers.
        assert np.array_equal(decoded, np.array(numbers["embedding"], dtype=np.float32))
        assert len(repr(numbers["embedding"][0])) < 14


def test_every_option_reaches_the_engine(client: TestClient, engine: StubEngine) -> None:
    request = {
        "input": "a",
        "model": "owner/name",
        "revision": "main",
        "dimensions": 4,
        "user": "someone",
        "input_type": "query",
        "prompt_name": "search",
        "truncate": "start",
        "priority": "bulk",
        "normalize": False,
        "on_error": "report",
    }
    assert client.post("/v1/embeddings", json=request).status_code == 200
    assert _query(engine) == EmbeddingQuery(
        inputs=["a"],
        model=ModelRef(model_id="owner/name", revision="main"),
        dimensions=4,
        input_type="query",
        prompt_name="search",
        truncate="start",
        priority="bulk",
        normalize=False,
        on_error="report",
        input_name="input",
    )


def test_vectors_that_are_not_numbers_are_never_sent(
    client: TestClient, engine: StubEngine
) -> None:
    engine.nan = True
    for path, body in (("/v1/embeddings", {"input": "a"}), ("/embed", {"texts": ["a"]})):
        response = client.post(path, json=body)
        assert (response.status_code, response.json()["code"]) == (422, "non_finite_values")
        assert "null" not in response.text.replace('"param":null', "")


def test_the_stages_are_in_the_headers(client: TestClient) -> None:
    response = client.post("/v1/embeddings", json={"input": "a"})
    timing = response.headers["server-timing"]
    assert timing.startswith('queue;dur=1.0, forward;dur=2.0, lane;desc="interactive", total;dur=')


def test_the_lane_is_left_to_the_engine_unless_it_is_named(
    client: TestClient, engine: StubEngine
) -> None:
    client.post("/v1/embeddings", json={"input": "a"})
    assert _query(engine).priority is None
    client.post("/embed", json={"texts": ["a"]})
    assert _query(engine).priority is None


def test_pieces_and_cuts_are_told_per_input(client: TestClient, engine: StubEngine) -> None:
    engine.answer = {"num_chunks": (1, 3), "truncated": (True, False), "lane": "bulk"}
    response = client.post("/v1/embeddings", json={"input": ["a", "b"], "truncate": "chunk"})
    assert _query(engine).truncate == "chunk"
    assert [(item["truncated"], item["chunks"]) for item in response.json()["data"]] == [
        (True, 1),
        (False, 3),
    ]
    assert 'lane;desc="bulk"' in response.headers["server-timing"]


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_an_input_that_failed_is_null_and_reported(
    client: TestClient, engine: StubEngine, encoding: str
) -> None:
    engine.answer = {"errors": {1: EmptyText(field="input[1]")}}
    request = {"input": ["a", " ", "c"], "on_error": "report", "encoding_format": encoding}
    body = client.post("/v1/embeddings", json=request).json()
    assert [item["embedding"] is None for item in body["data"]] == [False, True, False]
    assert body["errors"] == [
        {"index": 1, "code": "empty_text", "message": EmptyText(field="input[1]").detail}
    ]


def test_errors_stand_in_the_answer_only_where_they_are_asked_for(client: TestClient) -> None:
    assert "errors" not in client.post("/v1/embeddings", json={"input": "a"}).json()
    reported = client.post("/v1/embeddings", json={"input": "a", "on_error": "report"}).json()
    assert reported["errors"] == []


def test_vectors_as_bare_bytes(client: TestClient) -> None:
    request = {"input": ["a", "b", "c"]}
    expected = client.post("/v1/embeddings", json=request).json()
    accept = {"Accept": "application/octet-stream"}
    response = client.post("/v1/embeddings", json=request, headers=accept)
    assert response.headers["content-type"] == "application/octet-stream"
    rows, columns = (int(size) for size in response.headers["embedding-shape"].split(","))
    vectors = np.frombuffer(response.content, dtype="<f4").reshape(rows, columns)
    for vector, item in zip(vectors, expected["data"], strict=True):
        assert np.array_equal(vector, np.array(item["embedding"], dtype=np.float32))


def test_vectors_as_a_safetensors_file(client: TestClient, engine: StubEngine) -> None:
    engine.answer = {"errors": {0: EmptyText(field="input[0]")}}
    request = {"input": ["a", "b"], "on_error": "report"}
    expected = client.post("/v1/embeddings", json=request).json()
    accept = {"Accept": "application/vnd.safetensors"}
    response = client.post("/v1/embeddings", json=request, headers=accept)
    vectors = safetensors.numpy.load(response.content)["embeddings"]
    assert np.array_equal(vectors[1], np.array(expected["data"][1]["embedding"], dtype="f4"))
    length = int.from_bytes(response.content[:8], "little")
    header = json.loads(response.content[8 : 8 + length])
    answer = json.loads(header["__metadata__"]["answer"])
    assert answer["usage"] == expected["usage"]
    assert answer["errors"] == expected["errors"]
    assert (answer["truncated"], answer["chunks"]) == ([False, False], [1, 1])


def test_bare_bytes_cannot_report_errors(client: TestClient, engine: StubEngine) -> None:
    request = {"input": "a", "on_error": "report"}
    accept = {"Accept": "application/octet-stream"}
    response = client.post("/v1/embeddings", json=request, headers=accept)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert not engine.seen[1:]  # the first is the load at start


def test_a_form_that_nobody_offers_is_refused(client: TestClient) -> None:
    accept = {"Accept": "text/html"}
    response = client.post("/v1/embeddings", json={"input": "a"}, headers=accept)
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")
