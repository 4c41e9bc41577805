"""One embedding request: from texts to what the model reads, and from its vectors to the answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import (
    DimensionsUnsupported,
    InvalidInput,
    InvalidRequest,
    NonFiniteValues,
    PellucidError,
    TooManyTokens,
)
from pellucid.inference.embedding_job import Encoded
from pellucid.inference.engine import EmbeddingQuery, Embeddings, Priority
from pellucid.inference.source_text import in_field
from pellucid.models.backend import Backend, EmbeddingInput, Float32, ModelInfo
from pellucid.models.embedding.prompts import choose_prompt


@dataclass(slots=True, kw_only=True)
class Tokenized:
    """The inputs of a request as the model reads them: one piece each, or several."""

    pieces: list[EmbeddingInput]  # of all inputs, in their order
    num_pieces: list[int]  # per input; 0 for those in ``errors``
    errors: dict[int, PellucidError] = field(default_factory=dict)  # by index of the input
    seconds: float = 0.0


def tokenize(
    backend: Backend, query: EmbeddingQuery, *, refused: Mapping[int, PellucidError]
) -> Tokenized:
    """Every input but those ``refused`` already, in any thread.

    Errors of single inputs are raised, or kept where the query reports them. Raises errors under
    InvalidInput, and CapabilityMissing.
    """
    started = time.perf_counter()
    check_dimensions(backend.info, query.dimensions)
    prompt = choose_prompt(
        input_type=query.input_type,
        prompt_name=query.prompt_name,
        prompts=backend.info.prompts,
        default_prompt_name=backend.info.default_prompt_name,
        model_id=backend.info.model_id,
    )
    errors = dict(refused)
    pieces: dict[int, list[EmbeddingInput]] = {}
    texts = {
        index: given
        for index, given in enumerate(query.inputs)
        if isinstance(given, str) and index not in errors
    }
    if texts:
        try:
            together = _pieces_of_texts(backend, list(texts.values()), prompt=prompt, query=query)
            pieces.update(zip(texts, together, strict=True))
        except InvalidInput:  # once more one by one, to know whose it is
            for index, text in texts.items():
                with _kept(errors, query, index):
                    (pieces[index],) = _pieces_of_texts(backend, [text], prompt=prompt, query=query)
    for index, given in enumerate(query.inputs):
        if not isinstance(given, str) and index not in errors:
            with _kept(errors, query, index):
                if prompt is not None:
                    raise InvalidRequest(
                        reason=f"{query.name_of(index)}: token ids cannot be put behind the "
                        f"prompt {prompt!r}.",
                        field=query.name_of(index),
                    )
                pieces[index] = _pieces_of_ids(backend, list(given), query=query)
    in_order = [pieces.get(index, []) for index in range(len(query.inputs))]
    return Tokenized(
        pieces=[piece for own in in_order for piece in own],
        num_pieces=[len(own) for own in in_order],
        errors=errors,
        seconds=time.perf_counter() - started,
    )


def answer(
    tokenized: Tokenized,
    encoded: Encoded,
    *,
    query: EmbeddingQuery,
    model: ModelInfo,
    lane: Priority,
) -> Embeddings:
    """The vectors of the pieces as those of the inputs: averaged, shortened, normalised.

    An input of several pieces has the mean of their vectors, weighted by the tokens that each has
    of the text itself: ``v = sum(n_k v_k) / sum(n_k)``. Of vectors that are means over tokens this
    is the mean over the whole text, each piece read by itself.
    Raises the error of the first input that has one, unless the query reports them.
    """
    owners = np.repeat(np.arange(len(query.inputs)), tokenized.num_pieces)
    errors = dict(tokenized.errors)
    for place in sorted(encoded.errors):
        index = int(owners[place])
        named = _named(encoded.errors[place], query.name_of(index))
        if query.on_error == "fail":
            raise named from encoded.errors[place].__cause__
        errors.setdefault(index, named)
    vectors = _of_inputs(tokenized, encoded, owners, dimensions=model.dimensions)
    vectors = np.ascontiguousarray(vectors[:, : check_dimensions(model, query.dimensions)])
    vectors[list(errors)] = 0
    if query.normalize:  # after shortening: a piece of a unit vector is not one
        vectors = normalized(vectors)
    sizes = [piece.input_ids.size for piece in tokenized.pieces]
    num_tokens = np.bincount(owners, weights=sizes, minlength=len(query.inputs))
    is_chunked = query.truncate == "chunk"
    truncated = np.zeros(len(query.inputs), dtype=bool)
    if not is_chunked:
        truncated[owners] = [piece.truncated for piece in tokenized.pieces]
    return Embeddings(
        vectors=vectors,
        truncated=tuple(truncated.tolist()),
        num_tokens=tuple(num_tokens.astype(int).tolist()),
        num_chunks=tuple(tokenized.num_pieces) if is_chunked else (),
        errors=errors,
        model=model,
        lane=lane,
        timing={
            "tokenize_ms": tokenized.seconds * 1000,
            "queue_ms": encoded.queue_s * 1000,
            "forward_ms": encoded.compute_s * 1000,
        },
    )


def normalized(vectors: Float32) -> Float32:
    """Each row divided by its L2 norm: [n, dimensions] -> the same. Rows of zeros stay zeros."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1.0), dtype=np.float32)


