"""Ending the work of a request: for which reason, and what its own deadline makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from fastapi import Request

from pellucid.api.interruption import ClientLeft, InFlight
from pellucid.errors import NotReady

ENDING = NotReady(phase="shutting down", retry_after_s=5)


class Client:
    """Leaves when it is told to."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.asked = 0

    async def receive(self) -> dict[str, str]:
        self.asked += 1
        await self.left.wait()
        return {"type": "http.disconnect"}


async def _at_work(in_flight: InFlight, client: Client, work: Callable[[], Awaitable[str]]) -> str:
    request = Request({"type": "http"}, client.receive)
    async with in_flight.watch(request) as watched:
        watched.watch_client()
        return await work()


async def _forever() -> str:
    await asyncio.Event().wait()
    return "never"


def test_a_client_that_leaves_ends_its_work() -> None:
    async def main() -> None:
        in_flight, client = InFlight(), Client()
        task = asyncio.create_task(_at_work(in_flight, client, _forever))
        client.left.set()
        with pytest.raises(ClientLeft):
            await asyncio.wait_for(task, 5)
        assert in_flight.interrupt_all(ENDING) == 0

    asyncio.run(main())


def test_what_is_quick_has_no_watcher() -> None:
    async def main() -> None:
        async def quick() -> str:
            return "done"

        in_flight, client = InFlight(), Client()
        assert await _at_work(in_flight, client, quick) == "done"
        await asyncio.sleep(0.05)
        assert client.asked == 0

    asyncio.run(main())


def test_all_that_is_at_work_is_ended_with_the_error_and_no_other_task() -> None:
    async def main() -> None:
        in_flight = InFlight()
        tasks = [asyncio.create_task(_at_work(in_flight, Client(), _forever)) for _ in range(5)]
        other = asyncio.create_task(_forever())
        await asyncio.sleep(0)
        assert in_flight.interrupt_all(ENDING) == 5
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            assert ended is ENDING
        assert not other.done()
        other.cancel()

    asyncio.run(main())


def test_a_deadline_is_a_deadline_also_while_the_client_leaves() -> None:
    async def main() -> None:
        client = Client()

        async def slow_to_end() -> str:
            try:
                return await _forever()
            finally:
                client.left.set()
                await asyncio.sleep(0.05)  # the watcher hears of it meanwhile

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await _at_work(InFlight(), client, slow_to_end)

    asyncio.run(main())


def test_who_cancels_from_outside_is_heard() -> None:
    async def main() -> None:
        in_flight = InFlight()
        task = asyncio.create_task(_at_work(in_flight, Client(), _forever))
        await asyncio.sleep(0)
        task.cancel()
        in_flight.interrupt_all(ENDING)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_work_that_ends_all_the_same_is_answered() -> None:
    """Cancelled in its last moment, it may have its result; then that is the answer."""

    async def main() -> None:
        async def stubborn() -> str:
            try:
                return await _forever()
            except asyncio.CancelledError:
                return "done"

        in_flight = InFlight()
        task = asyncio.create_task(_at_work(in_flight, Client(), stubborn))
        await asyncio.sleep(0)
        in_flight.interrupt_all(ENDING)
        assert await task == "done"
        assert task.cancelling() == 0

    asyncio.run(main())
