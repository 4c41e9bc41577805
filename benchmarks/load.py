"""Load a server with mixed traffic and check every answer; exit code 1 if one is lost or wrong.

``python -m benchmarks.load --connections 200 --seconds 60`` starts a server of its own;
``--port`` takes one that runs on this machine without sign-in; ``--ceiling`` tells what the
generator itself can do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import uvloop

from benchmarks.http_client import Connection, post
from benchmarks.load_generator import Exchange, Kind, LoadShape, LoadSummary, generate_load
from benchmarks.mixed_traffic import EMBEDDINGS, embed_alone, mixed_traffic
from benchmarks.servers import free_port, pellucid
from benchmarks.texts import mixed_texts, short_texts

NUM_TEXTS = 192


def load_with_mixed_traffic(
    port: int, shape: LoadShape, *, num_texts: int = NUM_TEXTS, inspections: bool = True
) -> LoadSummary:
    """Mixed traffic over as many texts, which are embedded alone first."""
    known = embed_alone(port, _distinct(num_texts))
    kinds = mixed_traffic(port, known, inspections=inspections)
    return uvloop.run(generate_load(port, kinds, shape))


def ceiling(*, connections: int, seconds: float = 3.0) -> float:
    """Requests per second that the generator reaches against a server that only answers."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.trivial_server", str(port)]
    with subprocess.Popen(command) as server:
        try:
            _wait_for(port)
            exchanges = [
                Exchange(post(EMBEDDINGS, {"input": text}), lambda reply: None)
                for text in short_texts(64)
            ]
            shape = LoadShape(connections=connections, seconds=seconds)
            kinds = [Kind("trivial", 1, exchanges)]
            return uvloop.run(generate_load(port, kinds, shape)).requests_per_s
        finally:
            server.terminate()


def _distinct(num_texts: int) -> list[str]:
    """One and the same word may be two texts."""
    return list(dict.fromkeys(mixed_texts(4 * num_texts)))[:num_texts]


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            Connection(port).__exit__()
            return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--ramp", type=float, default=5.0, help="seconds until all have come")
    parser.add_argument("--port", type=int, help="of a server that runs already")
    parser.add_argument("--ceiling", action="store_true", help="measure the generator itself")
    given = parser.parse_args()
    if given.ceiling:
        rate = ceiling(connections=given.connections)
        print(json.dumps({"ceiling_requests_per_s": round(rate)}))
        return 0
    shape = LoadShape(connections=given.connections, seconds=given.seconds, ramp_s=given.ramp)
    if given.port is not None:
        summary = load_with_mixed_traffic(given.port, shape)
    else:
        with pellucid() as server:
            summary = load_with_mixed_traffic(server.port, shape)
    print(json.dumps(summary.as_json(), indent=2))
    return 1 if summary.num_failures else 0


if __name__ == "__main__":
    sys.exit(main())
