"""From a model's files to the files of its graph. Needs torch: runs in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.errors import GraphUnavailable
from pellucid.models.backend import Batch, EmbeddingInput, Float32, Quantization
from pellucid.models.graph import entry, tracing
from pellucid.models.graph.entry import GraphEntry
from pellucid.models.graph.feed import feed, input_names
from pellucid.models.graph.reference import Reference, reference_inputs
from pellucid.models.graph.runtime import ov
from pellucid.models.graph.store import GraphKey, seal
from pellucid.models.sources.local_folder import is_fingerprint, revision_of
from pellucid.models.sources.source import ModelSource
from pellucid.models.text.embedding_tokenizer import EmbeddingTokenizer
from pellucid.models.transformers_backend import TransformersBackend

_REASON_CHARACTERS = 200
_MORE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionRequest:
    """What to convert, and the empty folder that receives it."""

    source: ModelSource
    folder: Path
    quantization: Quantization
    trust_remote_code: bool
    num_threads: int | None


def convert(request: ConversionRequest) -> None:
    """Fill the folder and seal it.

    Raises GraphUnavailable and EmbeddingUnavailable for models that can have no graph, OSError for
    the folder, and the errors of loading the model.
    """
    started = time.perf_counter()
    source = request.source
    backend = TransformersBackend.load(
        source,
        device="cpu",
        dtype="float32",
        trust_remote_code=request.trust_remote_code,
        num_threads=request.num_threads,
    )
    parts = backend.embedding_parts
    tokenizer = parts.pipeline.tokenizer
    if tokenizer is None:
        reason = "its texts go through a chat template"
        raise GraphUnavailable(model_id=source.model_id, reason=reason)
    tracing.require_fixed_positions(parts, model_id=source.model_id)
    state = tokenizer.state()
    prompt = next((text for text in backend.info.prompts.values() if text), None)
    inputs = reference_inputs(tokenizer, prompt=prompt)
    names = input_names(
        inputs,
        takes_token_types=parts.takes_token_types,
        leaves_prompt_out=not state["pools_prompt"],
    )
    try:
        graph = tracing.trace(parts, tokenizer, names)
    except OSError:  # of this machine, not of the model
        raise
    except Exception as error:  # torch, transformers and OpenVINO raise every kind
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise MemoryError("there was too little memory to trace it") from error
        reason = f"its computation cannot be traced ({_last_line(error)})"
        raise GraphUnavailable(model_id=source.model_id, reason=reason) from error
    _save(graph, request.folder / entry.FLOAT32)
    if request.quantization == "int8":
        quantized = _quantized(graph, tokenizer, names, model_id=source.model_id)
        _save(quantized, request.folder / entry.INT8)
    GraphEntry(
        info=backend.info,
        tokenizer_state=state,
        input_names=tuple(names),
        reference=Reference(inputs=tuple(inputs), embeddings=_embeddings(backend, inputs)),
    ).write(request.folder)
    if is_fingerprint(source.revision) and revision_of(source.folder) != source.revision:
        raise OSError("the model's folder was changed meanwhile")
    seal(
        request.folder,
        GraphKey.of(source.model_id, source.revision, request.quantization),
        conversion_s=round(time.perf_counter() - started, 2),
    )


def _save(graph: ov.Model, path: Path) -> None:
    """Raises OSError."""
    try:
        ov.save_model(graph, path, compress_to_fp16=False)
    except RuntimeError as error:
        with path.with_suffix(".more").open("wb") as more:  # says what OpenVINO does not: why
            more.write(bytes(_MORE_BYTES))
        raise OSError(f"{path.name} could not be written ({_last_line(error)})") from error


def _quantized(
    graph: ov.Model, tokenizer: EmbeddingTokenizer, names: Sequence[str], *, model_id: str
) -> ov.Model:
    from pellucid.models.graph.quantization import quantize

    def feed_of(texts: Sequence[str]) -> dict[str, Any]:
        batch = Batch.of(tokenizer.tokenize(texts), pad_id=tokenizer.pad_id)
        return dict(feed(batch, names, pad_id=tokenizer.pad_id))

    return quantize(graph, feed_of, model_id=model_id)


def _embeddings(backend: TransformersBackend, inputs: Sequence[EmbeddingInput]) -> Float32:
    """[num_inputs, dimensions], one at a time: nothing but a text itself can shape its vector."""
    rows = [backend.encode(Batch.of([item], pad_id=backend.pad_id)) for item in inputs]
    return np.concatenate(rows)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")[:_REASON_CHARACTERS]
