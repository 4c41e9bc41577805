"""Memory for inspections, in the order of asking."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from pellucid.inference.memory_gate import MemoryGate


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


def test_the_sum_stays_within_the_limit_first_come_first_served() -> None:
    async def main() -> None:
        gate, order = MemoryGate(100), list[int]()
        first = gate.reservation()
        assert first.try_take(60)

        async def take(wanted: int) -> None:
            reservation = gate.reservation()
            await reservation.take(wanted)
            order.append(wanted)
            assert gate.held_bytes <= 100
            await asyncio.sleep(0)
            reservation.release()

        tasks = [asyncio.create_task(take(wanted)) for wanted in (70, 10, 90, 20)]
        await asyncio.sleep(0.01)
        assert (order, gate.waiting) == ([], 4)
        assert not gate.reservation().try_take(10)  # it would fit, but others came before
        first.release()
        await asyncio.gather(*tasks)
        assert order == [70, 10, 90, 20]
        assert (gate.held_bytes, gate.waiting) == (0, 0)

    run(main())


def test_giving_back_twice_gives_nothing_away() -> None:
    gate = MemoryGate(100)
    first, second = gate.reservation(), gate.reservation()
    assert first.try_take(50)
    assert second.try_take(50)
    first.release()
    first.release()
    assert gate.held_bytes == 50


def test_what_is_larger_than_the_limit_runs_alone() -> None:
    gate = MemoryGate(100)
    large = gate.reservation()
    assert large.try_take(500)
    assert not gate.reservation().try_take(1)
    large.release()
    assert gate.reservation().try_take(1)


def test_whoever_stops_waiting_holds_up_nobody() -> None:
    async def main() -> None:
        gate = MemoryGate(100)
        first, gone, last = gate.reservation(), gate.reservation(), gate.reservation()
        assert first.try_take(60)
        waiting = asyncio.create_task(gone.take(100))
        behind = asyncio.create_task(last.take(40))
        await asyncio.sleep(0.01)
        assert not behind.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        gone.release()
        await behind
        assert gate.held_bytes == 100

    run(main())


def test_memory_that_comes_too_late_is_given_back() -> None:
    async def main() -> None:
        gate = MemoryGate(100)
        first, gone = gate.reservation(), gate.reservation()
        assert first.try_take(60)
        waiting = asyncio.create_task(gone.take(100))
        await asyncio.sleep(0.01)
        first.release()  # the memory is given while the task is being cancelled
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        gone.release()
        assert (gate.held_bytes, gate.waiting) == (0, 0)

    run(main())


def test_a_released_reservation_takes_nothing_more() -> None:
    gate = MemoryGate(100)
    late = gate.reservation()
    late.release()
    assert late.try_take(50)
    assert gate.held_bytes == 0
