"""Progress events, and who hears them: a parent process, a terminal, a page."""

from __future__ import annotations

import json
import os
import queue
import select
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ProgressType = Literal[
    "model_cached",
    "download_started",
    "download_progress",
    "model_converting",
    "model_loaded",
    "server_ready",
    "error",
]


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """One step. ``type`` and the keys of ``data`` are a wire contract (``PROGRESS:`` lines)."""

    type: ProgressType
    data: Mapping[str, Any] = field(default_factory=dict)


ProgressListener = Callable[[ProgressEvent], None]


def ignore_progress(event: ProgressEvent) -> None:
    """The listener for callers that show nothing."""


class ProgressLines:
    """Writes each event as one ``PROGRESS:{json}`` line for a parent process.

    Events may come from any thread. A thread of its own writes them, so a parent that stops
    reading never stops the work; one that is gone is not written to again.
    """

    _MAX_WAITING = 1_000  # lines a parent may lag behind before download_progress is left out

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_all, name="progress", daemon=True)
        self._writer.start()

    def __call__(self, event: ProgressEvent) -> None:
        if event.type == "download_progress" and self._lines.qsize() >= self._MAX_WAITING:
            return
        self._lines.put(progress_line(event))

    def close(self, *, timeout_s: float = 1.0) -> None:
        """Wait until everything is written, or the time is over."""
        self._lines.put(None)
        self._writer.join(timeout_s)

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                _write_whole(self._fd, line)
            except OSError:  # the parent is gone, nobody listens any more
                return


def progress_line(event: ProgressEvent) -> bytes:
    """The line of one event, ASCII only, so that it reads the same in every encoding."""
    payload = {"type": event.type, "data": dict(event.data)}
    return b"PROGRESS:" + json.dumps(payload, separators=(",", ":")).encode("ascii") + b"\n"


def _write_whole(fd: int, line: bytes) -> None:
    while line:
        try:
            line = line[os.write(fd, line) :]
        except BlockingIOError:  # a parent may hand over a non-blocking pipe
            select.select([], [fd], [])
