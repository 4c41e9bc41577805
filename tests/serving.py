"""A real server for tests: uvicorn in a thread, on a port that the system chooses."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn
from fastapi import FastAPI

from pellucid.api.http_protocol import HttpProtocol
from pellucid.listening import bind

_START_S = 10.0


@contextmanager
def served(app: FastAPI, *, max_connections: int = 1000, **timeouts_s: float) -> Iterator[str]:
    """Serve ``app`` and give its base URL; ended when the block ends.

    ``timeouts_s``: those of ``HttpProtocol``, by their names there.
    """
    listener = bind("127.0.0.1", 0)
    config = uvicorn.Config(
        app,
        http=partial(HttpProtocol, max_connections=max_connections, **timeouts_s),  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + _START_S
        while not server.started:
            assert thread.is_alive(), "the server ended while it started"
            assert time.monotonic() < until, "the server did not start in time"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=_START_S)
        listener.close()