def check_dimensions(info: ModelInfo, dimensions: int | None) -> int:
    """How many to keep. Raises DimensionsUnsupported."""
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


def _pieces_of_texts(
    backend: Backend, texts: list[str], *, prompt: str | None, query: EmbeddingQuery
) -> list[list[EmbeddingInput]]:
    if query.truncate == "chunk":
        return backend.chunk_for_embedding(texts, prompt=prompt)
    whole = backend.tokenize_for_embedding(texts, prompt=prompt, truncation=query.truncate)
    return [[piece] for piece in whole]


def _pieces_of_ids(
    backend: Backend, input_ids: list[int], *, query: EmbeddingQuery
) -> list[EmbeddingInput]:
    """Ids are cut like text, but nothing stands around them: the pieces are theirs alone."""
    count, limit = len(input_ids), backend.info.max_embedding_tokens
    if limit is None or count <= limit:
        return [backend.ids_for_embedding(input_ids)]
    if query.truncate == "error":
        raise TooManyTokens(
            field="input_ids", tokens=count, model_id=backend.info.model_id, max_tokens=limit
        )
    if query.truncate == "chunk":
        return [
            backend.ids_for_embedding(input_ids[start : start + limit])
            for start in range(0, count, limit)
        ]
    kept = input_ids[:limit] if query.truncate == "end" else input_ids[count - limit :]
    return [replace(backend.ids_for_embedding(kept), num_tokens_untruncated=count)]


@contextmanager
def _kept(errors: dict[int, PellucidError], query: EmbeddingQuery, index: int) -> Iterator[None]:
    """An error of one input is named after it, then raised or kept, as the query says."""
    try:
        with in_field(query.name_of(index)):
            yield
    except InvalidInput as error:
        if query.on_error == "fail":
            raise
        errors[index] = error


def _of_inputs(
    tokenized: Tokenized, encoded: Encoded, owners: NDArray[np.intp], *, dimensions: int
) -> Float32:
    """[pieces, dimensions] -> [inputs, dimensions]; zeros where an input has no piece."""
    num_inputs = len(tokenized.num_pieces)
    if len(tokenized.pieces) == num_inputs and max(tokenized.num_pieces, default=1) == 1:
        return encoded.vectors.reshape(num_inputs, dimensions)
    sums = np.zeros((num_inputs, dimensions))
    if tokenized.pieces:
        own = [
            max(1, piece.input_ids.size - max(piece.num_added_tokens, piece.num_prompt_tokens))
            for piece in tokenized.pieces
        ]
        weights = np.array(own, dtype=np.float64)
        totals = np.bincount(owners, weights=weights, minlength=num_inputs)
        shares = weights / totals[owners]
        np.add.at(sums, owners, encoded.vectors * shares[:, None])
    return sums.astype(np.float32)


def _named(error: PellucidError, name: str) -> PellucidError:
    """The same error, telling whose it is."""
    facts = error.facts | {"field": name}
    if isinstance(error, NonFiniteValues):
        facts["where"] = f"the embedding of {name}"
    return type(error)(**facts)
