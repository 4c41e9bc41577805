"""How near a graph comes to torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pellucid.models.backend import EmbeddingInput
from pellucid.models.graph.reference import Reference, parity


def item(*ids: int, types: bool = False, prompt: int = 0) -> EmbeddingInput:
    return EmbeddingInput(
        input_ids=np.array(ids),
        num_tokens_untruncated=len(ids),
        token_type_ids=np.arange(len(ids)) if types else None,
        num_prompt_tokens=prompt,
    )


def test_a_reference_outlives_the_disk(tmp_path: Path) -> None:
    inputs = (item(1, 2, 3), item(4), item(5, 6, types=True, prompt=1))
    vectors = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    Reference(inputs=inputs, embeddings=vectors).save(tmp_path / "reference.npz")
    read = Reference.read(tmp_path / "reference.npz")
    np.testing.assert_array_equal(read.embeddings, vectors)
    for before, after in zip(inputs, read.inputs, strict=True):
        np.testing.assert_array_equal(before.input_ids, after.input_ids)
        assert before.num_prompt_tokens == after.num_prompt_tokens
        assert (before.token_type_ids is None) == (after.token_type_ids is None)
    assert read.inputs[2].token_type_ids is not None
    assert read.inputs[2].token_type_ids.tolist() == [0, 1]


def test_the_worst_of_all_ways_counts() -> None:
    expected = np.eye(3, dtype=np.float32)
    worse = expected.copy()
    worse[1] = [0.0, 1.0, 1.0]
    measured = parity(expected, expected * 5, worse, threshold=0.9)
    assert measured.min_cosine == pytest.approx(0.5**0.5)
    assert measured.mean_cosine == pytest.approx((5 + 0.5**0.5) / 6)
    assert measured.num_texts == 3
    assert measured.threshold == 0.9


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_vector_that_is_none_counts_as_far_away(value: float) -> None:
    expected = np.ones((2, 4), dtype=np.float32)
    given = expected.copy()
    given[0] = value
    assert parity(expected, given, threshold=0.9).min_cosine == 0.0
