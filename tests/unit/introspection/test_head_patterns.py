from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from attention_examples import random_attention
from pellucid.introspection.head_patterns import (
    PATTERNS,
    Pattern,
    head_patterns,
    pattern_cells,
)

#                     a  b  c  a  b  c  a  b
REPEATED = np.array([5, 6, 7, 5, 6, 7, 5, 6], dtype=np.int64)
ORDINARY = np.zeros(8, dtype=np.bool_)


def onto(keys: list[int]) -> NDArray[np.float32]:
    """A head whose query i looks at keys[i] only."""
    weights = np.zeros((1, len(keys), len(keys)), dtype=np.float32)
    weights[0, np.arange(len(keys)), keys] = 1.0
    return weights


PERFECT: dict[Pattern, list[int]] = {
    "previous_token": [0, 0, 1, 2, 3, 4, 5, 6],
    "first_token": [0] * 8,
    "self": [0, 1, 2, 3, 4, 5, 6, 7],
    "duplicate": [0, 0, 0, 0, 1, 2, 3, 4],
    "induction": [0, 0, 0, 1, 2, 3, 4, 5],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_perfect_head_scores_one_and_is_named(pattern: Pattern) -> None:
    cells = pattern_cells(REPEATED, special=ORDINARY, causal=True)
    found = head_patterns(onto(PERFECT[pattern]), cells)

    scores = {name: values[0] for name, values in found.scores.items() if values is not None}
    assert scores[pattern] == pytest.approx(1)
    assert found.dominant == (pattern,)
    assert all(score < 0.9 for name, score in scores.items() if name != pattern)


def test_support_counts_the_queries_that_have_the_pattern() -> None:
    cells = pattern_cells(REPEATED, special=ORDINARY, causal=True)
    assert cells.support == {
        "previous_token": 7,
        "first_token": 7,
        "self": 7,  # query 0 sees one key only
        "duplicate": 5,
        "induction": 5,
    }


def brute_force_cells(
    ids: list[int], special: list[bool], causal: bool
) -> dict[Pattern, set[tuple[int, int]]]:
    cells: dict[Pattern, set[tuple[int, int]]] = {name: set() for name in PATTERNS}
    length = len(ids)
    for i in range(length):
        seen = range(i + 1) if causal else range(length)
        if len(seen) < 2:
            continue
        for j in seen:
            if j == i - 1:
                cells["previous_token"].add((i, j))
            if j == 0 and i > 0:
                cells["first_token"].add((i, j))
            if j == i:
                cells["self"].add((i, j))
                continue
            if special[i] or special[j]:
                continue
            if ids[i] == ids[j]:
                cells["duplicate"].add((i, j))
            if j > 0 and j - 1 != i and ids[j - 1] == ids[i] and not special[j - 1]:
                cells["induction"].add((i, j))
    return cells


@given(st.data(), st.booleans(), st.integers(0, 2**20))
def test_cells_and_scores_equal_the_definition(
    data: st.DataObject, causal: bool, seed: int
) -> None:
    ids = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=9))
    special = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    weights = random_attention(seed, query_len=len(ids), causal=causal)
    cells = pattern_cells(np.array(ids), special=np.array(special), causal=causal)
    found = head_patterns(weights, cells)

    for name, expected in brute_force_cells(ids, special, causal).items():
        queries = {i for i, _ in expected}
        assert cells.support[name] == len(queries)
        scores = found.scores[name]
        if not queries:
            assert scores is None
            assert cells.chance[name] == 0
            continue
        assert scores is not None
        for head, score in enumerate(scores):
            mass = sum(float(weights[head, i, j]) for i, j in expected)
            assert score == pytest.approx(mass / len(queries), abs=1e-5)
        assert np.isfinite(scores).all()
        assert ((scores >= 0) & (scores <= 1)).all()
        chance = sum(1 / (i + 1 if causal else len(ids)) for i, _ in expected) / len(queries)
        assert cells.chance[name] == pytest.approx(chance)


def test_encoders_look_both_ways() -> None:
    ids = np.array([1, 2, 3, 1, 9], dtype=np.int64)
    special = np.zeros(5, dtype=np.bool_)
    both = pattern_cells(ids, special=special, causal=False)
    assert both.support["duplicate"] == 2
    assert both.support["induction"] == 2  # 0 -> 4, after the later 1; 3 -> 1, after the earlier
    ahead = head_patterns(onto([4, 1, 2, 1, 4]), both).scores["induction"]
    assert ahead is not None
    assert ahead[0] == pytest.approx(1)


def test_repeated_special_tokens_are_no_duplicates() -> None:
    ids = np.array([101, 7, 102, 8, 102], dtype=np.int64)
    special = np.isin(ids, [101, 102])
    found = head_patterns(onto([2, 2, 4, 4, 2]), pattern_cells(ids, special=special, causal=False))
    assert found.scores["duplicate"] is None
    assert found.support["duplicate"] == 0
    assert found.dominant == ("none",)


def test_no_name_where_uniform_attention_would_score_high_too() -> None:
    ids = np.full(12, 4, dtype=np.int64)
    cells = pattern_cells(ids, special=np.zeros(12, dtype=np.bool_), causal=False)
    found = head_patterns(np.full((1, 12, 12), 1 / 12, dtype=np.float32), cells)
    duplicate = found.scores["duplicate"]
    assert duplicate is not None
    assert duplicate[0] == pytest.approx(11 / 12, abs=1e-6)
    assert cells.chance["duplicate"] == pytest.approx(11 / 12)
    assert found.dominant == ("none",)


def test_no_name_from_one_or_two_queries() -> None:
    ids = np.array([1, 2, 3, 4, 5, 6, 7, 1], dtype=np.int64)
    found = head_patterns(
        onto([0, 1, 2, 3, 4, 5, 6, 1]), pattern_cells(ids, special=ORDINARY, causal=True)
    )
    induction = found.scores["induction"]
    assert induction is not None
    assert induction[0] == pytest.approx(1)
    assert found.support["induction"] == 1
    assert found.dominant == ("self",)


def test_one_token_has_no_pattern() -> None:
    cells = pattern_cells(
        np.array([3], dtype=np.int64), special=np.zeros(1, dtype=np.bool_), causal=False
    )
    found = head_patterns(np.ones((2, 1, 1), dtype=np.float32), cells)
    assert set(found.scores.values()) == {None}
    assert found.dominant == ("none", "none")


def test_a_learned_sink_counts_for_no_pattern() -> None:
    cells = pattern_cells(REPEATED, special=ORDINARY, causal=True)
    found = head_patterns(onto(PERFECT["self"]) * np.float32(0.25), cells)
    scores = found.scores["self"]
    assert scores is not None
    assert scores[0] == pytest.approx(0.25)
    assert found.dominant == ("none",)


def test_attention_of_another_text_is_refused() -> None:
    cells = pattern_cells(REPEATED, special=ORDINARY, causal=True)
    with pytest.raises(ValueError, match="another text"):
        head_patterns(random_attention(0, query_len=5), cells)
    broken = random_attention(0, query_len=8)
    broken[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        head_patterns(broken, cells)
