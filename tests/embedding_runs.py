"""Embedding requests on one backend, all the way but for HTTP and the pool."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from pellucid.inference.embedding import answer, tokenize
from pellucid.inference.engine import EmbeddingQuery, Embeddings
from pellucid.inference.model_line import ModelLine
from pellucid.models.backend import Backend
from pellucid.settings import Settings


@contextmanager
def line_of(backend: Backend, settings: Settings) -> Iterator[ModelLine]:
    """The backend's line; its thread ends with the block."""
    line = ModelLine(backend, settings)
    try:
        yield line
    finally:
        assert line.stop()


async def embed_in(line: ModelLine, query: EmbeddingQuery) -> Embeddings:
    """One request in a line that others may use as well."""
    lane = query.priority or "interactive"
    job = line.open(lane, on_done=lambda: None, stops_at_error=query.on_error == "fail")
    tokenized = tokenize(line.backend, query, refused={})
    line.submit(job, tokenized.pieces)
    encoded = await job.future
    return answer(tokenized, encoded, query=query, model=line.backend.info, lane=lane)


def embed(backend: Backend, query: EmbeddingQuery, *, settings: Settings) -> Embeddings:
    """One request alone."""
    with line_of(backend, settings) as line:
        return asyncio.run(embed_in(line, query))
