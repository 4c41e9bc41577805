"""One thread that does one thing at a time, and the line of those who wait for it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Generic, TypeVar

from pellucid.errors import InternalError, NotReady, Overloaded, PellucidError

logger = logging.getLogger("pellucid.inference")

T = TypeVar("T")

StillWanted = Callable[[], None]
"""Raises when nobody waits for the answer any more; called between stages."""
Work = Callable[[StillWanted], T]

_LONGEST_RETRY_S = 60


class Abandoned(Exception):
    """Nobody waits for this answer any more. Never reaches a client."""


def as_failure(error: BaseException, name: str) -> PellucidError:
    """What a client is told of an error; one that was not raised on purpose goes to the log."""
    if isinstance(error, PellucidError):
        return error
    logger.error("a request for %s failed", name, exc_info=error)
    failure = InternalError()
    failure.__cause__ = error
    return failure


class Ticket(Generic[T]):
    """A place in the line. ``future`` has the answer; ``abandon`` gives the place up.

    ``deadline`` (``time.monotonic()``) is when whoever waits goes.
    """

    def __init__(
        self, work: Work[T], on_done: Callable[[], None], *, deadline: float = math.inf
    ) -> None:
        self.future: Future[T] = Future()
        self.queue_ms = 0.0
        self.deadline = deadline
        self._work: Work[T] | None = work
        self._on_done: Callable[[], None] | None = on_done
        self._submitted = time.monotonic()
        self._abandoned = threading.Event()
        self._lock = threading.Lock()

    @property
    def is_waiting(self) -> bool:
        return not self.future.done()

    def abandon(self) -> None:
        """Not begun: it never will be. Begun: it ends where it next looks."""
        self._abandoned.set()
        if self.future.cancel():
            self._work = None  # what it holds is not kept until its turn
            self._release()

    def still_wanted(self) -> None:
        """Raises Abandoned."""
        if self._abandoned.is_set():
            raise Abandoned

    def give_up(self, error: PellucidError) -> None:
        """Answer now, from any thread, whatever becomes of the work."""
        self._abandoned.set()
        self._work = None
        self._finish(error=error)

    def run(self, name: str) -> bool:
        """Do the work for ``name`` and answer, whatever happens; False: it was abandoned before."""
        with self._lock:  # or it could be given up between the two
            work, self._work = self._work, None  # what it holds is free when it is done
            begins = work is not None and self.future.set_running_or_notify_cancel()
        if work is None or not begins:
            self._release()
            return False
        self.queue_ms = (time.monotonic() - self._submitted) * 1000
        try:
            result = work(self.still_wanted)
        except Abandoned as error:
            self._finish(error=error)
        except BaseException as error:  # Rust libraries panic with a BaseException
            self._finish(error=as_failure(error, name))
        else:
            self._finish(result=result)
        return True

    def _finish(self, *, result: Any = None, error: Exception | None = None) -> None:
        self._release()  # first: whoever has the answer may unload the model at once
        with self._lock, suppress(InvalidStateError):  # whoever comes second comes too late
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(result)

    def _release(self) -> None:
        with self._lock:
            on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done()


class Worker:
    """Runs tickets one after the other, first come first served, in a thread of its own.

    ``name`` says in messages what they wait for.
    """

    def __init__(self, name: str, *, max_waiting: int) -> None:
        self._name = name
        self._max_waiting = max_waiting
        self._line: deque[Ticket[object]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._mean_s = 0.0  # moving mean of what one request takes
        self._thread = threading.Thread(target=self._run, name=f"for {name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the line, the one at work not counted."""
        with self._changed:
            return sum(ticket.is_waiting for ticket in self._line)

    def submit(self, work: Work[T], *, on_done: Callable[[], None]) -> Ticket[T]:
        """Queue ``work``; ``on_done`` is called when it will not run any more.

        Raises Overloaded, NotReady; ``on_done`` is not called then.
        """
        ticket = Ticket(work, on_done)
        with self._changed:
            if self._stopping:
                raise NotReady(phase="shutting down", retry_after_s=5)
            waiting = sum(other.is_waiting for other in self._line)
            if waiting >= self._max_waiting:
                raise Overloaded(
                    model_id=self._name,
                    waiting=waiting,
                    max_waiting=self._max_waiting,
                    retry_after_s=self._retry_after_s(waiting),
                )
            self._line.append(ticket)  # type: ignore[arg-type]  # only its own caller reads T
            self._changed.notify()
        return ticket

    def stop(self, *, timeout_s: float = 5.0) -> bool:
        """Let the line run empty, then end the thread; False when it has not ended in time."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _retry_after_s(self, waiting: int) -> int:
        return max(1, min(_LONGEST_RETRY_S, math.ceil(waiting * self._mean_s)))

    def _run(self) -> None:
        while (ticket := self._next()) is not None:
            started = time.perf_counter()
            ticket.run(self._name)
            elapsed = time.perf_counter() - started
            self._mean_s = elapsed if not self._mean_s else 0.8 * self._mean_s + 0.2 * elapsed
            del ticket  # or the last answer would stay in memory until the next request

    def _next(self) -> Ticket[object] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._line or self._stopping)
            return self._line.popleft() if self._line else None
