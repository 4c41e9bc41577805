"""Short requests are tokenised at once, long ones beside the event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pellucid.inference.tokenizer_threads import TokenizerThreads, is_short


@pytest.mark.parametrize(
    ("inputs", "short"),
    [
        (["a short text"], True),
        (["x" * 1_500, "y" * 1_500], False),
        ([[1] * 10_000], True),
        ([[1] * 10_000, [1] * 15_000], False),
        ([], True),
    ],
    ids=["one", "many characters", "ids", "many ids", "none"],
)
def test_what_is_short(inputs: list[str | list[int]], short: bool) -> None:
    assert is_short(inputs) == short


def test_only_long_requests_leave_the_event_loop() -> None:
    async def main() -> None:
        threads = TokenizerThreads(2)
        here = threading.current_thread()
        assert await threads.run(threading.current_thread, inputs=["short"]) is here
        there = await threads.run(threading.current_thread, inputs=["long" * 1_000])
        assert there.name.startswith("tokenizer")
        threads.close()

    asyncio.run(main())


def test_what_waits_for_a_thread_is_not_begun_when_cancelled() -> None:
    gate, begun = threading.Event(), list[int]()

    async def main() -> None:
        threads = TokenizerThreads(1)
        first = asyncio.create_task(threads.run(lambda: gate.wait(10), inputs=["x" * 5_000]))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(threads.run(lambda: begun.append(1), inputs=["x" * 5_000]))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        gate.set()
        assert await first
        threads.close()

    asyncio.run(main())
    assert begun == []
