"""The backend on OpenVINO: embeddings on the CPU, without torch once a model is converted."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np

from pellucid.errors import (
    CapabilityMissing,
    ForwardOutOfMemory,
    GraphUnavailable,
    ModelNotLoaded,
)
from pellucid.models import machine
from pellucid.models.backend import (
    AttentionSink,
    Batch,
    CaptureSpec,
    EmbeddingInput,
    EmbeddingRuntime,
    Encoding,
    Float32,
    Int64,
    ModelInfo,
    ModelOutputs,
    Parity,
    Quantization,
    Truncation,
)
from pellucid.models.graph import entry as entry_files
from pellucid.models.graph.buckets import Buckets
from pellucid.models.graph.compiled import (
    CompiledGraph,
    GraphFile,
    Precision,
    fastest_precision,
)
from pellucid.models.graph.entry import GraphEntry
from pellucid.models.graph.obtaining import obtain
from pellucid.models.graph.reference import parity
from pellucid.models.sources.source import ModelSource
from pellucid.models.text.embedding_tokenizer import EmbeddingTokenizer
from pellucid.progress import ProgressListener, ignore_progress

MIN_PARITY: Mapping[Quantization, float] = {"none": 0.999, "int8": 0.95}
_WARM_UP_S = 2.5  # the default model needs half of it; large ones compile rare shapes when met
# Of a model that takes texts of any length; its shapes grow with the length, so that the list
# stays short.
_LONGEST = 131_072
_OUT_OF_MEMORY = ("bad_alloc", "allocate memory", "out of memory")
_logger = logging.getLogger(__name__)


class OpenVinoBackend:
    """One converted model. It embeds and does nothing else; tokenising is thread-safe."""

    def __init__(
        self,
        entry: GraphEntry,
        folder: Path,
        *,
        quantization: Quantization,
        num_threads: int | None,
    ) -> None:
        """Raises OSError."""
        self._entry = entry
        self.folder = folder  # of the graph
        self._exact_file = GraphFile(folder / entry_files.FLOAT32)
        self._file = self._exact_file
        if quantization == "int8":
            self._file = GraphFile(folder / entry_files.INT8)
        self._num_threads = num_threads
        self._tokenizer: EmbeddingTokenizer = entry.tokenizer
        self._buckets = Buckets(
            max(self._tokenizer.max_tokens, self._tokenizer.max_input_tokens or _LONGEST)
        )
        self._info = entry.info
        self._graph: CompiledGraph | None = None
        self._exact: CompiledGraph | None = None

    @classmethod
    def load(
        cls,
        source: ModelSource,
        *,
        graphs_dir: Path,
        quantization: Quantization = "none",
        precision: Literal["auto", "bfloat16", "float32"] = "auto",
        min_parity: float | None = None,
        num_threads: int | None = None,
        trust_remote_code: bool = False,
        progress: ProgressListener = ignore_progress,
    ) -> OpenVinoBackend:
        """The graph of a model, converted first where need be, compared with torch and warmed.

        Raises GraphUnavailable.
        """
        entry, folder = obtain(
            source,
            graphs_dir=graphs_dir,
            quantization=quantization,
            trust_remote_code=trust_remote_code,
            num_threads=num_threads,
            progress=progress,
        )
        try:
            backend = cls(entry, folder, quantization=quantization, num_threads=num_threads)
            backend._open(
                quantization=quantization,
                precision=fastest_precision() if precision == "auto" else precision,
                threshold=MIN_PARITY[quantization] if min_parity is None else min_parity,
            )
        except (OSError, RuntimeError) as error:  # the latter for all that OpenVINO has to say
            said = str(error).strip().splitlines() or [type(error).__name__]
            reason = f"OpenVINO cannot run its graph ({said[-1]})"
            raise GraphUnavailable(model_id=source.model_id, reason=reason) from error
        return backend

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def pad_id(self) -> int:
        return self._tokenizer.pad_id

    def tokenize_for_embedding(
        self, texts: Sequence[str], *, prompt: str | None = None, truncation: Truncation = "end"
    ) -> list[EmbeddingInput]:
        return self._tokenizer.tokenize(texts, prompt=prompt, truncation=truncation)

    def chunk_for_embedding(
        self, texts: Sequence[str], *, prompt: str | None = None
    ) -> list[list[EmbeddingInput]]:
        return self._tokenizer.chunk(texts, prompt=prompt)

    def ids_for_embedding(self, input_ids: Sequence[int]) -> EmbeddingInput:
        return self._tokenizer.checked_ids(input_ids)

    def encode(self, batch: Batch, *, exact: bool = False) -> Float32:
        graph = self._graph
        if graph is None:
            raise ModelNotLoaded(model_id=self._info.model_id)
        try:
            return self._encode_exactly(batch) if exact else graph.encode(batch)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY):
                inputs, tokens = batch.input_ids.shape
                raise ForwardOutOfMemory(
                    model_id=self._info.model_id, inputs=inputs, tokens=tokens
                ) from error
            raise

    def tokenize(
        self,
        text: str,
        *,
        text_pair: str | None = None,
        max_tokens: int | None = None,
        truncation: Truncation = "error",
        target: bool = False,
    ) -> Encoding:
        self._refuse()

    def tokenize_messages(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int | None = None,
        truncation: Truncation = "error",
    ) -> Encoding:
        self._refuse()

    def encoding_of(self, input_ids: Sequence[int], *, target: bool = False) -> Encoding:
        self._refuse()

    def inspect(
        self, batch: Batch, spec: CaptureSpec, *, sink: AttentionSink | None = None
    ) -> ModelOutputs:
        self._refuse()

    def generate_greedily(self, encoding: Encoding, *, max_new_tokens: int) -> Int64:
        self._refuse()

    def close(self) -> None:
        self._graph = self._exact = None
        gc.collect()
        machine.trim_heap()

    def _open(self, *, quantization: Quantization, precision: Precision, threshold: float) -> None:
        """Compile, compare with torch, warm up. Raises GraphUnavailable, RuntimeError."""
        reason = None
        self._graph = self._compiled(self._file, precision)
        measured = self._parity(self._graph, threshold)
        if measured.min_cosine < threshold and precision == "bfloat16" and quantization == "none":
            reason = f"in bfloat16 its cosine with PyTorch falls to {measured.min_cosine:.5f}"
            precision = "float32"
            self._graph = self._compiled(self._file, precision)
            measured = self._parity(self._graph, threshold)
        if measured.min_cosine < threshold:
            self.close()
            raise GraphUnavailable(
                model_id=self._info.model_id,
                reason=f"its cosine with PyTorch over {measured.num_texts} texts is "
                f"{measured.mean_cosine:.5f} on average and {measured.min_cosine:.5f} at least, "
                f"which is below {threshold}",
            )
        started = time.perf_counter()
        warmed, of_all = self._graph.warm_up(
            max_tokens=self._tokenizer.max_tokens, budget_s=_WARM_UP_S
        )
        self._file.forget_pages()
        _logger.debug(
            "%s: %d of %d shapes warmed in %.1f s.",
            *(self._info.model_id, warmed, of_all, time.perf_counter() - started),
        )
        computed_in = "int8" if quantization == "int8" else precision
        self._info = replace(
            self._info,
            dtype=computed_in,
            attention_implementation="openvino",
            memory_bytes=self._memory_bytes(quantization, precision),
            embedding=EmbeddingRuntime(
                runtime="openvino",
                precision=computed_in,
                quantization=quantization,
                parity=measured,
                reason=reason,
            ),
        )

    def _compiled(self, file: GraphFile, precision: Precision) -> CompiledGraph:
        return CompiledGraph(
            file,
            precision=precision,
            num_threads=self._num_threads,
            input_names=self._entry.input_names,
            pad_id=self._tokenizer.pad_id,
            buckets=self._buckets,
        )

    def _parity(self, graph: CompiledGraph, threshold: float) -> Parity:
        """All texts in one batch, and each alone."""
        inputs, expected = self._entry.reference.inputs, self._entry.reference.embeddings
        together = graph.encode(Batch.of(inputs, pad_id=self.pad_id))
        alone = [graph.encode(Batch.of([item], pad_id=self.pad_id)) for item in inputs]
        return parity(expected, together, np.concatenate(alone), threshold=threshold)

    def _encode_exactly(self, batch: Batch) -> Float32:
        if self._exact is None:
            self._exact = self._compiled(self._exact_file, "float32")
        embeddings = self._exact.encode(batch)
        self._exact_file.forget_pages()  # it is rarely asked for
        return embeddings

    def _memory_bytes(self, quantization: Quantization, precision: Precision) -> int:
        """The weights as stored, mapped from disk, and as the products are computed with."""
        stored = len(self._file.weights)
        halved = quantization == "none" and precision == "bfloat16"
        return stored + (stored // 2 if halved else stored)

    def _refuse(self) -> NoReturn:
        raise CapabilityMissing(
            model_id=self._info.model_id, reason="its OpenVINO graph only gives embeddings"
        )
