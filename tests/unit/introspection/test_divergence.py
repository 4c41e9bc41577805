from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from pellucid.introspection import divergence
from pellucid.introspection.divergence import kl_divergence, log_softmax

LOGITS = npst.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 6)),
    elements=st.floats(-50, 50, width=32),
)


def test_by_hand() -> None:
    before = np.log(np.array([[0.5, 0.5]])).astype(np.float32)
    after = np.log(np.array([[0.25, 0.75]])).astype(np.float32)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl_divergence(before, after) == pytest.approx([expected])


@given(LOGITS, st.integers(0, 2**20))
def test_equals_the_formula(logits: NDArray[np.float32], seed: int) -> None:
    other = np.random.default_rng(seed).permuted(logits, axis=1)
    found = kl_divergence(logits, other)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    for row, (p_logits, q_logits) in enumerate(zip(logits.tolist(), other.tolist(), strict=True)):
        p_sum, q_sum = sum(map(math.exp, p_logits)), sum(map(math.exp, q_logits))
        expected = sum(
            math.exp(a) / p_sum * ((a - math.log(p_sum)) - (b - math.log(q_sum)))
            for a, b in zip(p_logits, q_logits, strict=True)
        )
        assert found[row] == pytest.approx(expected, abs=1e-9)


@given(LOGITS, st.floats(-1e4, 1e4))
def test_a_constant_added_to_all_logits_changes_nothing(
    logits: NDArray[np.float32], constant: float
) -> None:
    moved = logits.astype(np.float64) + constant
    assert kl_divergence(logits, moved) == pytest.approx(np.zeros(len(logits)), abs=1e-8)
    assert log_softmax(moved) == pytest.approx(log_softmax(logits), abs=1e-9)


def test_extreme_logits_stay_finite() -> None:
    before = np.array([[3e38, -3e38, 0.0]], dtype=np.float32)
    assert np.isfinite(kl_divergence(before, before[:, ::-1])).all()


def test_blocks_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    before, after = rng.standard_normal((2, 11, 5)).astype(np.float32)
    whole = kl_divergence(before, after)
    monkeypatch.setattr(divergence, "_BLOCK", 10)
    assert (kl_divergence(before, after) == whole).all()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="twice"):
        kl_divergence(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="NaN"):
        kl_divergence(np.zeros((1, 2)), np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="infinite"):
        kl_divergence(np.array([[0.0, -np.inf]]), np.zeros((1, 2)))
