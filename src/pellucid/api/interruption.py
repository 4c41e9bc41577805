"""Ending a request's work early: its client has left, or the server must end."""

from __future__ import annotations

import asyncio
from types import TracebackType

from fastapi import Request

from pellucid.errors import PellucidError

_WATCH_AFTER_S = 0.02  # most requests are answered by then, and never pay for a watcher


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


class InFlight:
    """The requests at work, so that all can be ended when the server must end."""

    def __init__(self) -> None:
        self._running: set[Interruptible] = set()

    def watch(self, request: Request) -> Interruptible:
        """A block that ends early: with ClientLeft, or with the error of ``interrupt_all``."""
        return Interruptible(request, self._running)

    def interrupt_all(self, error: PellucidError) -> int:
        """Answer all that is still at work with ``error``; returns how many requests that are."""
        running = list(self._running)
        for work in running:
            work.interrupt(error)
        return len(running)


class Interruptible:
    """An asynchronous context: what runs in it is cancelled when there is a reason."""

    def __init__(self, request: Request, running: set[Interruptible]) -> None:
        self._request = request
        self._running = running
        self._reason: Exception | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Interruptible:
        task = asyncio.current_task()
        assert task is not None, "requests are answered in tasks"
        self._task = task
        self._cancelling = task.cancelling()
        self._running.add(self)
        return self

    def watch_client(self) -> None:
        """From now on the client may leave; not before its body is read, which takes messages."""
        self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, self._start_watcher)

    def interrupt(self, reason: Exception) -> None:
        """End the work with ``reason``; the first reason counts."""
        if self._reason is None:
            self._reason = reason
            self._task.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._running.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        # As asyncio.timeout does it: whoever else cancelled the task must go on to be heard.
        if self._reason is None or self._task.uncancel() > self._cancelling:
            return
        if isinstance(error, asyncio.CancelledError):
            raise self._reason from error

    def _start_watcher(self) -> None:
        self._watcher = asyncio.ensure_future(self._wait_for_leaving())

    async def _wait_for_leaving(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.interrupt(ClientLeft())
