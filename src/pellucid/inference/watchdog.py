"""The thread that notices models which hang, died or fail, and has them given up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

logger = logging.getLogger("pellucid.inference")

_LONGEST_LOOK_S = 1.0
_SHORTEST_LOOK_S = 0.01
_STANDSTILL_S = 1.0  # a look that comes so late: the process stood still, or the machine


class Watched(Protocol):
    """One model's thread, as ``ModelLine`` is."""

    def trouble(self) -> str | None: ...

    def condemn(self, what: str) -> None: ...

    def try_out(self) -> None: ...

    def allow(self, seconds: float) -> None: ...


class Watchdog:
    """Looks at every line several times in the shortest time that matters. By
    ``time.monotonic()``: setting the clock changes nothing."""

    def __init__(
        self,
        lines: Callable[[], Sequence[Watched]],
        *,
        stall_timeout_s: float,
        canary_interval_s: float,
    ) -> None:
        """Looks from now on, in a thread of its own, until ``stop``."""
        shortest = min(stall_timeout_s, canary_interval_s) / 5
        self._interval_s = max(_SHORTEST_LOOK_S, min(_LONGEST_LOOK_S, shortest))
        self._lines = lines
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._stopped.wait(self._interval_s):
            now = time.monotonic()
            late_s, last = now - last - self._interval_s, now
            for line in self._lines():
                try:
                    if late_s > _STANDSTILL_S:  # then the models stood still as well
                        line.allow(late_s)
                    self._look_at(line)
                except Exception:  # one line's trouble must not leave the others unwatched
                    logger.exception("the watchdog could not look after a model")

    def _look_at(self, line: Watched) -> None:
        trouble = line.trouble()
        if trouble is not None:
            line.condemn(trouble)
        else:
            line.try_out()
