"""``POST /v1/inspections`` on the wire; what the numbers mean is tested with the engine."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load
from starlette.testclient import TestClient

from pellucid.api.tensors import json_pieces, preferred_type, safetensors_pieces
from pellucid.inference.engine import InspectionQuery, ProjectionQuery, Tensor
from pellucid.models.backend import Knockout, ModelRef
from stub_engine import StubEngine

SAFETENSORS = {"Accept": "application/vnd.safetensors"}
RNG = np.random.default_rng(7)


def _metadata(content: bytes, path: Any) -> dict[str, Any]:
    path.write_bytes(content)
    with safe_open(path, "np") as file:
        inspection: dict[str, Any] = json.loads(file.metadata()["inspection"])
    return inspection


def test_safetensors_and_json_hold_the_same(client: TestClient, tmp_path: Any) -> None:
    request = {"text": "one two three four"}
    as_json = client.post("/v1/inspections", json=request).json()
    answer = client.post("/v1/inspections", json=request, headers=SAFETENSORS)
    assert answer.headers["content-type"] == "application/vnd.safetensors"
    assert int(answer.headers["content-length"]) == len(answer.content)
    tensors = load(answer.content)
    fields = _metadata(answer.content, tmp_path / "answer.safetensors")
    assert set(tensors) == set(as_json["tensors"])
    for name, values in tensors.items():
        described = as_json["tensors"][name]
        assert np.array_equal(values, np.array(as_json[name], dtype=described["dtype"]))
        assert list(values.shape) == described["shape"]
        assert len(described["axes"]) == values.ndim
    assert fields == {name: value for name, value in as_json.items() if name not in tensors}


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int64", "bool"])
def test_every_type_survives_both_forms(client: TestClient, engine: StubEngine, dtype: str) -> None:
    values = (RNG.random((2, 3, 5)) * 200).astype(dtype)
    engine.tensors = {
        "first": Tensor(values=values, axes=("a", "b", "c")),
        "odd": Tensor(values=np.ones(3, dtype=np.uint8), axes=("a",), scale=1 / 255, note="n"),
        "turned": Tensor(values=values.transpose(2, 0, 1), axes=("c", "a", "b")),
        "empty": Tensor(values=values[:0], axes=("a", "b", "c")),
    }
    as_json = client.post("/v1/inspections", json={"text": "a"}).json()
    tensors = load(client.post("/v1/inspections", json={"text": "a"}, headers=SAFETENSORS).content)
    for name, tensor in engine.tensors.items():
        assert np.array_equal(tensors[name], tensor.values)
        numbers = np.array(as_json[name], dtype=dtype).reshape(as_json["tensors"][name]["shape"])
        assert np.array_equal(numbers, tensor.values)
    assert as_json["tensors"]["odd"]["scale"] == 1 / 255
    assert as_json["tensors"]["odd"]["note"] == "n"
    assert "scale" not in as_json["tensors"]["first"]


def test_large_arrays_leave_in_pieces_and_unbroken(client: TestClient, engine: StubEngine) -> None:
    values = RNG.random((3, 4, 300, 400), dtype=np.float32)
    engine.tensors = {"attentions": Tensor(values=values, axes=("layer", "head", "query", "key"))}
    pieces = list(json_pieces({"a": 1}, {"attentions": values}))
    assert max(len(piece) for piece in pieces) < 4_000_000
    answer = client.post("/v1/inspections", json={"text": "a"})
    assert "content-length" not in answer.headers
    assert np.array_equal(np.array(answer.json()["attentions"], dtype=np.float32), values)
    answer = client.post("/v1/inspections", json={"text": "a"}, headers=SAFETENSORS)
    assert np.array_equal(load(answer.content)["attentions"], values)


def test_values_are_sent_from_where_they_are() -> None:
    values = RNG.random((4, 1000), dtype=np.float32)
    tensors = {"t": Tensor(values=values, axes=("a", "b"))}
    pieces, size = safetensors_pieces(tensors, metadata={})
    sent = list(pieces)
    assert sum(len(piece) for piece in sent) == size
    assert np.shares_memory(np.frombuffer(sent[1], dtype=np.float32), values)


def test_every_option_reaches_the_engine(client: TestClient, engine: StubEngine) -> None:
    request = {
        "model_id": "owner/name",
        "revision": "main",
        "messages": [{"role": "user", "content": "hello"}],
        "text_pair": "b",
        "target_text": "c",
        "include": ["hidden_states", "rollout"],
        "layers": [1, 0],
        "heads": [2],
        "dtype": "uint8",
        "projection": {"method": "umap", "dimensions": 3, "layer": "all"},
        "knockouts": [
            {"layers": [0], "key_positions": [3]},
            {"query_positions": [1], "attention": "cross_attentions"},
        ],
        "truncate": "end",
        "max_tokens": 9,
    }
    assert client.post("/v1/inspections", json=request, headers=SAFETENSORS).status_code == 200
    assert engine.seen[-1] == InspectionQuery(
        model=ModelRef(model_id="owner/name", revision="main"),
        messages=[{"role": "user", "content": "hello"}],
        text_pair="b",
        target_text="c",
        include=frozenset({"hidden_states", "rollout"}),
        layers=(1, 0),
        heads=(2,),
        dtype="uint8",
        projection=ProjectionQuery(method="umap", dimensions=3, layer="all"),
        knockouts=(
            Knockout(layers=(0,), key_positions=(3,)),
            Knockout(query_positions=(1,), attention="cross_attentions"),
        ),
        truncate="end",
        max_tokens=9,
        answer_format="safetensors",
    )


@pytest.mark.parametrize(
    ("request_body", "given"),
    [
        pytest.param({}, "none", id="none"),
        pytest.param({"text": "a", "input_ids": [1]}, "text and input_ids", id="two"),
    ],
)
def test_exactly_one_input_is_needed(
    client: TestClient, request_body: dict[str, Any], given: str
) -> None:
    response = client.post("/v1/inspections", json=request_body)
    assert (response.status_code, response.json()["code"]) == (422, "inputs_conflict")
    assert response.json()["given"] == given


def test_keeping_inspections_is_refused_clearly(client: TestClient) -> None:
    response = client.post("/v1/inspections", json={"text": "a", "store": True})
    assert (response.status_code, response.json()["code"]) == (422, "store_unavailable")
    assert client.post("/v1/inspections", json={"text": "a", "store": False}).status_code == 200


@pytest.mark.parametrize("accept", [{}, SAFETENSORS], ids=["json", "safetensors"])
def test_values_that_are_not_numbers_are_never_sent(
    client: TestClient, engine: StubEngine, accept: dict[str, str]
) -> None:
    engine.nan = True
    response = client.post("/v1/inspections", json={"text": "a b"}, headers=accept)
    assert (response.status_code, response.json()["code"]) == (422, "non_finite_values")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("application/json", "application/json"),
        ("application/vnd.safetensors", "application/vnd.safetensors"),
        ("Application/VND.Safetensors", "application/vnd.safetensors"),
        ("application/vnd.safetensors, application/json;q=0.5", "application/vnd.safetensors"),
        ("application/vnd.safetensors;q=0.5, application/json", "application/json"),
        ("application/vnd.safetensors, */*;q=0.1", "application/vnd.safetensors"),
        ("application/json;q=0, */*", "application/vnd.safetensors"),
        ("text/html, */*;q=0.8", "application/json"),
    ],
)
def test_the_form_that_accept_prefers(accept: str | None, expected: str) -> None:
    assert preferred_type(accept) == expected


@pytest.mark.parametrize("accept", ["text/html", "image/*", "application/json;q=0", "nonsense"])
def test_a_form_that_is_not_offered_is_a_406(
    client: TestClient, engine: StubEngine, accept: str
) -> None:
    engine.seen.clear()
    response = client.post("/v1/inspections", json={"text": "a"}, headers={"Accept": accept})
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")
    assert engine.seen == []
