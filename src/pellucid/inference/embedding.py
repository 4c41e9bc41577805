"""One embedding request, from texts to vectors, in the thread that owns the model."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from pellucid.errors import DimensionsUnsupported, InvalidInput, InvalidRequest, NonFiniteValues
from pellucid.inference.batching import token_budget_batches
from pellucid.inference.engine import EmbeddingQuery, Embeddings
from pellucid.inference.source_text import encode_ids, in_field
from pellucid.models.backend import Backend, Batch, EmbeddingInput, Float32, ModelInfo, Truncation
from pellucid.models.embedding.prompts import choose_prompt
from pellucid.settings import Settings


def embed(
    backend: Backend,
    query: EmbeddingQuery,
    *,
    settings: Settings,
    still_wanted: Callable[[], None] = lambda: None,
) -> Embeddings:
    """Tokenise, batch, encode, shorten, normalise; vectors come in the order of the inputs.

    Raises errors under InvalidInput, EmbeddingUnavailable, NonFiniteValues.
    """
    started = time.perf_counter()
    info = backend.info
    dimensions = _checked_dimensions(info, query.dimensions)
    encodings = _encode(backend, query)
    tokenized = time.perf_counter()
    vectors = np.empty((len(encodings), info.dimensions), dtype=np.float32)
    lengths = [encoding.input_ids.size for encoding in encodings]
    for batch in token_budget_batches(lengths, max_batch_tokens=settings.max_batch_tokens):
        still_wanted()  # a long request whose client left must not hold up the others
        inputs = Batch.of([encodings[index] for index in batch], pad_id=backend.pad_id)
        vectors[batch] = backend.encode(inputs)
    _require_finite(info, vectors, query=query)
    vectors = np.ascontiguousarray(vectors[:, :dimensions])
    if query.normalize:  # after shortening: a piece of a unit vector is not one
        vectors = normalized(vectors)
    return Embeddings(
        vectors=vectors,
        truncated=tuple(encoding.truncated for encoding in encodings),
        num_tokens=tuple(lengths),
        model=info,
        timing={
            "tokenize_ms": (tokenized - started) * 1000,
            "forward_ms": (time.perf_counter() - tokenized) * 1000,
        },
    )


def normalized(vectors: Float32) -> Float32:
    """Each row divided by its L2 norm: [n, dimensions] -> the same. Rows of zeros stay zeros."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1.0), dtype=np.float32)


def _checked_dimensions(info: ModelInfo, dimensions: int | None) -> int:
    if dimensions is None or dimensions == info.dimensions:
        return info.dimensions
    if dimensions in info.matryoshka_dimensions and dimensions < info.dimensions:
        return dimensions
    trained = ", ".join(str(width) for width in sorted(info.matryoshka_dimensions))
    reason = f"it was trained for {trained}" if trained else "it was not trained for other widths"
    raise DimensionsUnsupported(
        model_id=info.model_id,
        native_dimensions=info.dimensions,
        dimensions=dimensions,
        reason=reason,
    )


def _encode(backend: Backend, query: EmbeddingQuery) -> list[EmbeddingInput]:
    info = backend.info
    prompt = choose_prompt(
        input_type=query.input_type,
        prompt_name=query.prompt_name,
        prompts=info.prompts,
        default_prompt_name=info.default_prompt_name,
        model_id=info.model_id,
    )
    texts = {index: given for index, given in enumerate(query.inputs) if isinstance(given, str)}
    encodings = _encode_texts(backend, texts, prompt=prompt, query=query)
    for index, given in enumerate(query.inputs):
        if isinstance(given, str):
            continue
        if prompt is not None:
            raise InvalidRequest(
                reason=f"{query.name_of(index)}: token ids cannot be put behind the prompt "
                f"{prompt!r}.",
                field=query.name_of(index),
            )
        with in_field(query.name_of(index)):
            encoding = encode_ids(
                backend,
                given,
                max_tokens=info.max_embedding_tokens,
                truncation=_truncation(query),
            )
            encodings[index] = EmbeddingInput(
                input_ids=encoding.input_ids,
                num_tokens_untruncated=encoding.num_tokens_untruncated,
                token_type_ids=encoding.token_type_ids,
            )
    return [encodings[index] for index in range(len(query.inputs))]


def _encode_texts(
    backend: Backend, texts: dict[int, str], *, prompt: str | None, query: EmbeddingQuery
) -> dict[int, EmbeddingInput]:
    if not texts:
        return {}
    try:
        together = backend.tokenize_for_embedding(
            list(texts.values()), prompt=prompt, truncation=_truncation(query)
        )
    except InvalidInput:
        # Once more one by one, so that the error names the place in the request.
        for index, text in texts.items():
            with in_field(query.name_of(index)):
                backend.tokenize_for_embedding([text], prompt=prompt, truncation=_truncation(query))
        raise
    return dict(zip(texts, together, strict=True))


def _truncation(query: EmbeddingQuery) -> Truncation:
    return "end" if query.truncate == "chunk" else query.truncate


def _require_finite(info: ModelInfo, vectors: Float32, *, query: EmbeddingQuery) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        where = f"the embedding of {query.name_of(int(bad[0]))}"
        raise NonFiniteValues(model_id=info.model_id, where=where)
