"""Servers to be harmed: several tests share one, so that each costs no start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import faulty_server
from faulty_server import Faults, embeddings_of
from pellucid.models.backend import Batch, Float32
from pellucid.models.sources.source import ModelSource
from pellucid.models.transformers_backend import TransformersBackend
from server_process import ServerProcess, metric, server_process
from tiny_models import build
from wire import asked

FAKE = {"device": "cpu", "memory_budget_bytes": 1_000_000_000, "model": "fake/default"}
EMBEDDINGS = "/v1/embeddings"
MAX_WAITING = 260
SOON_S = 20.0


class FaultyServer:
    """A server on a fake model, and the switch of its faults."""

    def __init__(self, server: ServerProcess, faults: Faults, client: httpx.Client) -> None:
        self.server = server
        self.faults = faults
        self.client = client

    def embed(self, texts: Sequence[str], **fields: Any) -> httpx.Response:
        return self.client.post(EMBEDDINGS, json={"input": list(texts), **fields})

    def embed_at_once(self, requests: Sequence[Sequence[str]]) -> list[httpx.Response]:
        """So many requests side by side, each on a connection of its own."""

        async def all_of_them() -> list[httpx.Response]:
            port = self.server.port
            return await asyncio.gather(
                *(asked(port, EMBEDDINGS, {"input": list(texts)}) for texts in requests)
            )

        return asyncio.run(all_of_them())

    def times(self, what: str) -> int:
        """How often the server has counted that something happened to its models."""
        return int(metric(self.client, "pellucid_inference_events_total", what=what))

    def require_sound(self, *, within_s: float = 0.0) -> None:
        """The next request is answered, with its own vector; what can be asked says so.

        ``within_s``: so long it may be told to come again, while something is replaced.
        """
        text = "The next request is answered."
        until = time.monotonic() + within_s
        while (answer := self.embed([text])).status_code == 503 and time.monotonic() < until:
            assert_problem(answer, 503, "worker_replaced")
        assert_vectors(answer, [text])
        assert self.client.get("/ready").status_code == 200
        assert self.client.get("/health").status_code == 200


@contextmanager
def faulty(folder: Path, *, is_ready: bool = True, **settings: Any) -> Iterator[FaultyServer]:
    """Its own server, its switch in ``folder``; ``is_ready``: once its model is loaded."""
    faults = Faults(folder)
    program = (faulty_server.__file__, str(folder))
    with server_process(folder, program=program, **{**FAKE, **settings}) as server:
        if is_ready:
            server.wait_until_ready()
        with server.client() as client:
            yield FaultyServer(server, faults, client)


@pytest.fixture(scope="session")
def shared_impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    """With a short patience, so that no test waits long."""
    folder = tmp_path_factory.mktemp("impatient")
    with faulty(folder, stall_timeout_s=0.5, canary_interval_s=0.3) as server:
        yield server


@pytest.fixture(scope="session")
def shared_patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    """One that waits for its model as long as the tests do."""
    folder = tmp_path_factory.mktemp("patient")
    with faulty(folder, max_waiting=MAX_WAITING) as server:
        yield server


@pytest.fixture
def impatient(shared_impatient: FaultyServer) -> Iterator[FaultyServer]:
    """A sound server that gives its model up soon; it must survive the test."""
    yield from _lent(shared_impatient)


@pytest.fixture
def patient(shared_patient: FaultyServer) -> Iterator[FaultyServer]:
    """A sound server that lets its model take its time; it must survive the test."""
    yield from _lent(shared_patient)


def _lent(server: FaultyServer) -> Iterator[FaultyServer]:
    server.faults.clear()
    server.server.wait_until_ready(within_s=10)
    server.faults.forget()
    yield server
    server.faults.clear()
    assert server.server.process.poll() is None, server.server.stderr()[-3000:]


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real model, small enough to be converted often."""
    return build("bert", tmp_path_factory.mktemp("tiny") / "bert")


@pytest.fixture(scope="session")
def tiny_embedding(tiny_encoder: Path) -> Callable[[str], Float32]:
    """What torch makes of a text with that model."""
    backend = TransformersBackend.load(
        ModelSource(folder=tiny_encoder, model_id="tiny", revision="local", origin="local"),
        device="cpu",
    )

    def embedding_of(text: str) -> Float32:
        (given,) = backend.tokenize_for_embedding([text])
        (vector,) = backend.encode(Batch.of([given], pad_id=backend.pad_id))
        unit: Float32 = vector / np.linalg.norm(vector)
        return unit

    return embedding_of


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what must happen soon."""
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0.01)


def assert_vectors(answer: httpx.Response, texts: Sequence[str]) -> None:
    """Each text got its own vector, not that of another."""
    assert answer.status_code == 200, answer.text
    found = np.array([item["embedding"] for item in answer.json()["data"]], dtype=np.float32)
    np.testing.assert_allclose(found, embeddings_of(texts), atol=1e-5)


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The promised error, in the promised form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["code"] == code, problem
    return problem
