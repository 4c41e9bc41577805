"""What an embedding server takes: memory, time to start, and whether its memory stays flat."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop

from benchmarks.bulk_http import bulk_seconds, requests_of
from benchmarks.load import ceiling, load_with_mixed_traffic
from benchmarks.load_generator import Kind, LoadShape, LoadSummary, generate_load
from benchmarks.mixed_traffic import EMBEDDINGS, embed_alone, mixed_traffic
from benchmarks.servers import Server, pellucid
from benchmarks.sizes import Size
from benchmarks.targets import Row, not_measured, row_of
from benchmarks.texts import long_texts, mixed_texts, short_texts

_CONNECTIONS = 200
_RAMP_S = 5.0
_SOAK_CONNECTIONS = 16
_SAMPLE_S = 0.5
_WARM_UP_SHARE = 0.1
_MEGABYTE = 1e6


def start_and_memory_rows(data_dir: Path, size: Size) -> list[Row]:
    """Several starts with the graph at hand; in the last one bulk jobs, then a look at memory."""
    print("starts and memory", file=sys.stderr)
    starts = []
    for _ in range(size.starts - 1):
        with pellucid(data_dir) as server:
            starts.append(server.ready_s)
    with pellucid(data_dir) as server:
        starts.append(server.ready_s)
        ready = server.resident_bytes() / _MEGABYTE
        requests = [requests_of(texts, path=EMBEDDINGS) for texts in (short_texts(), long_texts())]
        after = []
        for _ in range(3):
            for each in requests:
                bulk_seconds(server.port, each)
            after.append(server.resident_bytes() / _MEGABYTE)
    return [
        row_of("start", starts),
        row_of("memory", [max(after)], when_ready_mb=round(ready, 1)),
    ]


def load_row(data_dir: Path, size: Size) -> Row:
    """Mixed traffic on many connections; every answer is checked."""
    print(f"{_CONNECTIONS} connections for {size.load_s:.0f} s", file=sys.stderr)
    shape = LoadShape(connections=_CONNECTIONS, seconds=size.load_s, ramp_s=_RAMP_S)
    with pellucid(data_dir) as server:
        summary = load_with_mixed_traffic(server.port, shape)
    return row_of(
        "load",
        [float(summary.num_failures)],
        summary=summary.as_json(),
        generator_ceiling_per_s=round(ceiling(connections=_CONNECTIONS)),
    )


def flat_memory_row(data_dir: Path, size: Size) -> Row:
    """Requests of mixed length; memory is sampled all the while."""
    print(f"{size.soak_requests} requests of mixed length", file=sys.stderr)
    with pellucid(data_dir) as server:
        known = embed_alone(server.port, list(dict.fromkeys(mixed_texts(900)))[:256])
        kinds = [
            kind
            for kind in mixed_traffic(server.port, known, inspections=False)
            if kind.name in ("one short text", "one long text", "4 texts, base64", "gone at once")
        ]
        summary, samples = uvloop.run(_soak(server, kinds, size.soak_requests))
    if summary.num_failures:
        complaints = "; ".join(summary.complaints)
        return not_measured("flat_memory", f"{summary.num_failures} failures: {complaints}")
    first = int(len(samples) * _WARM_UP_SHARE)
    base = samples[first]
    moved = max(abs(each - base) for each in samples[first:]) / base * 100
    return row_of(
        "flat_memory",
        [moved],
        requests=size.soak_requests,
        requests_per_s=round(summary.requests_per_s, 1),
        resident_mb=[round(each / _MEGABYTE, 1) for each in samples[:: max(1, len(samples) // 20)]],
    )


async def _soak(
    server: Server, kinds: list[Kind], num_requests: int
) -> tuple[LoadSummary, list[int]]:
    """The summary, and resident bytes over time."""
    shape = LoadShape(connections=_SOAK_CONNECTIONS, requests=num_requests)
    samples: list[int] = []

    async def sample() -> None:
        while True:
            samples.append(server.resident_bytes())
            await asyncio.sleep(_SAMPLE_S)

    sampling = asyncio.create_task(sample())
    summary = await generate_load(server.port, kinds, shape)
    sampling.cancel()
    return summary, samples
