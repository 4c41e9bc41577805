"""One short text after another, on one kept connection: idle, and beside a bulk job."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain, cycle

import numpy as np

from benchmarks.alternating import alternate, percentiles_ms, ratios
from benchmarks.contenders import INFINITY_EMBEDDINGS, INFINITY_MODEL, Contenders
from benchmarks.http_client import Connection, post
from benchmarks.mixed_traffic import EMBEDDINGS
from benchmarks.servers import Server
from benchmarks.sizes import Size
from benchmarks.targets import Row, not_measured, row_of
from benchmarks.texts import short_texts

_OURS, _ONNX, _INFINITY = "pellucid", "ONNX Runtime", "Infinity"
_COMPARISONS = (("single_onnx", _OURS, _ONNX), ("single_infinity", _INFINITY, _OURS))
_STAGE = re.compile(r"(\w+);dur=([\d.]+)")
_BULK_STARTS_S = 1.5

# Seconds of each call of one round.
Calls = Callable[[], list[float]]


def single_rows(contenders: Contenders, size: Size) -> list[Row]:
    """Over HTTP and in process, in turns."""
    texts = short_texts()[: size.calls_per_round]
    sides: dict[str, Calls] = {_OURS: _over_http(contenders.own_server(), EMBEDDINGS, texts)}
    # One thread is faster where others want the cores; ours is held against the better of the two.
    given = (contenders.onnx_runtime(), contenders.onnx_runtime(num_threads=1))
    if onnx := [each for each in given if each is not None]:
        sides[_ONNX] = lambda: min((peer.each(texts) for peer in onnx), key=np.median)
    if (infinity := contenders.infinity()) is not None:
        sides[_INFINITY] = _over_http(infinity, INFINITY_EMBEDDINGS, texts, model=INFINITY_MODEL)
    print(f"one short text: {', '.join(sides)}", file=sys.stderr)
    alternate(sides, rounds=1)  # the warm-up
    found = alternate(sides, rounds=size.single_rounds)
    medians = {name: [float(np.median(calls)) for calls in found[name]] for name in found}
    latency = {name: percentiles_ms(list(chain(*rounds))) for name, rounds in found.items()}
    stages_ms = _median_stages_ms(contenders.own_server(), texts)
    rows = []
    for row, above, below in _COMPARISONS:
        if missing := [name for name in (above, below) if name not in found]:
            rows.append(not_measured(row, contenders.reasons[missing[0]]))
            continue
        told = {name: latency[name] for name in (above, below)}
        found_ratios = ratios(medians[above], medians[below])
        rows.append(row_of(row, found_ratios, latency=told, stages_ms=stages_ms))
    return rows


def busy_rows(contenders: Contenders, size: Size) -> list[Row]:
    """In turns: the server idle, and beside a bulk job in a process of its own."""
    server = contenders.own_server()
    print("one short text beside a bulk job", file=sys.stderr)
    _for_a_while(server, 0.5)  # the warm-up
    idle: list[float] = []
    busy: list[float] = []
    command = [sys.executable, "-m", "benchmarks.bulk_job", str(server.port)]
    for _ in range(2):
        idle += _for_a_while(server, size.busy_s / 4)
        with subprocess.Popen(command) as bulk_job:
            try:
                time.sleep(_BULK_STARTS_S)
                busy += _for_a_while(server, size.busy_s / 2)
                if bulk_job.poll() is not None:
                    raise RuntimeError("the bulk job ended before its time")
            finally:
                bulk_job.terminate()
        time.sleep(_BULK_STARTS_S)  # what it left waiting is done by then
    latency = {"idle": percentiles_ms(idle), "busy": percentiles_ms(busy)}
    p95_ms = {name: each["p95_ms"] for name, each in latency.items()}
    return [
        row_of("busy_p95", [p95_ms["busy"]], latency=latency, calls=len(busy)),
        row_of("busy_idle", [p95_ms["busy"] / p95_ms["idle"]]),
    ]


def _over_http(server: Server, path: str, texts: tuple[str, ...], **fields: str) -> Calls:
    requests = [post(path, {"input": text, **fields}) for text in texts]

    def ask() -> list[float]:
        with Connection(server.port) as connection:
            return [_seconds(connection, request) for request in requests]

    return ask


def _median_stages_ms(server: Server, texts: tuple[str, ...]) -> dict[str, float]:
    """Where the server says that its time went."""
    with Connection(server.port) as connection:
        replies = [connection.exchange(post(EMBEDDINGS, {"input": text})) for text in texts]
    stages: dict[str, list[float]] = {}
    for reply in replies:
        for name, duration in _STAGE.findall(reply.headers[b"server-timing"].decode()):
            stages.setdefault(name, []).append(float(duration))
    return {name: round(float(np.median(each)), 3) for name, each in stages.items()}


def _for_a_while(server: Server, seconds: float) -> list[float]:
    requests = [post(EMBEDDINGS, {"input": text}) for text in short_texts()]
    found: list[float] = []
    until = time.perf_counter() + seconds
    with Connection(server.port) as connection:
        for request in cycle(requests):
            found.append(_seconds(connection, request))
            if time.perf_counter() > until:
                break
    return found


def _seconds(connection: Connection, request: bytes) -> float:
    reply = connection.exchange(request)
    if reply.status != 200:
        raise RuntimeError(f"status {reply.status}: {reply.body[:300]!r}")
    return reply.seconds
