"""Working memory for inspections, handed out in the order of asking."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future, InvalidStateError


class Reservation:
    """Bytes of a gate, or none yet. ``release`` gives them back, more than once does no harm."""

    def __init__(self, gate: MemoryGate) -> None:
        self._gate = gate
        self._held_bytes = 0
        self._waiting: tuple[int, Future[None]] | None = None
        self._released = False

    def try_take(self, wanted_bytes: int) -> bool:
        """Whether the bytes could be had at once; False when any wait for theirs. Thread-safe."""
        return self._gate._try_take(self, wanted_bytes)

    async def take(self, wanted_bytes: int) -> None:
        """Wait for the bytes; when cancelled the place in the line is given up."""
        future = self._gate._queue(self, wanted_bytes)
        await asyncio.wrap_future(future)

    def release(self) -> None:
        """Give back what is held or waited for. Thread-safe."""
        self._gate._release(self)


class MemoryGate:
    """Lets inspections of all models together have at most ``limit_bytes``, first come first
    served. One that alone is larger is let in when nobody else is: admission refuses those."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._held_bytes = 0
        self._line: deque[tuple[Reservation, int, Future[None]]] = deque()

    @property
    def held_bytes(self) -> int:
        with self._lock:
            return self._held_bytes

    @property
    def waiting(self) -> int:
        with self._lock:
            return len(self._line)

    def reservation(self) -> Reservation:
        return Reservation(self)

    def _try_take(self, reservation: Reservation, wanted_bytes: int) -> bool:
        with self._lock:
            if self._line or not self._fits(wanted_bytes):
                return False
            self._give(reservation, wanted_bytes)
            return True

    def _queue(self, reservation: Reservation, wanted_bytes: int) -> Future[None]:
        future: Future[None] = Future()
        with self._lock:
            self._line.append((reservation, wanted_bytes, future))
            self._serve()
        return future

    def _release(self, reservation: Reservation) -> None:
        with self._lock:
            reservation._released = True
            self._held_bytes -= reservation._held_bytes
            reservation._held_bytes = 0
            self._line = deque(entry for entry in self._line if entry[0] is not reservation)
            self._serve()

    def _serve(self) -> None:
        while self._line and self._fits(self._line[0][1]):
            reservation, wanted_bytes, future = self._line.popleft()
            self._give(reservation, wanted_bytes)
            try:
                future.set_result(None)
            except InvalidStateError:  # cancelled just now: its release comes
                continue

    def _fits(self, wanted_bytes: int) -> bool:
        return not self._held_bytes or self._held_bytes + wanted_bytes <= self._limit_bytes

    def _give(self, reservation: Reservation, wanted_bytes: int) -> None:
        if not reservation._released:  # whoever has gone needs none
            reservation._held_bytes += wanted_bytes
            self._held_bytes += wanted_bytes
