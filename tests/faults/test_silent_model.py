"""A model that does not come back, and a thread that ends: both are replaced."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import httpx
import pytest

from faults.conftest import FaultyServer, assert_problem, assert_vectors

STALL_TIMEOUT_S = 0.5
LOAD_S = 0.3
SOON_S = 4.0
REQUESTS = [[f"text {number}", f"and another of {number}"] for number in range(10)]


@contextmanager
def watched(server: FaultyServer) -> Iterator[list[int]]:
    """What /ready says, over and over, while the block runs; /health must always be well."""
    seen: list[int] = []
    ended = Event()

    def look() -> None:
        with server.server.client() as client:
            while not ended.is_set():
                assert client.get("/health").status_code == 200
                seen.append(client.get("/ready").status_code)
                time.sleep(0.005)

    thread = Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def test_a_model_that_hangs_is_replaced(impatient: FaultyServer) -> None:
    impatient.faults.set(hangs=True, load_s=LOAD_S)
    before = impatient.times("restarted")
    with watched(impatient) as ready:
        begin = time.monotonic()
        for answer in impatient.embed_at_once(REQUESTS):
            assert_problem(answer, 503, "worker_replaced")
            assert int(answer.headers["retry-after"]) >= 1
        assert time.monotonic() - begin < STALL_TIMEOUT_S + SOON_S
        impatient.faults.set(load_s=LOAD_S)
        impatient.require_sound()
    assert ready[0] == ready[-1] == 200
    assert 503 in ready, "not ready, and nobody was told"
    assert impatient.times("restarted") > before


def test_a_thread_that_dies_is_replaced(impatient: FaultyServer) -> None:
    """It answers once, and ends with the next batch in its hands."""
    impatient.faults.set(dies=True, load_s=LOAD_S)
    before = impatient.times("restarted")
    with watched(impatient) as ready:
        first = impatient.embed(REQUESTS[0])
        answers = [first, *impatient.embed_at_once(REQUESTS)]
        assert 503 in [answer.status_code for answer in answers]
        for texts, answer in zip([REQUESTS[0], *REQUESTS], answers, strict=True):
            if answer.status_code == 200:  # of the fresh one, before that died in turn
                assert_vectors(answer, texts)
            else:
                assert_problem(answer, 503, "worker_replaced")
        impatient.faults.set(load_s=LOAD_S)
        impatient.require_sound(within_s=SOON_S)
    assert 503 in ready, "not ready, and nobody was told"
    assert impatient.times("restarted") > before


def test_one_that_can_not_be_replaced_is_told_of(impatient: FaultyServer) -> None:
    impatient.faults.set(hangs=True, load_fails=True)
    assert_problem(impatient.embed(["a text"]), 503, "worker_replaced")
    for _ in range(2):  # each request tries again
        assert_problem(impatient.embed(["a text"]), 422, "model_load_failed")
    ready = impatient.client.get("/ready")
    assert ready.status_code == 503
    assert ready.json()["error"]["code"] == "model_load_failed"
    assert impatient.client.get("/health").status_code == 200
    impatient.faults.clear()
    impatient.require_sound()


def test_an_idle_model_that_hangs_is_noticed_before_anybody_asks(impatient: FaultyServer) -> None:
    before = impatient.times("restarted")
    impatient.faults.set(hangs=True)
    until = time.monotonic() + SOON_S
    while impatient.times("restarted") == before:
        assert time.monotonic() < until, "nobody noticed"
        time.sleep(0.05)
    impatient.faults.clear()
    impatient.require_sound()


def test_one_that_comes_back_late_disturbs_nobody(impatient: FaultyServer) -> None:
    """The thread that was given up ends its batch while another serves."""
    impatient.faults.set(hangs=True, only_with="sleepy")
    assert_problem(impatient.embed(["a sleepy text"]), 503, "worker_replaced")
    impatient.require_sound()
    impatient.faults.clear()  # now the first one wakes up
    texts = [f"text {number} of those who come later" for number in range(20)]
    for text, answer in zip(texts, impatient.embed_at_once([[t] for t in texts]), strict=True):
        assert_vectors(answer, [text])
    impatient.require_sound()


def test_a_deadline_comes_before_patience_ends(patient: FaultyServer) -> None:
    """Nobody waits for ever, even for a model that is not given up."""
    patient.faults.set(hangs=True, only_with="sleepy")
    with pytest.raises(httpx.ReadTimeout):
        patient.client.post("/v1/embeddings", json={"input": "a sleepy text"}, timeout=0.2)
    assert patient.client.get("/health").status_code == 200
    patient.faults.clear()
    patient.require_sound()
