"""Many connections, mixed traffic, every answer compared with what its text gets alone; and that
the generator of all this sees what it must see."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import pytest

from benchmarks.load import load_with_mixed_traffic
from benchmarks.load_generator import Kind, LoadShape, LoadSummary, generate_load
from benchmarks.mixed_traffic import KnownText, mixed_traffic
from benchmarks.servers import pellucid

KINDS = {
    "one short text",
    "one long text",
    "4 texts, base64",
    "32 texts",
    "/embed, 2 texts",
    "not a request",
    "/health",
    "/metrics",
}


def test_nothing_is_lost_or_mixed_up() -> None:
    shape = LoadShape(connections=24, seconds=4, ramp_s=0.5)
    with pellucid(Path(os.environ["PELLUCID_DATA_DIR"])) as server:
        summary = load_with_mixed_traffic(server.port, shape, num_texts=48, inspections=False)
    assert summary.num_failures == 0, summary.as_json()
    assert summary.refused == 0, summary.as_json()
    assert set(summary.answered) == KINDS
    assert summary.left > 0  # and the others did not feel it


def _known(count: int) -> list[KnownText]:
    """Texts with vectors that nobody could take for one another."""
    return [
        KnownText(f"text {i}", vector, 5) for i, vector in enumerate(np.eye(count, 8, dtype="f4"))
    ]


def _answer(vector: Sequence[float], *, status: str = "200 OK", tokens: int = 5) -> bytes:
    body = orjson.dumps(
        {"data": [{"index": 0, "embedding": list(vector)}], "usage": {"prompt_tokens": tokens}}
    )
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(_answer([1, 0, 0, 0, 0, 0, 0, 0]), {}, id="right"),
        pytest.param(_answer([0, 1, 0, 0, 0, 0, 0, 0]), {"wrong": 1}, id="another text's"),
        pytest.param(_answer([float("nan")] * 8), {"wrong": 1}, id="no numbers"),
        pytest.param(_answer([1, 0, 0]), {"wrong": 1}, id="too short"),
        pytest.param(
            _answer([1, 0, 0, 0, 0, 0, 0, 0], tokens=6), {"wrong": 1}, id="tokens of another"
        ),
        pytest.param(_answer([], status="503 Service Unavailable"), {"server_errors": 1}, id="5xx"),
        pytest.param(_answer([], status="404 Not Found"), {"wrong": 1}, id="4xx"),
        pytest.param(_answer([1, 0, 0])[:-4], {"lost": 1}, id="half an answer"),
        pytest.param(b"", {"lost": 1}, id="no answer"),
        pytest.param(b"not HTTP at all\r\n\r\n", {"lost": 1}, id="not HTTP"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", {"wrong": 1}, id="other form"
        ),
        pytest.param(
            b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n",
            {"refused": 1},
            id="refused",
        ),
    ],
)
def test_what_goes_wrong_is_counted(answer: bytes, expected: dict[str, int]) -> None:
    summary = asyncio.run(_load_on(answer))
    found = {
        name: getattr(summary, name)
        for name in ("lost", "server_errors", "wrong", "refused")
        if getattr(summary, name)
    }
    assert found == expected
    failures = sum(expected.values()) - expected.get("refused", 0)
    assert summary.num_failures == failures
    assert len(summary.complaints) == failures


async def _load_on(answer: bytes) -> LoadSummary:
    """One request, to a server that answers with these bytes and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        first_of_all = mixed_traffic(port, _known(2), inspections=False)[0]
        kind = Kind(first_of_all.name, 1, first_of_all.exchanges[:1])
        return await generate_load(port, [kind], LoadShape(connections=1, requests=1))
