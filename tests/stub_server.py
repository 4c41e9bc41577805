"""``python tests/stub_server.py SHUTDOWN_TIMEOUT_S``: the server process on an engine that waits.

``/embed`` takes as many seconds as its first text says.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass

from conftest import plain_settings
from pellucid.cli.announcement import LineAnnouncement
from pellucid.cli.server import Server
from pellucid.inference.engine import EmbeddingQuery, Embeddings
from pellucid.listening import bind
from pellucid.services import build_services
from stub_engine import StubEngine


@dataclass(slots=True)
class WaitingEngine(StubEngine):
    async def embed(self, query: EmbeddingQuery) -> Embeddings:
        await asyncio.sleep(float(str(query.inputs[0])))
        return await StubEngine.embed(self, query)


if __name__ == "__main__":
    settings = plain_settings(shutdown_timeout_s=float(sys.argv[1]))
    listener = bind("127.0.0.1", 0)
    announcement = LineAnnouncement(sys.stdout)
    services = build_services(settings, engine=WaitingEngine(), progress=announcement)
    Server(services, listener=listener, announcement=announcement).run_and_leave()
