"""Contract A: ``POST /process``, against the real application and model."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from conftest import MakeClient, plain_settings
from fake_models import fake_engine

TEXT = "The cat sat on the mat because it was tired."


def _process(http: httpx.Client, **request: Any) -> dict[str, Any]:
    response = http.post("/process", json=request)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_the_answer_has_every_field_in_its_shape(http: httpx.Client) -> None:
    answer = _process(http, text=TEXT)
    tokens = answer["tokens"]
    assert (tokens[0], tokens[1], tokens[-1]) == ("[CLS]", "the", "[SEP]")
    assert np.array(answer["embeddings"]).shape == (len(tokens), 384)
    attention = np.array(answer["attention"])
    assert attention.shape == (6, 12, len(tokens), len(tokens))
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)
    assert (answer["pca_2d"], answer["umap_2d"]) == (None, None)
    assert answer["model_id"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert answer["revision"] == "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
    assert answer["truncated"] is False


def test_the_last_hidden_state_is_what_embeddings_are_made_of(http: httpx.Client) -> None:
    states = np.array(_process(http, text=TEXT)["embeddings"])
    mean = states.mean(axis=0)
    embedded = http.post("/embed", json={"texts": [TEXT]}).json()["vectors"][0]
    # Embeddings come from another runtime, in bfloat16 where the CPU has it.
    assert mean / np.linalg.norm(mean) @ np.array(embedded) > 0.999


def test_projections_come_when_asked_for_and_are_the_same_again(http: httpx.Client) -> None:
    first = _process(http, text=TEXT, model_name=None, do_pca=True, do_umap=True)
    again = _process(http, text=TEXT, do_pca=True, do_umap=True)
    for name in ("pca_2d", "umap_2d"):
        points = np.array(first[name])
        assert points.shape == (len(first["tokens"]), 2)
        assert np.isfinite(points).all()
        assert first[name] == again[name]
    assert np.array(first["pca_2d"]).std(axis=0).min() > 0
    alone = _process(http, text=TEXT, do_umap=True)
    assert alone["umap_2d"] == first["umap_2d"]
    assert alone["pca_2d"] is None


def test_few_tokens_still_have_two_columns_of_pca(http: httpx.Client) -> None:
    answer = _process(http, text="cat", do_pca=True)  # [CLS] cat [SEP]: the fewest here
    assert np.array(answer["pca_2d"]).shape == (3, 2)


@pytest.mark.parametrize("text", ["word", "two words"], ids=["one-token", "two-tokens"])
def test_one_or_two_tokens_are_padded_with_zeros(make_client: MakeClient, text: str) -> None:
    client: TestClient = make_client(fake_engine(plain_settings()))
    request = {"text": text, "model_name": "fake/decoder", "do_pca": True}  # no special tokens
    answer = client.post("/process", json=request).json()
    points = np.array(answer["pca_2d"])
    assert points.shape == (len(text.split()), 2)
    assert np.array_equal(points[:, 1], np.zeros(len(points)))


def test_too_few_tokens_for_umap_are_refused_with_the_figures(http: httpx.Client) -> None:
    response = http.post("/process", json={"text": "cat", "do_umap": True, "do_pca": True})
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "too_few_tokens")
    assert (problem["tokens"], problem["min_tokens"]) == (3, 4)


def test_a_text_that_is_too_long_is_cut_and_says_so(http: httpx.Client) -> None:
    answer = _process(http, text="word " * 2_000)
    assert answer["truncated"] is True
    length = len(answer["tokens"])
    assert length <= 512
    assert len(answer["attention"][0][0]) == length
    assert answer["tokens"][-1] == "[SEP]"


def test_an_encoder_decoder_model_shows_all_three_attentions(make_client: MakeClient) -> None:
    client: TestClient = make_client(fake_engine(plain_settings()))
    request = {"text": "one two three", "model_name": "fake/translator", "do_pca": True}
    answer = client.post("/process", json=request).json()
    source, target = len(answer["tokens"]), len(answer["target_tokens"])
    assert np.array(answer["embeddings"]).shape[0] == source
    assert np.array(answer["pca_2d"]).shape == (source, 2)
    assert np.array(answer["attention"]).shape[2:] == (source, source)
    assert np.array(answer["decoder_attention"]).shape[2:] == (target, target)
    assert np.array(answer["cross_attention"]).shape[2:] == (target, source)


def test_models_are_switched_per_request(make_client: MakeClient) -> None:
    client: TestClient = make_client(fake_engine(plain_settings()))
    for name in ("fake/decoder", "fake/encoder", "fake/decoder"):
        request = {"text": "one two three", "model_name": name}
        assert client.post("/process", json=request).json()["model_id"] == name
    models = client.get("/v1/models").json()["data"]
    assert {m["id"] for m in models if m["state"] == "loaded"} >= {"fake/decoder", "fake/encoder"}


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u2003\u00a0"])
def test_a_text_without_anything_in_it_is_refused(http: httpx.Client, text: str) -> None:
    response = http.post("/process", json={"text": text})
    assert (response.status_code, response.json()["code"]) == (422, "empty_text")
