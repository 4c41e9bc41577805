"""One graph, compiled for this machine's CPU."""

from __future__ import annotations

import mmap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pellucid.models import machine
from pellucid.models.backend import Batch, Float32, Int64
from pellucid.models.graph.buckets import Buckets
from pellucid.models.graph.feed import Feeder, Int32
from pellucid.models.graph.runtime import ov

Precision = Literal["bfloat16", "float32"]
_OPENVINO_NAME = {"bfloat16": "bf16", "float32": "f32"}


def fastest_precision() -> Precision:
    """bfloat16 where the CPU multiplies matrices in it."""
    capabilities = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bfloat16" if "BF16" in capabilities else "float32"


class GraphFile:
    """A graph as it lies on disk, held open: it stays readable when another server, of other
    versions, replaces it."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.definition = path.read_bytes()
        self.weights = _mapped(path.with_suffix(".bin"))

    def forget_pages(self) -> None:
        """Give the memory of the weights as stored back: most were read once, to be packed for the
        products, and what is needed again (rows of the embedding table) is read again."""
        if hasattr(self.weights, "madvise"):
            self.weights.madvise(mmap.MADV_DONTNEED)
        machine.trim_heap()


class CompiledGraph:
    """Runs batches of any shape in the shapes of its buckets. Used by one thread at a time."""

    def __init__(
        self,
        file: GraphFile,
        *,
        precision: Precision,
        num_threads: int | None,
        input_names: Sequence[str],
        pad_id: int,
        buckets: Buckets,
    ) -> None:
        """Raises RuntimeError, as OpenVINO does for everything."""
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _OPENVINO_NAME[precision],
            "NUM_STREAMS": 1,  # one batch at a time, all threads on it
        }
        if num_threads is not None:
            options["INFERENCE_NUM_THREADS"] = num_threads
        self._file = file  # the graph reads its weights where they are
        weights = ov.Tensor(np.frombuffer(file.weights, dtype=np.uint8), shared_memory=True)
        core = ov.Core()
        graph = core.read_model(file.definition, weights)
        self._request = core.compile_model(graph, "CPU", options).create_infer_request()
        self._input_names = tuple(input_names)
        self._pad_id = pad_id
        self._buckets = buckets
        self._dimensions = self._request.model_outputs[0].partial_shape[1].get_length()

    def encode(self, batch: Batch) -> Float32:
        """[batch, dimensions]. Raises RuntimeError, ValueError."""
        feeder = Feeder(batch, self._input_names, pad_id=self._pad_id)
        embeddings = np.empty((len(batch.input_ids), self._dimensions), dtype=np.float32)
        for run in self._buckets.runs(feeder.lengths):
            feed = feeder.feed(run.rows, num_rows=run.num_rows, seq_len=run.seq_len)
            embeddings[run.rows] = self._infer(feed)[: run.rows.size]
        return embeddings

    def warm_up(self, *, max_tokens: int, budget_s: float) -> tuple[int, int]:
        """Run every shape up to a length once, those of few tokens first, until the time is over.
        Returns how many were run, and how many there are."""
        until = time.monotonic() + budget_s
        shapes = [shape for shape in self._buckets.shapes() if shape[1] <= max_tokens]
        for done, (num_rows, seq_len) in enumerate(shapes):
            if time.monotonic() >= until:
                return done, len(shapes)
            ids = np.full((num_rows, seq_len), self._pad_id, dtype=np.int64)
            batch = Batch(input_ids=ids, attention_mask=np.ones_like(ids))
            feeder = Feeder(batch, self._input_names, pad_id=self._pad_id)
            self._infer(feeder.feed(_all_rows(ids), num_rows=num_rows, seq_len=seq_len))
        return len(shapes), len(shapes)

    def _infer(self, feed: Mapping[str, Int32]) -> Float32:
        """The output itself, good until the next call."""
        # the graph reads the arrays where they are; the GIL is released meanwhile
        self._request.infer(feed, share_inputs=True, share_outputs=True)
        output: Float32 = self._request.output_tensors[0].data
        return output


def _mapped(path: Path) -> mmap.mmap:
    """A file as memory. Private, as OpenVINO takes writable memory only; it never writes."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _all_rows(ids: Int64) -> Int64:
    return np.arange(len(ids))
