"""Far more requests than may wait: each has its answer, and nothing is left behind."""

from __future__ import annotations

import asyncio
import time

import httpx

from faults.conftest import (
    EMBEDDINGS,
    MAX_WAITING,
    FaultyServer,
    assert_problem,
    assert_vectors,
    until,
)
from server_process import metric
from wire import asked

NUM_REQUESTS = MAX_WAITING + 150
BLOCKING = "blocking"


def test_every_request_is_answered_or_told_to_come_again(patient: FaultyServer) -> None:
    texts = [f"one of far too many, number {number}" for number in range(NUM_REQUESTS)]

    async def come() -> list[httpx.Response]:
        port = patient.server.port
        blocking = asyncio.create_task(asked(port, EMBEDDINGS, {"input": BLOCKING}))
        await until(lambda: bool(patient.faults.batches()))
        tasks = [asyncio.create_task(asked(port, EMBEDDINGS, {"input": t})) for t in texts]
        # those for whom there is no room are told so at once
        await until(lambda: sum(task.done() for task in tasks) >= NUM_REQUESTS - MAX_WAITING)
        patient.faults.clear()
        assert_vectors(await blocking, [BLOCKING])
        return await asyncio.gather(*tasks)

    patient.faults.set(hangs=True, only_with=BLOCKING)
    answers = asyncio.run(come())
    refused = [answer for answer in answers if answer.status_code != 200]
    for text, answer in zip(texts, answers, strict=True):
        if answer.status_code == 200:
            assert_vectors(answer, [text])
        else:
            problem = assert_problem(answer, 429, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
            assert problem["max_waiting"] == MAX_WAITING
    assert len(refused) == NUM_REQUESTS - MAX_WAITING
    assert metric(patient.client, "pellucid_requests_waiting") == 0
    begin = time.monotonic()
    patient.require_sound()
    assert time.monotonic() - begin < 1
