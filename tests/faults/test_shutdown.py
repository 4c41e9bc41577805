"""A server that is told to end while it works."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import httpx
import pytest

from faults.conftest import EMBEDDINGS, FaultyServer, assert_problem, assert_vectors, faulty, until
from wire import CODE_OF_NO_ANSWER, Connection, asked, request_of

NUM_REQUESTS = 30


async def ask_then_end(server: FaultyServer, texts: list[str], ending: int) -> list[httpx.Response]:
    """The answers to requests that were at work, or waited, when the signal came."""
    port = server.server.port
    tasks = [asyncio.create_task(asked(port, EMBEDDINGS, {"input": text})) for text in texts]
    await until(lambda: bool(server.faults.batches()))
    await asyncio.sleep(0.1)  # the others have arrived by then
    server.server.process.send_signal(ending)
    await asyncio.sleep(0.1)
    late = await asked(port, EMBEDDINGS, {"input": "too late"})
    assert late.status_code == CODE_OF_NO_ANSWER, "a new connection was taken"
    return await asyncio.gather(*tasks)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_what_it_has_taken_it_answers(tmp_path: Path, ending: int) -> None:
    texts = [f"asked before the end, number {number}" for number in range(NUM_REQUESTS)]
    with faulty(tmp_path, max_batch_tokens=64) as server:
        server.faults.set(delay_s=0.1)
        answers = asyncio.run(ask_then_end(server, texts, ending))
        assert server.server.end(within_s=3) == 0
        assert "Traceback" not in server.server.stderr()
    for text, answer in zip(texts, answers, strict=True):
        assert_vectors(answer, [text])


@pytest.mark.parametrize("hangs", [False, True], ids=["slow", "hanging"])
def test_at_the_deadline_the_rest_is_told(tmp_path: Path, hangs: bool) -> None:
    texts = [f"asked before the end, number {number}" for number in range(NUM_REQUESTS)]
    with faulty(tmp_path, max_batch_tokens=64, shutdown_timeout_s=1) as server:
        server.faults.set(delay_s=0.4, hangs=hangs)
        answers = asyncio.run(ask_then_end(server, texts, signal.SIGTERM))
        begin = time.monotonic()
        assert server.server.end() == 0
        assert time.monotonic() - begin < 2
    unanswered = 0
    for text, answer in zip(texts, answers, strict=True):
        if answer.status_code == 200:
            assert_vectors(answer, [text])
        else:
            assert_problem(answer, 503, "not_ready")
            assert int(answer.headers["retry-after"]) >= 1
            unanswered += 1
    assert unanswered == NUM_REQUESTS if hangs else 0 < unanswered < NUM_REQUESTS


def test_whoever_has_sent_half_a_request_is_told(tmp_path: Path) -> None:
    async def send_half_then_end(server: FaultyServer) -> httpx.Response:
        connection = await Connection.open(server.server.port)
        await connection.send(request_of(EMBEDDINGS, {"input": "half of it"})[:-5])
        await asyncio.sleep(0.1)
        server.server.process.send_signal(signal.SIGTERM)
        answer = await connection.answer()
        await connection.close()
        return answer

    with faulty(tmp_path, shutdown_timeout_s=0.5) as server:
        assert_problem(asyncio.run(send_half_then_end(server)), 503, "not_ready")
        assert server.server.end(within_s=3) == 0


def test_told_twice_it_ends_at_once(tmp_path: Path) -> None:
    with faulty(tmp_path) as server:
        server.faults.set(hangs=True)

        async def end_twice() -> httpx.Response:
            asking = asyncio.create_task(
                asked(server.server.port, EMBEDDINGS, {"input": "never answered"})
            )
            await until(lambda: bool(server.faults.batches()))
            server.server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            assert server.server.process.poll() is None, "it did not wait for what runs"
            server.server.process.send_signal(signal.SIGTERM)
            return await asking

        begin = time.monotonic()
        assert asyncio.run(end_twice()).status_code == CODE_OF_NO_ANSWER
        assert server.server.end(within_s=3) == 0
        assert time.monotonic() - begin < 3
