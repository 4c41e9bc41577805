"""Where texts are tokenised: at once when short, else in a few threads beside the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_INLINE_CHARACTERS = 2_000  # about 100 us; a hop to another thread and back takes longer
_INLINE_IDS = 20_000  # ids are only checked
_INLINE_INPUTS = 32  # each costs something of its own, however short it is
_MAX_THREADS = 8


class TokenizerThreads:
    """Threads begin with the first long request."""

    def __init__(self, num_threads: int | None) -> None:
        """None: as many as cores, at most 8."""
        count = num_threads or min(_MAX_THREADS, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="tokenizer")

    async def run(self, work: Callable[[], T], *, inputs: Sequence[str | Sequence[int]]) -> T:
        """The result of ``work``, which tokenises ``inputs``. Not begun when cancelled before."""
        if is_short(inputs):
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Begin nothing more; what is at work ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def is_short(inputs: Sequence[str | Sequence[int]]) -> bool:
    """Whether tokenising takes less than handing it to a thread."""
    characters = sum(len(given) for given in inputs if isinstance(given, str))
    ids = sum(len(given) for given in inputs if not isinstance(given, str))
    is_small = characters <= _INLINE_CHARACTERS and ids <= _INLINE_IDS
    return is_small and len(inputs) <= _INLINE_INPUTS
