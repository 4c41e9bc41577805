"""A model that raises, gives NaN, runs out of memory or cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest

from faults.conftest import FaultyServer, assert_problem, assert_vectors, faulty
from faulty_server import Faults, embeddings_of, ids_of

POISON = "poison"
SOON_S = 4.0
SEVERAL = ["the first of four", "the second one", f"{POISON} is the third", "and a fourth"]


@pytest.mark.parametrize("kind", ["RuntimeError", "SystemExit"])
def test_every_forward_pass_raises(patient: FaultyServer, kind: str) -> None:
    patient.faults.set(raises=kind)
    assert_problem(patient.embed(["a text"]), 500, "internal_error")
    assert patient.client.get("/health").status_code == 200
    patient.faults.clear()
    patient.require_sound()


def test_a_model_that_fails_on_everything_is_replaced(impatient: FaultyServer) -> None:
    before = impatient.times("restarted")
    impatient.faults.set(raises="RuntimeError")
    codes = [impatient.embed(["a text"]).json()["code"] for _ in range(6)]
    assert set(codes) <= {"internal_error", "worker_replaced"}
    impatient.faults.clear()
    impatient.require_sound(within_s=SOON_S)
    assert impatient.times("restarted") > before


def test_one_poisoned_text_fails_alone_among_others_in_flight(patient: FaultyServer) -> None:
    """A slow model, so that what comes meanwhile runs in one batch with the poison."""
    patient.faults.set(raises="RuntimeError", only_with=POISON, delay_s=0.05)
    texts = [f"request {number} says number {number}" for number in range(30)]
    poisoned = f"{POISON} number 30 says number 30"  # as long as the others: it runs with them
    answers = patient.embed_at_once([[text] for text in (*texts[:15], poisoned, *texts[15:])])
    assert_problem(answers.pop(15), 500, "internal_error")
    for text, answer in zip(texts, answers, strict=True):
        assert_vectors(answer, [text])
    mixed = [batch for batch in patient.faults.batches() if ids_of(poisoned) in batch]
    assert max(map(len, mixed)) > 1, "the poison never ran with others, so nothing was shown"
    patient.require_sound()


def test_of_one_request_the_poisoned_text_fails_alone_when_asked_to(patient: FaultyServer) -> None:
    patient.faults.set(raises="RuntimeError", only_with=POISON)
    assert_problem(patient.embed(SEVERAL), 500, "internal_error")
    _assert_all_but_third(patient.embed(SEVERAL, on_error="report"), "internal_error")
    patient.require_sound()


@pytest.mark.parametrize("only_with", [None, POISON], ids=["every text", "one text"])
def test_values_that_are_not_finite(patient: FaultyServer, only_with: str | None) -> None:
    patient.faults.set(nan="always", only_with=only_with)
    problem = assert_problem(patient.embed(SEVERAL), 422, "non_finite_values")
    assert ("input[0]" if only_with is None else "input[2]") in problem["detail"]
    reported = patient.embed(SEVERAL, on_error="report")
    if only_with is None:
        assert [error["index"] for error in reported.json()["errors"]] == [0, 1, 2, 3]
    else:
        _assert_all_but_third(reported, "non_finite_values")
    patient.faults.clear()
    patient.require_sound()


def test_values_that_are_finite_when_computed_exactly(patient: FaultyServer) -> None:
    before = patient.times("retried_exact")
    patient.faults.set(nan="unless_exact", only_with=POISON)
    assert_vectors(patient.embed(SEVERAL), SEVERAL)
    assert patient.times("retried_exact") == before + 1


def test_out_of_memory_for_a_batch(patient: FaultyServer) -> None:
    before = patient.times("split_for_memory")
    texts = [f"one of forty texts, number {number}" for number in range(40)]
    patient.faults.set(max_tokens=60)
    assert_vectors(patient.embed(texts), texts)
    assert patient.times("split_for_memory") > before
    longest = max(map(len, map(ids_of, texts)))
    patient.faults.forget()
    assert_vectors(patient.embed(texts), texts)
    sizes = [len(batch) * longest for batch in patient.faults.batches()]
    assert max(sizes) <= 60 + longest, "nothing was learnt from what did not fit"
    patient.faults.clear()
    patient.require_sound()


def test_out_of_memory_for_one_text(patient: FaultyServer) -> None:
    patient.faults.set(max_tokens=60)
    short, long = "short", "many words " * 50
    assert_problem(patient.embed([short, long]), 503, "forward_out_of_memory")
    answer = patient.embed([short, long], on_error="report").json()
    assert [error["index"] for error in answer["errors"]] == [1]
    np.testing.assert_allclose(answer["data"][0]["embedding"], embeddings_of([short])[0], atol=1e-5)
    patient.require_sound()


def test_a_load_that_fails_once(tmp_path: Path) -> None:
    Faults(tmp_path).set(load_fails=True)
    with faulty(tmp_path, is_ready=False) as server:
        problem = assert_problem(server.embed(["a text"]), 422, "model_load_failed")
        assert "told to" in problem["detail"]
        assert server.client.get("/health").status_code == 200
        ready = server.client.get("/ready")
        assert ready.status_code == 503
        assert ready.json()["error"]["code"] == "model_load_failed"
        server.faults.clear()
        server.require_sound()


def _assert_all_but_third(answer: httpx.Response, code: str) -> None:
    assert answer.status_code == 200, answer.text
    (error,) = answer.json()["errors"]
    assert (error["index"], error["code"]) == (2, code)
    found = [item["embedding"] for item in answer.json()["data"]]
    assert found.pop(2) is None
    expected = embeddings_of([text for text in SEVERAL if POISON not in text])
    np.testing.assert_allclose(np.array(found), expected, atol=1e-5)
