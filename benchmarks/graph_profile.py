"""Where a batch's time goes inside the graph: what no scheduling around it can change.

``python -m benchmarks.graph_profile`` makes the graphs, runs batches of about 1,024 tokens, and
tells for each graph and shape the best time and the share of each kind of operation.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import openvino
from rich.console import Console
from rich.table import Table

from benchmarks.servers import pellucid

_SHAPES = ((1, 32), (32, 32), (8, 128), (4, 256))  # texts, tokens of each
_WARM_UPS, _RUNS = 3, 30
_SHOWN = 4  # kinds of operations
_TOKEN_IDS = (1_000, 20_000)


def best_run(request: openvino.InferRequest, shape: tuple[int, int]) -> tuple[float, Counter[str]]:
    """Seconds of the fastest run, and the time of each kind of operation in it, of all of them."""
    input_ids = np.random.default_rng(0).integers(*_TOKEN_IDS, shape, dtype=np.int32)
    inputs = {"input_ids": input_ids, "attention_mask": np.ones(shape, dtype=np.int32)}
    best_s, operations = float("inf"), Counter[str]()
    for number in range(_WARM_UPS + _RUNS):
        started = time.perf_counter()
        request.infer(inputs)
        seconds = time.perf_counter() - started
        if number >= _WARM_UPS and seconds < best_s:
            best_s, operations = seconds, Counter()
            for node in request.profiling_info:
                operations[node.exec_type] += node.real_time.total_seconds() * 1000
    return best_s, operations


def main() -> int:
    table = Table("graph", "texts x tokens", "ms", "tokens/s", "of which")
    with tempfile.TemporaryDirectory() as data_dir:
        with pellucid(Path(data_dir), quantization="int8"):
            pass  # made, float32 and int8, and kept
        core = openvino.Core()
        for path in sorted(Path(data_dir).rglob("*.xml")):
            graph = core.compile_model(path, "CPU", {"PERF_COUNT": True})  # precision: the CPU's
            request = graph.create_infer_request()
            for shape in _SHAPES:
                seconds, operations = best_run(request, shape)
                total = operations.total()
                most = ", ".join(
                    f"{kind} {ms / total:.0%}" for kind, ms in operations.most_common(_SHOWN)
                )
                rate = shape[0] * shape[1] / seconds
                size = f"{shape[0]} x {shape[1]}"
                table.add_row(path.stem, size, f"{seconds * 1000:.2f}", f"{rate:.0f}", most)
    Console(file=sys.stdout, width=140).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
