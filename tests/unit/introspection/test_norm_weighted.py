from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from attention_examples import attentions, random_attention
from pellucid.introspection.norm_weighted import norm_weighted_attention


def test_equals_the_length_of_what_is_moved() -> None:
    rng = np.random.default_rng(0)
    weights = random_attention(0, num_heads=2, query_len=4, key_len=5)
    vectors = rng.standard_normal((2, 5, 7))  # f(x_j) of each head
    moved = weights[:, :, :, None] * vectors[:, None, :, :]
    weighted = norm_weighted_attention(weights, np.linalg.norm(vectors, axis=-1))
    assert weighted == pytest.approx(np.linalg.norm(moved, axis=-1), abs=1e-5)


def test_a_token_that_carries_nothing_loses_its_weight() -> None:
    weights = np.array([[[0.9, 0.05, 0.05]]], dtype=np.float32)
    weighted = norm_weighted_attention(weights, np.array([[0.0, 1.0, 3.0]]), normalize=True)
    assert weighted[0, 0] == pytest.approx([0, 0.25, 0.75])


@given(attentions(square=False), st.integers(0, 2**20), st.booleans())
def test_finite_and_never_negative(
    weights: NDArray[np.float32], seed: int, normalize: bool
) -> None:
    rng = np.random.default_rng(seed)
    norms = rng.exponential(size=(weights.shape[0], weights.shape[2])) * rng.integers(
        0, 2, size=weights.shape[2]
    )
    before = weights.copy()
    weighted = norm_weighted_attention(weights, norms, normalize=normalize)
    assert np.isfinite(weighted).all()
    assert (weighted >= 0).all()
    assert (weights == before).all()
    if normalize:
        sums = weighted.sum(axis=2)
        assert np.where(sums > 0, sums, 1) == pytest.approx(np.ones(sums.shape), abs=1e-5)


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        (np.ones((2, 3)), "value_norms are"),
        (np.array([[1.0, -1.0]]), "negative"),
        (np.array([[1.0, np.nan]]), "NaN"),
        (np.array([[1.0, np.inf]]), "infinite"),
    ],
    ids=["shape", "negative", "nan", "infinite"],
)
def test_norms_that_are_none_are_refused(norms: NDArray[np.float64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        norm_weighted_attention(np.full((1, 2, 2), 0.5, dtype=np.float32), norms)
