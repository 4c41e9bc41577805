"""The one thread for UMAP, and those who wait for it.

UMAP takes seconds, the first of a process about ten (it compiles), and it needs no model: in a
model's thread it would hold up everybody else who asks that model.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pellucid.errors import Overloaded
from pellucid.inference.engine import Inspection
from pellucid.inference.inspection import Seen
from pellucid.inference.worker import Worker

_NAME = "UMAP"
_PLACES = 4  # each holds a whole answer in memory
_RETRY_S = 10


class UmapLine:
    """Those who come with a forward pass behind them are few; the others wait before theirs."""

    def __init__(self, *, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._waiting = 0
        self._places = asyncio.Semaphore(_PLACES)
        self._lock = threading.Lock()
        self._worker: Worker | None = None  # no thread before the first UMAP

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """One of the few places, to be had before the forward pass. Raises Overloaded."""
        if self._waiting >= self._max_waiting:
            raise Overloaded(
                model_id=_NAME,
                waiting=self._waiting,
                max_waiting=self._max_waiting,
                retry_after_s=_RETRY_S,
            )
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._places.release()

    async def complete(self, seen: Seen) -> tuple[Inspection, float]:
        """The inspection with its projection, and the milliseconds that it waited for its turn.

        Raises TooFewTokens. When cancelled before its turn it never begins.
        """
        ticket = self._running().submit(lambda _: seen.completed(), on_done=lambda: None)
        try:
            return await asyncio.wrap_future(ticket.future), ticket.queue_ms
        except asyncio.CancelledError:
            ticket.abandon()
            raise

    def _running(self) -> Worker:
        with self._lock:
            if self._worker is None:
                self._worker = Worker(_NAME, max_waiting=_PLACES)
            return self._worker

    def close(self) -> None:
        """Let no further UMAP begin; one at work ends by itself."""
        with self._lock:
            worker = self._worker
        if worker is not None:
            worker.stop(timeout_s=0)
