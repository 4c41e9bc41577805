"""Contract B: ``/health``, ``/embed`` and ``/info``, against the real application and model."""

from __future__ import annotations

import httpx
import numpy as np

from pellucid import __version__

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def test_health_is_the_union_of_both_contracts(http: httpx.Client) -> None:
    health = http.get("/health").json()
    assert health["status"] == "ok"
    assert health["model"] == MODEL
    assert health["dim"] == 384
    assert health["device"] in ("cpu", "mps", "cuda")
    assert health["model_loaded"] is True
    assert health["chroma_connected"] is False


def test_embed_gives_unit_vectors_in_order(http: httpx.Client) -> None:
    texts = ["A man is eating food.", "Der Himmel ist blau.", "A man eats something."]
    answer = http.post("/embed", json={"texts": texts}).json()
    vectors = np.array(answer["vectors"])
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    similarities = vectors @ vectors.T
    assert similarities[0, 2] > 0.7 > similarities[0, 1]
    assert (answer["success"], answer["count"]) == (True, 3)
    assert (answer["model"], answer["dim"]) == (MODEL, 384)
    assert answer["truncated"] == [False] * 3
    for text, vector in zip(texts, vectors, strict=True):
        alone = http.post("/embed", json={"texts": [text]}).json()["vectors"][0]
        np.testing.assert_allclose(alone, vector, atol=1e-5)


def test_normalize_false_has_the_same_direction(http: httpx.Client) -> None:
    texts = ["A man is eating food."]
    unit = np.array(http.post("/embed", json={"texts": texts, "normalize": True}).json()["vectors"])
    raw = http.post("/embed", json={"texts": texts, "normalize": False}).json()["vectors"]
    np.testing.assert_allclose(np.array(raw) / np.linalg.norm(raw), unit, atol=1e-5)


def test_a_text_that_is_too_long_is_cut_and_says_so(http: httpx.Client) -> None:
    answer = http.post("/embed", json={"texts": ["short", "word " * 1_000]}).json()
    assert answer["truncated"] == [False, True]


def test_info_names_the_model_and_every_limit(http: httpx.Client) -> None:
    info = http.get("/info").json()
    assert (info["model_id"], info["dim"], info["version"]) == (MODEL, 384, __version__)
    assert info["device"] in ("cpu", "mps", "cuda")
    assert info["max_embedding_tokens"] == 256
    assert info["max_tokens"] == 512
    for name in ("max_inputs", "max_body_bytes", "max_text_characters", "request_timeout_s"):
        assert info["limits"][name] > 0
    assert info["limits"]["memory_budget_bytes"] > 100_000_000  # of this machine: none was set


def test_errors_name_the_text_by_the_word_of_the_contract(http: httpx.Client) -> None:
    problem = http.post("/embed", json={"texts": ["a", " "]}).json()
    assert (problem["code"], problem["field"]) == ("empty_text", "texts[1]")
    assert problem["detail"].startswith("texts[1] is empty")


def test_the_retry_rule_of_the_client_holds(http: httpx.Client) -> None:
    """It retries 5xx and never 4xx, so what is wrong for good must be a 4xx."""
    for body in ({}, {"texts": []}, {"texts": [""]}, {"texts": [1]}, {"texts": ["a"] * 3_000}):
        assert 400 <= http.post("/embed", json=body).status_code < 500


def test_unload_frees_the_model_and_the_next_request_loads_it_again(http: httpx.Client) -> None:
    before = http.post("/embed", json={"texts": ["same"]}).json()["vectors"]
    freed = http.get("/unload").json()["freed_bytes"]
    assert freed > 50_000_000
    assert http.get("/health").json()["model_loaded"] is False
    assert http.get("/ready").status_code == 200
    assert http.post("/embed", json={"texts": ["same"]}).json()["vectors"] == before
    assert http.get("/health").json()["model_loaded"] is True


def test_a_browser_is_sent_home_after_unloading(http: httpx.Client) -> None:
    html = {"Accept": "text/html,*/*;q=0.8"}
    for answer in (
        http.get("/unload", headers=html),
        http.post("/unload", headers=html),
        http.post("/unload", headers=html, data={"button": "Free memory"}),  # a form of a page
    ):
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
