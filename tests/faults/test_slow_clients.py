"""Clients that send slowly, half, or nothing: others are answered meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from faults.conftest import EMBEDDINGS, FaultyServer, assert_problem, assert_vectors, faulty
from wire import Connection, asked, request_of

REQUEST_TIMEOUT_S = 1.0
NUM_IDLE = 200
TEXT = "Sent slowly."


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    """A server whose requests must be done soon."""
    folder = tmp_path_factory.mktemp("hasty")
    with faulty(folder, request_timeout_s=REQUEST_TIMEOUT_S) as server:
        yield server


def test_a_body_byte_by_byte_is_not_waited_for(hasty: FaultyServer) -> None:
    request = request_of(EMBEDDINGS, {"input": TEXT})
    body = request.index(b"\r\n\r\n") + 4

    async def trickle() -> None:
        connection = await Connection.open(hasty.server.port)
        await connection.send(request[:body])
        begin = time.monotonic()
        answer = asyncio.create_task(connection.answer())
        for place in range(body, len(request) - 1):
            if answer.done():
                break
            await connection.send(request[place : place + 1])
            other = await asked(hasty.server.port, EMBEDDINGS, {"input": f"meanwhile {place}"})
            assert_vectors(other, [f"meanwhile {place}"])
            await asyncio.sleep(0.1)
        assert_problem(await answer, 504, "deadline_exceeded")
        assert time.monotonic() - begin < REQUEST_TIMEOUT_S + 1
        await connection.close()

    asyncio.run(trickle())
    hasty.require_sound()


def test_a_hanging_model_is_not_waited_for(hasty: FaultyServer) -> None:
    hasty.faults.set(hangs=True)
    begin = time.monotonic()
    assert_problem(hasty.embed(["a text"]), 504, "deadline_exceeded")
    assert REQUEST_TIMEOUT_S - 0.1 < time.monotonic() - begin < REQUEST_TIMEOUT_S + 1
    hasty.faults.clear()
    hasty.require_sound()


@pytest.mark.parametrize("share", [0.2, 0.95], ids=["half a head", "half a body"])
def test_half_a_request_and_gone(hasty: FaultyServer, share: float) -> None:
    async def leave() -> None:
        request = request_of(EMBEDDINGS, {"input": TEXT})
        for abruptly in (True, False):
            connection = await Connection.open(hasty.server.port)
            await connection.send(request[: int(share * len(request))])
            if abruptly:
                connection.leave()
            else:
                await connection.close()

    hasty.faults.forget()
    asyncio.run(leave())
    hasty.require_sound()
    assert len(hasty.faults.batches()) == 1


def test_many_idle_connections_and_others_are_answered(hasty: FaultyServer) -> None:
    async def crowd() -> None:
        idle = [await Connection.open(hasty.server.port) for _ in range(NUM_IDLE)]
        for connection in idle[::2]:
            await connection.send(b"POST ")
        begin = time.monotonic()
        for number in range(10):
            text = f"in a crowd, {number}"
            assert_vectors(await asked(hasty.server.port, EMBEDDINGS, {"input": text}), [text])
        assert time.monotonic() - begin < 2
        for connection in idle:
            connection.leave()

    asyncio.run(crowd())
    hasty.require_sound()
