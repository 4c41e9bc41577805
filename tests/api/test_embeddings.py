"""``POST /v1/embeddings`` on the wire; what the vectors mean is tested with the engine."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from starlette.testclient import TestClient

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
    assert timing.startswith("queue;dur=1.0, forward;dur=2.0, total;dur=")
