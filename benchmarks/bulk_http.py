"""A bulk job over HTTP: requests of many texts, all in flight at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import orjson
import uvloop
from numpy.typing import NDArray

from benchmarks.http_client import AsyncConnection, Reply, post

PER_REQUEST = 32


def requests_of(
    texts: Sequence[str], *, path: str, per_request: int = PER_REQUEST, **fields: object
) -> list[bytes]:
    """The requests, in OpenAI's form."""
    starts = range(0, len(texts), per_request)
    return [post(path, {"input": texts[start : start + per_request], **fields}) for start in starts]


def bulk_seconds(port: int, requests: Sequence[bytes]) -> float:
    """From the first byte sent until the last answer is there; answers are not decoded in it."""
    return uvloop.run(_send_all(port, requests))[0]


def bulk_vectors(port: int, requests: Sequence[bytes]) -> NDArray[np.float32]:
    """[n, dimensions]. Raises RuntimeError if an answer is none."""
    _, replies = uvloop.run(_send_all(port, requests))
    return np.concatenate([_vectors(reply) for reply in replies])


async def _send_all(port: int, requests: Sequence[bytes]) -> tuple[float, list[Reply]]:
    connections = [await AsyncConnection.open(port) for _ in requests]
    try:
        started = asyncio.get_running_loop().time()
        exchanges = zip(connections, requests, strict=True)
        replies = await asyncio.gather(*(each.exchange(request) for each, request in exchanges))
        seconds = asyncio.get_running_loop().time() - started
    finally:
        for connection in connections:
            connection.close()
    for reply in replies:
        if reply.status != 200:
            raise RuntimeError(f"status {reply.status}: {reply.body[:300]!r}")
    return seconds, list(replies)


def _vectors(reply: Reply) -> NDArray[np.float32]:
    items = orjson.loads(reply.body)["data"]
    return np.array([item["embedding"] for item in items], dtype=np.float32)
