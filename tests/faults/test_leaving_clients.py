"""Clients that leave: before their batch, in it, and with half a request sent."""

from __future__ import annotations

import asyncio
import random
import time

import httpx
import psutil

from faults.conftest import EMBEDDINGS, FaultyServer, assert_vectors, until
from faulty_server import ids_of
from server_process import metric
from wire import Connection, asked, request_of

NUM_LEAVING, NUM_STAYING = 200, 50
BLOCKING = "blocking"
SOON_S = 10.0


def waiting(server: FaultyServer) -> int:
    return int(metric(server.client, "pellucid_requests_waiting"))


async def until_waiting(server: FaultyServer, number: int) -> None:
    until = time.monotonic() + SOON_S
    while (found := await asyncio.to_thread(waiting, server)) != number:
        assert time.monotonic() < until, f"{found} wait, not {number}"
        await asyncio.sleep(0.02)


def test_those_who_left_before_their_batch_never_reach_the_model(patient: FaultyServer) -> None:
    staying = [f"I stay, and my number is {number}" for number in range(NUM_STAYING)]
    leaving = [f"I leave, and my number is {number}" for number in range(NUM_LEAVING)]

    async def visit() -> list[httpx.Response]:
        port = patient.server.port
        blocking = asyncio.create_task(asked(port, EMBEDDINGS, {"input": BLOCKING}))
        await until(lambda: bool(patient.faults.batches()))
        answers = asyncio.gather(*(asked(port, EMBEDDINGS, {"input": t}) for t in staying))
        visitors = [await Connection.open(port) for _ in leaving]
        for visitor, text in zip(visitors, leaving, strict=True):
            await visitor.send(request_of(EMBEDDINGS, {"input": text}))
        await until_waiting(patient, NUM_STAYING + NUM_LEAVING)
        for visitor in visitors:
            visitor.leave()
        await until_waiting(patient, NUM_STAYING)
        patient.faults.clear()
        assert_vectors(await blocking, [BLOCKING])
        return await answers

    patient.faults.set(hangs=True, only_with=BLOCKING)
    for text, answer in zip(staying, asyncio.run(visit()), strict=True):
        assert_vectors(answer, [text])
    seen = {ids for batch in patient.faults.batches() for ids in batch}
    assert seen >= set(map(ids_of, staying))
    assert not seen & set(map(ids_of, leaving))
    assert waiting(patient) == 0
    patient.require_sound()


def test_those_who_leave_at_any_moment_harm_nobody(patient: FaultyServer) -> None:
    patient.faults.set(delay_s=0.01)
    chance = random.Random(7)
    process = psutil.Process(patient.server.pid)

    async def visit_and_leave(number: int) -> None:
        connection = await Connection.open(patient.server.port)
        request = request_of(EMBEDDINGS, {"input": [f"I leave at once, {number}"] * 3})
        await connection.send(request[: chance.choice([40, 150, len(request), len(request)])])
        await asyncio.sleep(chance.uniform(0, 0.1))
        connection.leave()

    async def visit() -> list[httpx.Response]:
        port = patient.server.port
        leaving = asyncio.gather(*(visit_and_leave(number) for number in range(NUM_LEAVING)))
        staying = [asked(port, EMBEDDINGS, {"input": texts}) for texts in own]
        answers = await asyncio.gather(*staying)
        await leaving
        await until_waiting(patient, 0)
        return answers

    own = [[f"I stay, as number {n}", f"and so do I, {n}"] for n in range(NUM_STAYING)]
    sizes = []
    for _ in range(4):
        for texts, answer in zip(own, asyncio.run(visit()), strict=True):
            assert_vectors(answer, texts)
        sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[1] < 4_000_000, sizes
    assert metric(patient.client, "pellucid_requests_in_flight") == 1  # this one
    patient.require_sound()
