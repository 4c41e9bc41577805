from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from attention_examples import attentions, random_attention
from pellucid.introspection.attention_stats import (
    HeadStatistics,
    TokenStatistics,
    head_statistics,
    token_statistics,
)

HALVES = np.array([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]], dtype=np.float32)
NONE_SPECIAL = np.zeros(3, dtype=np.bool_)


def arrays_of(statistics: HeadStatistics | TokenStatistics) -> dict[str, NDArray[np.generic]]:
    values = {field.name: getattr(statistics, field.name) for field in fields(statistics)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def test_values_by_hand() -> None:
    special = np.array([False, False, True])
    statistics = head_statistics(HALVES, special=special)

    log2 = math.log(2)
    assert statistics.entropy == pytest.approx((0 + log2 + 1.5 * log2) / 3)
    assert statistics.effective_support == pytest.approx((1 + 2 + 2**1.5) / 3)
    assert statistics.maximum == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert statistics.maximum_overall == pytest.approx(1)
    assert statistics.maximum_position.tolist() == [[0, 0]]
    assert statistics.first_token_share == pytest.approx(1.75 / 3)
    assert statistics.special_share == pytest.approx(0.5 / 3)
    assert statistics.learned_sink_share == pytest.approx(0)
    assert statistics.sink_share == pytest.approx(2.25 / 3)
    assert statistics.distance == pytest.approx((0 + 0.5 + 0.75) / 3)
    assert statistics.self_share == pytest.approx(2 / 3)
    assert statistics.previous_token_share == pytest.approx((0.5 + 0.25) / 2)
    assert not statistics.entropy_renormalized


def test_tokens_by_hand_under_a_causal_mask() -> None:
    statistics = token_statistics(HALVES, special=NONE_SPECIAL, causal=True)

    assert statistics.received[0] == pytest.approx([1.75 / 3, 0.75 / 2, 0.5 / 1])
    # Uniform attention would have given 1 + 1/2 + 1/3, 1/2 + 1/3 and 1/3.
    assert statistics.received_relative[0] == pytest.approx(
        [1.75 / (11 / 6), 0.75 / (5 / 6), 0.5 / (1 / 3)]
    )
    # Row 2 gives 0.25 to token 1; row 1 only looks at the first token and itself.
    assert statistics.given[0] == pytest.approx([0, 0, 0.25])


def brute_force(weights: NDArray[np.float32], special: NDArray[np.bool_]) -> dict[str, list[float]]:
    """The docstrings' formulas, one number at a time."""
    result: dict[str, list[float]] = {}
    for rows in weights.astype(float):
        length = len(rows)
        per_row: dict[str, list[float]] = {}
        for i, row in enumerate(rows):
            total = sum(row)
            p = [w / total for w in row if w > 0] if total > 0 else []
            entropy = -sum(w * math.log(w) for w in p)
            sinks = {0, *(j for j in range(length) if special[j])}
            values = {
                "entropy": entropy,
                "effective_support": math.exp(entropy) if total > 0 else 0.0,
                "maximum": max(row),
                "first_token_share": row[0],
                "special_share": sum(row[j] for j in range(length) if special[j]),
                "learned_sink_share": 1 - total,
                "sink_share": sum(row[j] for j in sinks) + 1 - total,
                "distance": sum(row[j] * abs(i - j) for j in range(length)) / total if total else 0,
                "self_share": row[i],
                "given": sum(row[j] for j in range(length) if j not in sinks and j != i),
            }
            if i > 0:
                values["previous_token_share"] = row[i - 1]
            for name, value in values.items():
                per_row.setdefault(name, []).append(value)
        for name, column in per_row.items():
            result.setdefault(name, []).append(sum(column) / len(column))
    return result


@given(attentions(), st.integers(0, 2**9))
def test_vectorised_equals_the_formulas(weights: NDArray[np.float32], bits: int) -> None:
    special = np.array([bool(bits >> j & 1) for j in range(weights.shape[2])])
    expected = brute_force(weights, special)
    computed = arrays_of(head_statistics(weights, special=special))
    given_share = token_statistics(weights, special=special, causal=False).given
    computed["given"] = given_share.mean(axis=1)

    assert set(expected) == set(computed) - {"maximum_overall", "maximum_position"}
    for name, values in expected.items():
        assert computed[name] == pytest.approx(values, abs=2e-5), name


@given(attentions(square=False), st.booleans())
def test_cross_attention_has_no_positions_to_compare(
    weights: NDArray[np.float32], first_is_special: bool
) -> None:
    special = np.zeros(weights.shape[2], dtype=np.bool_)
    special[0] = first_is_special
    statistics = head_statistics(weights, special=special, cross=True)

    assert statistics.distance is None
    assert statistics.self_share is None
    assert statistics.previous_token_share is None
    given_share = token_statistics(weights, special=special, causal=False, cross=True).given
    ordinary = weights[:, :, 1:].sum(axis=2)  # no query is a key, so none is left out as itself
    assert given_share == pytest.approx(np.clip(ordinary, 0, 1), abs=1e-5)


@given(attentions(), st.booleans())
def test_everything_is_finite_and_within_bounds(weights: NDArray[np.float32], causal: bool) -> None:
    length = weights.shape[2]
    special = np.arange(length) % 3 == 0
    heads = head_statistics(weights, special=special)
    tokens = token_statistics(weights, special=special, causal=causal)

    for name, values in {**arrays_of(heads), **arrays_of(tokens)}.items():
        assert np.isfinite(values).all(), name
        assert (values >= 0).all(), name
    assert (heads.entropy <= math.log(length) + 1e-6).all()
    assert (heads.effective_support <= length + 1e-3).all()
    assert (heads.effective_support >= np.exp(heads.entropy) - 1e-3).all() or (
        weights.sum(axis=2) == 0
    ).any()
    for name in ("first_token_share", "special_share", "learned_sink_share", "sink_share"):
        assert (getattr(heads, name) <= 1).all(), name
    assert (tokens.given <= 1).all()


@given(attentions(), st.randoms(use_true_random=False))
def test_order_of_heads_only_orders_the_answer(
    weights: NDArray[np.float32], random: object
) -> None:
    order = list(range(len(weights)))
    random.shuffle(order)  # type: ignore[attr-defined]
    special = np.zeros(weights.shape[2], dtype=np.bool_)
    straight = arrays_of(head_statistics(weights, special=special))
    shuffled = arrays_of(head_statistics(weights[order], special=special))
    for name, values in straight.items():
        assert shuffled[name] == pytest.approx(values[order], abs=1e-6), name


@pytest.mark.parametrize("causal", [False, True])
def test_uniform_attention_gives_every_token_the_same(causal: bool) -> None:
    uniform = random_attention(0, query_len=7, causal=causal, sharpness=0.0)
    special = np.zeros(7, dtype=np.bool_)
    tokens = token_statistics(uniform, special=special, causal=causal)
    heads = head_statistics(uniform, special=special)

    assert tokens.received_relative == pytest.approx(np.ones((3, 7)), abs=1e-6)
    visible = np.arange(1, 8) if causal else np.full(7, 7)
    assert heads.effective_support == pytest.approx(np.full(3, visible.mean()), abs=1e-4)
    assert heads.entropy == pytest.approx(np.full(3, np.log(visible).mean()), abs=1e-5)


def test_a_key_seen_by_one_query_is_not_averaged_over_all() -> None:
    diagonal = np.eye(5, dtype=np.float32)[None]
    special = np.zeros(5, dtype=np.bool_)
    tokens = token_statistics(diagonal, special=special, causal=True)
    assert tokens.received[0] == pytest.approx([1 / 5, 1 / 4, 1 / 3, 1 / 2, 1])


def test_windows_and_knockouts_count_only_queries_that_see_the_key() -> None:
    length = 6
    query, key = np.arange(length)[:, None], np.arange(length)[None, :]
    window = (key <= query) & (key > query - 2)
    window[:, 3] = False  # nobody sees key 3; query 3 still sees key 2
    uniform = (window / window.sum(axis=1, keepdims=True)).astype(np.float32)[None]
    special = np.zeros(length, dtype=np.bool_)

    tokens = token_statistics(uniform, special=special, causal=True, visible=window)
    per_head = token_statistics(uniform, special=special, causal=True, visible=window[None])

    expected = [1.0 if j != 3 else 0.0 for j in range(length)]
    assert tokens.received_relative[0] == pytest.approx(expected)
    assert tokens.received[0, 0] == pytest.approx((1 + 0.5) / 2)
    assert tokens.received[0, 3] == 0
    assert per_head.received[0] == pytest.approx(tokens.received[0])


def test_a_learned_sink_is_shown_and_the_entropy_says_that_it_is_of_the_rest() -> None:
    half = np.full((1, 4, 4), 0.125, dtype=np.float32)
    statistics = head_statistics(half, special=np.zeros(4, dtype=np.bool_))

    assert statistics.learned_sink_share == pytest.approx(0.5)
    assert statistics.sink_share == pytest.approx(0.5 + 0.125)
    assert statistics.entropy == pytest.approx(math.log(4))
    assert statistics.entropy_renormalized


def test_what_rounding_leaves_of_a_softmax_is_no_sink() -> None:
    weights = random_attention(2, num_heads=8, query_len=200)
    assert (1 - weights.sum(axis=2, dtype=np.float64).mean(axis=1) > 0).any()
    statistics = head_statistics(weights, special=np.zeros(200, dtype=np.bool_))
    assert not statistics.learned_sink_share.any()
    assert not statistics.entropy_renormalized


def test_a_query_that_sees_nothing_counts_as_zero() -> None:
    weights = np.zeros((2, 3, 3), dtype=np.float32)
    statistics = arrays_of(head_statistics(weights, special=NONE_SPECIAL))
    assert statistics["learned_sink_share"] == pytest.approx(1)
    for name in ("entropy", "effective_support", "distance", "maximum"):
        assert statistics[name] == pytest.approx(0), name


def test_one_token() -> None:
    one = np.ones((2, 1, 1), dtype=np.float32)
    special = np.zeros(1, dtype=np.bool_)
    statistics = head_statistics(one, special=special)
    assert statistics.entropy.tolist() == [0, 0]
    assert statistics.effective_support.tolist() == [1, 1]
    assert statistics.previous_token_share is None
    assert token_statistics(one, special=special, causal=True).received.tolist() == [[1], [1]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_numbers_are_refused(bad: float) -> None:
    weights = random_attention(1, query_len=3)
    weights[1, 2, 0] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        head_statistics(weights, special=NONE_SPECIAL)
    with pytest.raises(ValueError, match="NaN or infinite"):
        token_statistics(weights, special=NONE_SPECIAL, causal=False)


def test_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="as many queries as keys"):
        head_statistics(np.ones((1, 2, 3), dtype=np.float32), special=NONE_SPECIAL)
    with pytest.raises(ValueError, match="one layer"):
        head_statistics(np.ones((2, 2), dtype=np.float32), special=NONE_SPECIAL)
    with pytest.raises(ValueError, match="special"):
        head_statistics(HALVES, special=np.zeros(2, dtype=np.bool_))
