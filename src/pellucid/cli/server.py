"""The server process from start to a clean end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from functools import partial
from types import FrameType
from typing import NoReturn

import uvicorn

from pellucid.api.app import create_app
from pellucid.api.http_protocol import HttpProtocol
from pellucid.api.interruption import InFlight
from pellucid.cli.announcement import Announcement
from pellucid.errors import NotReady
from pellucid.listening import allow_open_files
from pellucid.progress import ProgressEvent
from pellucid.services import Services, build_services
from pellucid.settings import Settings
from pellucid.telemetry import configure_logs, get_logger

_KEEP_ALIVE_S = 75  # longer than the pools of most clients: whoever closes first loses no request
_ANSWER_S = 2  # to send the last answers, once all work has ended
_CLOSE_S = 5.0  # to close everything; a forward pass or a download cannot be interrupted
_POLL_S = 0.02
_RETRY_AFTER_S = 5
_OTHER_FILES = 512  # weights, caches, logs, connections to the Hub
_PARENT_POLL_S = 1.0


class Server(uvicorn.Server):
    """Tells when it accepts connections, ends what it has begun, and ends in time."""

    def __init__(
        self,
        services: Services,
        *,
        listener: socket.socket,
        announcement: Announcement,
    ) -> None:
        app, settings = create_app(services), services.settings
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                http=partial(HttpProtocol, max_connections=settings.max_connections),  # type: ignore[arg-type]
                ws="none",
                log_config=None,
                access_log=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_ANSWER_S,
            )
        )
        self._engine = services.engine
        self._in_flight: InFlight = app.state.in_flight
        self._timeout_s = settings.shutdown_timeout_s
        self._listener = listener
        self._announcement = announcement

    def run_and_leave(self) -> NoReturn:
        """Serve until SIGTERM or SIGINT, close everything, and end the process."""
        for ending in (signal.SIGTERM, signal.SIGINT):
            signal.signal(ending, _end_quietly)  # uvicorn raises them once more when it has ended
        self.run(sockets=[self._listener])
        # Not by returning: a thread that still imports or loads would fail loudly, or hold us up.
        _leave(self._announcement)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        host, port = self._listener.getsockname()[:2]
        ready = {"host": host, "port": port, "pid": os.getpid()}
        self._announcement(ProgressEvent("server_ready", ready))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new connections, finish what is at work, answer the rest, close everything."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()  # idle ones close, the others after their answer
        await self._finish_work()
        _leave_within(_ANSWER_S + _CLOSE_S, self._announcement)
        await super().shutdown(sockets=sockets)

    async def _finish_work(self) -> None:
        until = time.monotonic() + self._timeout_s
        draining = asyncio.ensure_future(self._engine.drain(timeout_s=self._timeout_s))
        while self.server_state.tasks and time.monotonic() < until:
            await asyncio.sleep(_POLL_S)
        left = NotReady(phase="shutting down", retry_after_s=_RETRY_AFTER_S)
        if num_left := self._in_flight.interrupt_all(left):
            get_logger("SERVER").warning("ended before all was answered", requests=num_left)
        await asyncio.wait({draining}, timeout=_POLL_S)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:  # told twice
            os._exit(0)
        _leave_within(self._timeout_s + _ANSWER_S + _CLOSE_S, self._announcement)
        super().handle_exit(sig, frame)


def run_server(
    settings: Settings,
    listener: socket.socket,
    announcement: Announcement,
    *,
    exit_with_parent: bool = False,
) -> None:
    """Serve on ``listener`` until SIGTERM or SIGINT, close everything, and end the process."""
    configure_logs(
        level=settings.log_level, format=settings.log_format, categories=settings.log_categories
    )
    # Each connection is an open file; those beyond the limit are answered, too.
    allow_open_files(2 * settings.max_connections + _OTHER_FILES)
    services = build_services(settings, progress=announcement)
    if services.auth_token_generated and services.auth_token is not None:
        announcement.show_token(services.auth_token)
    server = Server(services, listener=listener, announcement=announcement)
    if exit_with_parent:
        threading.Thread(target=_follow_parent, name="parent-watch", daemon=True).start()
    server.run_and_leave()


def _end_quietly(signum: int, frame: FrameType | None) -> None:
    """A process told to end has done what it was told: exit code 0."""


def _leave_within(seconds: float, announcement: Announcement) -> None:
    """Even if a thread does not end."""
    timer = threading.Timer(seconds, _leave, args=(announcement,))
    timer.daemon = True
    timer.start()


def _leave(announcement: Announcement) -> NoReturn:
    announcement.close()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(0)


def _follow_parent() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
