"""Whatever runs beside a text, in whatever lane and order: its vector is the one it has alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import plain_settings
from embedding_runs import embed, embed_in, line_of
from pellucid.inference.engine import EmbeddingQuery, Priority
from pellucid.models.backend import Float32
from pellucid.models.fake.backend import FakeBackend

Request = tuple[Sequence[str], Priority]

WORDS = ("cat", "sleeps", "tree", "a", "wonderful", "mountain", "of", "blue", "letters", "!")
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=40).map(" ".join)
REQUESTS = st.lists(
    st.tuples(st.lists(TEXTS, min_size=1, max_size=8), st.sampled_from(["interactive", "bulk"])),
    min_size=1,
    max_size=8,
)


@cache
def alone(text: str) -> Float32:
    """[dimensions]"""
    return embed(FakeBackend(), EmbeddingQuery(inputs=[text]), settings=plain_settings()).vectors[0]


@settings(max_examples=60, deadline=None)
@given(REQUESTS, st.integers(1, 600), st.booleans())
def test_batch_composition_lane_and_concurrency_change_no_vector(
    requests: list[Request], budget: int, at_once: bool
) -> None:
    queries = [EmbeddingQuery(inputs=texts, priority=lane) for texts, lane in requests]

    async def main() -> list[Float32]:
        if at_once:
            answers = await asyncio.gather(*(embed_in(line, query) for query in queries))
        else:
            answers = [await embed_in(line, query) for query in queries]
        return [answer.vectors for answer in answers]

    with line_of(FakeBackend(), plain_settings(max_batch_tokens=budget)) as line:
        found = asyncio.run(main())
    for query, vectors in zip(queries, found, strict=True):
        expected = np.stack([alone(str(text)) for text in query.inputs])
        cosines = (vectors * expected).sum(axis=1)
        assert cosines.min() > 0.9999
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
