from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from pellucid.introspection.change import logit_change, vector_change


def test_by_hand() -> None:
    before = np.log(np.array([[0.2, 0.2, 0.6], [0.7, 0.2, 0.1]]))
    after = np.log(np.array([[0.2, 0.2, 0.6], [0.1, 0.3, 0.6]]))
    change = logit_change(before, after, top_k=2)

    assert change.position == 1
    assert change.divergence[0] == pytest.approx(0, abs=1e-12)
    assert change.divergence[1] == pytest.approx(
        0.7 * np.log(7) + 0.2 * np.log(2 / 3) + 0.1 * np.log(1 / 6)
    )
    assert change.likeliest_before.token_ids.tolist() == [0, 1]
    assert change.likeliest_after.token_ids.tolist() == [2, 1]
    assert change.likeliest_before.probabilities_before == pytest.approx([0.7, 0.2])
    assert change.likeliest_before.probabilities_after == pytest.approx([0.1, 0.3])
    assert change.likeliest_before.logits_after == pytest.approx(np.log([0.1, 0.3]))
    assert change.movers.token_ids.tolist() == [0, 2]  # by 0.6 and 0.5, whichever way


def test_any_position_can_be_looked_at() -> None:
    logits = np.eye(3) * 4
    assert logit_change(logits, logits, position=0).likeliest_before.token_ids[0] == 0
    assert logit_change(logits, logits, position=-2).position == 1
    with pytest.raises(ValueError, match="outside"):
        logit_change(logits, logits, position=3)
    with pytest.raises(ValueError, match="top_k"):
        logit_change(logits, logits, top_k=0)


@given(npst.arrays(np.float32, (2, 3, 5), elements=st.floats(-80, 80, width=32)))
def test_probabilities_are_probabilities(pair: NDArray[np.float32]) -> None:
    change = logit_change(pair[0], pair[1], top_k=99)
    assert change.movers.token_ids.size == 5
    for tokens in (change.likeliest_before, change.likeliest_after, change.movers):
        assert tokens.probabilities_before.sum() == pytest.approx(1)
        assert tokens.probabilities_after.sum() == pytest.approx(1)
    assert (np.diff(change.likeliest_before.logits_before) <= 0).all()
    assert (np.diff(change.likeliest_after.logits_after) <= 0).all()
    moved = np.abs(change.movers.probabilities_after - change.movers.probabilities_before)
    assert (np.diff(moved) <= 0).all()


def test_nothing_cut_changes_nothing() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)
    change = logit_change(logits, logits)
    assert (change.divergence == 0).all()
    vector = vector_change(logits[0], logits[0])
    assert vector.cosine_similarity == pytest.approx(1)
    assert vector.distance == 0
    assert vector.relative_distance == 0


def test_vectors_by_hand() -> None:
    change = vector_change(np.array([3.0, 4.0]), np.array([4.0, -3.0]))
    assert change.cosine_similarity == pytest.approx(0)
    assert change.distance == pytest.approx(np.sqrt(50))
    assert change.relative_distance == pytest.approx(np.sqrt(2))


def test_a_vector_of_zeros_has_no_direction() -> None:
    zero, one = np.zeros(2), np.array([0.0, 2.0])
    assert vector_change(zero, one).cosine_similarity is None
    assert vector_change(zero, one).relative_distance is None
    assert vector_change(one, zero).cosine_similarity is None
    assert vector_change(one, zero).relative_distance == pytest.approx(1)


def test_vectors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        vector_change(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        vector_change(np.zeros(2), np.array([np.nan, 0]))
