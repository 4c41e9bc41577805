"""A limit for a whole HTTP exchange: httpx bounds each wait for bytes, never their sum."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Any

_CONNECTED = ("connect_tcp.complete", "start_tls.complete")


class Deadline:
    """Ends the exchange that it traces after ``seconds``, however steadily its bytes drip.

        with Deadline(40) as deadline:
            client.get(url, extensions={"trace": deadline.trace})

    The connection is shut down, so the request fails like one whose server went away; then
    ``passed`` is true. ``lift`` lets it go on without a limit.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.passed = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._pass)
        self._timer.daemon = True

    def trace(self, event: str, details: dict[str, Any]) -> None:
        """httpx's ``trace`` extension: tells each connection as it is made."""
        if not event.endswith(_CONNECTED):
            return
        with self._lock:
            self._socket = details["return_value"].get_extra_info("socket")
            if self.passed:
                self._shut_down()

    def lift(self) -> None:
        self._timer.cancel()

    def __enter__(self) -> Deadline:
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.lift()

    def _pass(self) -> None:
        with self._lock:
            self.passed = True
            self._shut_down()

    def _shut_down(self) -> None:
        if self._socket is None:
            return
        with contextlib.suppress(OSError):  # closed meanwhile
            # The plain call: SSLSocket's own would take the session from under its reader.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
