"""Keep a server saturated with a bulk job until ended: 8 requests of 32 texts always in flight.

Run as ``python -m benchmarks.bulk_job PORT``.
"""

from __future__ import annotations

import asyncio
import sys
from itertools import cycle, islice

import uvloop

from benchmarks.bulk_http import requests_of
from benchmarks.http_client import AsyncConnection
from benchmarks.mixed_traffic import EMBEDDINGS
from benchmarks.texts import long_texts, short_texts

_IN_FLIGHT = 8


async def _keep_busy(port: int) -> None:
    texts = [text for pair in zip(short_texts(256), long_texts(), strict=True) for text in pair]
    requests = requests_of(texts, path=EMBEDDINGS)

    async def ask(number: int) -> None:
        connection = await AsyncConnection.open(port)
        for request in islice(cycle(requests), number, None):
            reply = await connection.exchange(request)
            if reply.status != 200:
                raise RuntimeError(f"status {reply.status}: {reply.body[:300]!r}")

    await asyncio.gather(*(ask(number) for number in range(_IN_FLIGHT)))


if __name__ == "__main__":
    uvloop.run(_keep_busy(int(sys.argv[1])))
