"""The server process from start to a clean end."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType

import uvicorn

from pellucid.api.app import create_app
from pellucid.cli.announcement import Announcement
from pellucid.progress import ProgressEvent
from pellucid.services import build_services
from pellucid.settings import Settings
from pellucid.telemetry import configure_logs

_GRACE_S = 5  # for requests in flight when asked to end
_LIMIT_S = 10.0  # for everything; a forward pass or a download cannot be interrupted otherwise
_PARENT_POLL_S = 1.0


class _Server(uvicorn.Server):
    """Tells when it accepts connections, and ends in time even if a thread does not."""

    def __init__(
        self, config: uvicorn.Config, *, listener: socket.socket, announcement: Announcement
    ) -> None:
        super().__init__(config)
        self._listener = listener
        self._announcement = announcement

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        host, port = self._listener.getsockname()[:2]
        ready = {"host": host, "port": port, "pid": os.getpid()}
        self._announcement(ProgressEvent("server_ready", ready))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            timer = threading.Timer(_LIMIT_S, _leave, args=(self._announcement,))
            timer.daemon = True
            timer.start()
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
    services = build_services(settings, progress=announcement)
    if services.auth_token_generated and services.auth_token is not None:
        announcement.show_token(services.auth_token)
    config = uvicorn.Config(
        create_app(services),
        lifespan="on",
        http="h11",  # what is tested, whatever else is installed; Java's client offers an upgrade
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = _Server(config, listener=listener, announcement=announcement)
    if exit_with_parent:
        threading.Thread(target=_follow_parent, name="parent-watch", daemon=True).start()
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, _end_quietly)  # uvicorn raises them once more when it has ended
    server.run(sockets=[listener])
    # Not by returning: a thread that still imports or loads would fail loudly, or hold us up.
    _leave(announcement)


def _end_quietly(signum: int, frame: FrameType | None) -> None:
    """A process told to end has done what it was told: exit code 0."""


def _leave(announcement: Announcement) -> None:
    announcement.close()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(0)


def _follow_parent() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
