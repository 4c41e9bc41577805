from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from pellucid.introspection.logit_lens import lens_summary


def test_by_hand() -> None:
    # Two positions, four readings (embedding layer and three layers), the two likeliest tokens.
    token_ids = np.array([[[1, 2], [8, 9]], [[5, 3], [7, 8]], [[5, 1], [8, 7]], [[5, 1], [7, 8]]])
    probabilities = np.array(
        [[[0.3, 0.2], [0.9, 0.1]], [[0.5, 0.1], [0.6, 0.4]], [[0.6, 0.1], [0.7, 0.3]],
         [[0.8, 0.1], [0.9, 0.1]]]
    )  # fmt: skip
    summary = lens_summary(token_ids, probabilities)

    assert summary.final_token_ids.tolist() == [5, 7]
    assert summary.settled_layer.tolist() == [1, 3]  # 7 led at layer 1 and lost again
    assert summary.agrees.T.tolist() == [[False, True, True, True], [False, True, False, True]]
    assert summary.rank.T.tolist() == [[-1, 0, 0, 0], [-1, 0, 1, 0]]
    assert summary.probability == pytest.approx(
        np.array([[0, 0], [0.5, 0.6], [0.6, 0.3], [0.8, 0.9]])
    )


@given(
    npst.arrays(
        np.int64,
        st.tuples(st.integers(1, 6), st.integers(1, 4), st.just(1)),
        elements=st.integers(0, 2),
    )
)
def test_settled_is_the_first_layer_of_the_last_unbroken_run(
    token_ids: NDArray[np.int64],
) -> None:
    summary = lens_summary(token_ids, np.full(token_ids.shape, 0.5))
    for position, settled in enumerate(summary.settled_layer.tolist()):
        column = token_ids[:, position, 0].tolist()
        expected = min(layer for layer in range(len(column)) if set(column[layer:]) == {column[-1]})
        assert settled == expected


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="top_k"):
        lens_summary(np.zeros((2, 3, 4)), np.zeros((2, 3, 5)))
