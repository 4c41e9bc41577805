"""``/v1/models`` on the wire."""

from __future__ import annotations

import httpx
from starlette.testclient import TestClient

from pellucid.errors import ModelInUse, ModelNotLoaded
from pellucid.models.backend import ModelRef
from stub_engine import STUB_INFO, StubEngine


def test_the_list_has_openai_fields_and_ours(client: TestClient) -> None:
    body = client.get("/v1/models").json()
    assert body["object"] == "list"
    (model,) = body["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("stub/model", "model", "stub")
    assert (model["state"], model["is_default"]) == ("loaded", True)
    assert model["details"]["num_heads"] == STUB_INFO.num_heads
    assert model["details"]["attention"]["available"] is True


def test_one_model_by_its_name_with_slashes(client: TestClient) -> None:
    assert client.get("/v1/models/stub/model").json()["id"] == "stub/model"
    missing = client.get("/v1/models/other/model")
    assert (missing.status_code, missing.json()["code"]) == (404, "model_not_loaded")


def test_load_unload_and_estimate_name_the_model(client: TestClient, engine: StubEngine) -> None:
    request = {"model_id": "stub/model", "revision": "main"}
    ref = ModelRef(model_id="stub/model", revision="main")
    assert client.post("/v1/models/load", json=request).json()["state"] == "loaded"
    assert client.post("/v1/models/estimate", json=request).json()["weights_bytes"] == 10
    assert client.post("/v1/models/unload", json=request).json() == {"freed_bytes": 4000}
    assert engine.seen[-3:] == [ref, ref, ref]
    assert client.post("/v1/models/unload", json={}).status_code == 200
    assert engine.seen[-1] is None


def test_unloading_what_is_not_there_or_at_work(client: TestClient, engine: StubEngine) -> None:
    engine.error = ModelNotLoaded(model_id="m")
    response = client.post("/v1/models/unload", json={"model_id": "m"})
    assert (response.status_code, response.json()["code"]) == (404, "model_not_loaded")
    engine.error = ModelInUse(model_id="m", requests=2)
    response = client.post("/v1/models/unload", json={"model_id": "m"})
    assert (response.status_code, response.json()["requests"]) == (409, 2)


def test_a_name_that_is_none_is_an_invalid_request(client: TestClient) -> None:
    problem = client.get("/v1/models/").json()
    assert (problem["status"], problem["field"]) == (422, "model_id")


def test_what_is_no_name_never_appears_among_the_models(http: httpx.Client) -> None:
    for model_id, revision in (("../x", None), ("a b", None), ("a/b", "../x")):
        request = {"model_id": model_id, "revision": revision}
        assert http.post("/v1/models/load", json=request).json()["code"] == "invalid_model_id"
    listed = {model["id"] for model in http.get("/v1/models").json()["data"]}
    assert not listed & {"../x", "a b", "a/b"}


def test_the_default_model_is_one_by_whatever_name_it_came_back(http: httpx.Client) -> None:
    http.post("/embed", json={"texts": ["a"]})
    http.post("/unload")
    http.post("/v1/embeddings", json={"input": "a", "model": "all-MiniLM-L6-v2"})
    assert http.get("/health").json()["model_loaded"] is True
    loaded = [model for model in http.get("/v1/models").json()["data"] if model["is_default"]]
    assert [model["state"] for model in loaded] == ["loaded"]
    ids = [model["id"] for model in http.get("/v1/models").json()["data"]]
    assert ids.count("sentence-transformers/all-MiniLM-L6-v2") == 1
