"""The API over the real model: OpenAI's own client, bad input, and many callers at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from safetensors.numpy import load

TEXT = "The cat sat on the mat because it was tired."
SAFETENSORS = {"Accept": "application/vnd.safetensors"}


# --------------------------------------------------------------------------- OpenAI's own client


@pytest.fixture
def openai_client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none-needed", max_retries=0)


def test_the_official_client_embeds(openai_client: openai.OpenAI, http: httpx.Client) -> None:
    texts = [TEXT, "Another text."]
    as_text = openai_client.embeddings.create(model=_default(http), input=texts)  # base64 inside
    as_json = openai_client.embeddings.create(
        model=_default(http), input=texts, encoding_format="float"
    )
    own = http.post("/embed", json={"texts": texts}).json()["vectors"]
    for index in range(2):
        np.testing.assert_allclose(as_text.data[index].embedding, own[index], atol=1e-6)
        assert as_json.data[index].embedding == pytest.approx(own[index], abs=1e-6)
        assert as_text.data[index].index == index
    assert as_text.usage.prompt_tokens == as_text.usage.total_tokens == 13 + 5
    assert as_text.model == _default(http)


def test_the_official_client_sends_ids_and_our_additions(openai_client: openai.OpenAI) -> None:
    ids = [101, 4937, 102]
    created = openai_client.embeddings.create(
        model="sentence-transformers/all-MiniLM-L6-v2",
        input=[ids, ids],
        user="someone",
        extra_body={"truncate": "error", "priority": "bulk"},
    )
    # Not to the last bit: how rows are shared among threads may differ within one batch.
    assert created.data[0].embedding == pytest.approx(created.data[1].embedding, abs=1e-5)
    assert created.data[0].truncated is False  # type: ignore[attr-defined]


def test_the_official_client_reads_our_errors(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as raised:
        openai_client.embeddings.create(
            model="sentence-transformers/all-MiniLM-L6-v2", input="a", dimensions=100
        )
    assert raised.value.code == "dimensions_unsupported"
    assert "384" in str(raised.value)
    with pytest.raises(openai.NotFoundError) as missing:
        openai_client.embeddings.create(model="no-such/model", input="a")
    assert missing.value.code == "model_offline"


def test_the_official_client_lists_models(openai_client: openai.OpenAI, http: httpx.Client) -> None:
    assert _default(http) in [model.id for model in openai_client.models.list()]
    assert openai_client.models.retrieve(_default(http)).object == "model"


def _default(http: httpx.Client) -> str:
    return str(http.get("/health").json()["model"])


# ------------------------------------------------------------------------------------ inspections


def test_safetensors_and_json_hold_the_same_values(http: httpx.Client) -> None:
    request = {"text": TEXT, "include": ["attentions", "hidden_states", "statistics", "rollout"]}
    answer = http.post("/v1/inspections", json=request).json()
    tensors = load(http.post("/v1/inspections", json=request, headers=SAFETENSORS).content)
    assert set(tensors) == set(answer["tensors"]) >= {"attentions", "hidden_states"}
    length = len(answer["tokens"])
    assert tensors["attentions"].shape == (6, 12, length, length)
    assert tensors["hidden_states"].shape == (7, length, 384)
    for name, values in tensors.items():
        # The same pass twice: equal but for the order of sums in a threaded product.
        np.testing.assert_allclose(values, np.array(answer[name]), atol=1e-5)


def test_uint8_is_within_half_a_step_everywhere(http: httpx.Client) -> None:
    request = {"text": TEXT, "dtype": "uint8"}
    exact = http.post("/v1/inspections", json={"text": TEXT}, headers=SAFETENSORS)
    coarse = http.post("/v1/inspections", json=request, headers=SAFETENSORS)
    weights, stored = load(exact.content)["attentions"], load(coarse.content)["attentions"]
    assert stored.dtype == np.uint8
    assert np.abs(stored.astype(np.float64) / 255 - weights).max() <= 1 / 510 + 1e-6
    described = http.post("/v1/inspections", json=request).json()
    assert described["tensors"]["attentions"]["scale"] == pytest.approx(1 / 255)
    assert described["attentions"] == stored.tolist()


def test_only_the_layers_and_heads_asked_for_come(http: httpx.Client) -> None:
    request = {"text": TEXT, "include": ["attentions"], "layers": [1, 4], "heads": [0, 11]}
    part = http.post("/v1/inspections", json=request).json()
    whole = http.post("/v1/inspections", json={"text": TEXT}).json()
    assert (part["layers"], part["heads"]) == ([1, 4], [0, 11])
    expected = np.array(whole["attentions"])[[1, 4]][:, [0, 11]]
    np.testing.assert_allclose(np.array(part["attentions"]), expected, atol=1e-5)


def test_a_knock_out_cuts_the_edge_and_tells_the_change(http: httpx.Client) -> None:
    cut = {"key_positions": [2], "query_positions": [3, 4]}
    answer = http.post("/v1/inspections", json={"text": TEXT, "knockouts": [cut]}).json()
    attention = np.array(answer["attentions"])
    assert np.array_equal(attention[:, :, [3, 4], 2], np.zeros((6, 12, 2)))
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)
    assert answer["change"]


# -------------------------------------------------------------------------------------- bad input

INSPECT = "/v1/inspections"


@pytest.mark.parametrize(
    ("path", "body", "code", "facts"),
    [
        pytest.param(INSPECT, {"text": ""}, "empty_text", {}, id="empty"),
        pytest.param(INSPECT, {"text": " \n\t "}, "empty_text", {}, id="white-space"),
        pytest.param(
            INSPECT,
            {"text": "a" * 1_000_000},
            "text_too_large",
            {"characters": 1_000_000, "max_characters": 500_000},
            id="a-megabyte",
        ),
        pytest.param(
            INSPECT, {"text": "word " * 600}, "too_many_tokens", {"tokens": 602}, id="too-long"
        ),
        pytest.param(INSPECT, {"text": "a\x00b"}, "invalid_text", {"position": 1}, id="nul"),
        pytest.param(
            INSPECT,
            {"text": "a", "layers": [-1]},
            "layer_out_of_range",
            {"layer": -1},
            id="layer-1",
        ),
        pytest.param(
            INSPECT,
            {"text": "a", "layers": [6]},
            "layer_out_of_range",
            {"layer": 6, "last_layer": 5},
            id="layer-6",
        ),
        pytest.param(
            INSPECT,
            {"text": "a", "layers": [2**62]},
            "layer_out_of_range",
            {"last_layer": 5},
            id="layer-huge",
        ),
        pytest.param(
            INSPECT, {"text": "a", "heads": [12]}, "head_out_of_range", {"last_head": 11}, id="head"
        ),
        pytest.param(
            INSPECT,
            {"input_ids": [101, 99_999_999]},
            "invalid_input_ids",
            {"position": 1},
            id="ids",
        ),
        pytest.param(INSPECT, {"input_ids": [-1]}, "invalid_input_ids", {"position": 0}, id="id-1"),
        pytest.param(
            INSPECT, {"text": "a", "target_text": "b"}, "target_unsupported", {}, id="target"
        ),
        pytest.param(
            INSPECT,
            {"messages": [{"role": "user", "content": "a"}]},
            "chat_template_missing",
            {},
            id="messages",
        ),
        pytest.param(
            INSPECT,
            {"text": "a", "include": ["logit_lens"]},
            "logit_lens_unavailable",
            {},
            id="logit-lens",
        ),
        pytest.param(
            INSPECT,
            {"text": "a", "knockouts": [{"query_positions": [9]}]},
            "position_out_of_range",
            {"last_position": 2},
            id="position",
        ),
        pytest.param(
            INSPECT,
            {"text": "a", "knockouts": [{}]},
            "knockout_invalid",
            {"index": 0},
            id="all-cut",
        ),
        pytest.param(
            INSPECT, {"text": "a", "model_id": "../../etc"}, "invalid_model_id", {}, id="climbing"
        ),
        pytest.param(
            INSPECT, {"text": "a", "model_id": "/etc/passwd"}, "invalid_model_id", {}, id="a-path"
        ),
        pytest.param(
            INSPECT, {"text": "a", "model_id": "a/..%2f.."}, "invalid_model_id", {}, id="encoded"
        ),
        pytest.param(INSPECT, {"text": "a", "model_id": ""}, "invalid_model_id", {}, id="no-name"),
        pytest.param(
            INSPECT, {"text": "a", "model_id": "x" * 5_000}, "invalid_model_id", {}, id="long-name"
        ),
        pytest.param(
            INSPECT, {"text": "a", "model_id": "no-such/model"}, "model_offline", {}, id="unknown"
        ),
        pytest.param("/v1/embeddings", {"input": ["a", ""]}, "empty_text", {}, id="embed-empty"),
        pytest.param(
            "/v1/embeddings",
            {"input": ["a"] * 2_049},
            "too_many_inputs",
            {"inputs": 2_049, "max_inputs": 2_048},
            id="too-many",
        ),
        pytest.param(
            "/v1/embeddings",
            {"input": "word " * 300, "truncate": "error"},
            "too_many_tokens",
            {"max_tokens": 256},
            id="embed-too-long",
        ),
        pytest.param(
            "/v1/embeddings",
            {"input": "a", "prompt_name": "nope"},
            "prompt_unknown",
            {"prompt": "nope"},
            id="prompt",
        ),
        pytest.param(
            "/v1/models/unload", {"model_id": "a/b"}, "model_not_loaded", {}, id="not-loaded"
        ),
    ],
)
def test_bad_input_is_a_4xx_with_its_figures(
    http: httpx.Client, path: str, body: dict[str, Any], code: str, facts: dict[str, Any]
) -> None:
    response = http.post(path, json=body)
    problem = response.json()
    assert 400 <= response.status_code < 500, problem
    assert problem["code"] == code
    assert {name: problem[name] for name in facts} == facts
    assert "<" not in problem["detail"], "a fact is missing from the sentence"
    assert len(response.content) < 25_000


@pytest.mark.parametrize("path", [INSPECT, "/process", "/embed", "/v1/embeddings"])
def test_half_a_surrogate_pair_is_a_4xx(http: httpx.Client, path: str) -> None:
    field = {"/embed": "texts", "/v1/embeddings": "input"}.get(path, "text")
    text: Any = ["a\ud83d"] if field == "texts" else "a\ud83d"
    headers = {"Content-Type": "application/json"}
    response = http.post(path, content=json.dumps({field: text}), headers=headers)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_text")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("👨‍👩‍👧‍👦 and 🏳️‍🌈", id="emoji-with-joiners"),
        pytest.param("القطة جلست على السجادة", id="arabic"),
        pytest.param("שלום \u202eעולם\u202c abc", id="right-to-left-override"),
        pytest.param("e\u0301 \u0130 ﬁ Å ẞ", id="combining"),
        pytest.param("\ufeffbom \u200bzero\u00adsoft", id="invisible"),
        pytest.param("𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐐷", id="beyond-the-bmp"),
        pytest.param("a" * 10_000, id="one-long-word"),
    ],
)
def test_unusual_text_is_read_and_its_offsets_are_in_the_text(
    http: httpx.Client, text: str
) -> None:
    response = http.post(INSPECT, json={"text": text, "truncate": "end"})
    assert response.status_code == 200, response.text
    for token in response.json()["tokens"]:
        assert 0 <= token["start"] <= token["end"] <= len(text)
        assert token["special"] or token["end"] > token["start"]
    assert http.post("/process", json={"text": text}).status_code == 200
    assert http.post("/embed", json={"texts": [text]}).status_code == 200


# ---------------------------------------------------------------------------------- many at once


def test_many_callers_get_their_own_answers(http: httpx.Client) -> None:
    texts = [f"text number {index} " + "and more " * (index % 7) for index in range(24)]
    alone = [http.post("/embed", json={"texts": [text]}).json()["vectors"][0] for text in texts]

    def ask(index: int) -> tuple[list[float], int]:
        vectors = http.post("/embed", json={"texts": [texts[index]]}).json()["vectors"]
        inspection = http.post(INSPECT, json={"text": texts[index], "include": ["statistics"]})
        return vectors[0], len(inspection.json()["tokens"])

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(len(texts))))
    for index, (vector, num_tokens) in enumerate(answers):
        np.testing.assert_allclose(vector, alone[index], atol=1e-5)
        assert num_tokens >= 5 + 2 * (index % 7)


def test_a_bad_request_among_good_ones_harms_only_itself(http: httpx.Client) -> None:
    bodies = [{"texts": [""]} if index % 3 == 0 else {"texts": [TEXT]} for index in range(18)]
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda body: http.post("/embed", json=body), bodies))
    assert [answer.status_code for answer in answers] == [422, 200, 200] * 6
