"""Every row is computed once, in a shape that was warmed, with little padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.models.graph.buckets import MAX_RUN_TOKENS, Buckets

BUCKETS = Buckets(512)
SHAPES = set(BUCKETS.shapes())


@given(st.lists(st.integers(1, 512), min_size=1, max_size=200))
def test_each_row_is_in_one_run_of_a_known_shape(lengths: list[int]) -> None:
    given = np.array(lengths)
    runs = list(BUCKETS.runs(given))
    assert sorted(np.concatenate([run.rows for run in runs]).tolist()) == list(range(len(lengths)))
    for run in runs:
        assert (run.num_rows, run.seq_len) in SHAPES
        assert run.rows.size <= run.num_rows
        assert given[run.rows].max() <= run.seq_len


@pytest.mark.parametrize(("mean", "spread"), [(27, 8), (175, 55)], ids=["short", "long"])
def test_little_is_computed_in_vain(mean: int, spread: int) -> None:
    """Texts as they are measured with, packed by length into batches of 1,024 tokens."""
    lengths = np.random.default_rng(0).normal(mean, spread, 512).clip(5, 256).astype(int)
    lengths.sort()
    computed, start = 0, 0
    while start < lengths.size:
        end = start + 1
        while end < lengths.size and lengths[end] * (end + 1 - start) <= MAX_RUN_TOKENS:
            end += 1
        computed += sum(run.num_rows * run.seq_len for run in BUCKETS.runs(lengths[start:end]))
        start = end
    assert computed / lengths.sum() < 1.2


@pytest.mark.parametrize(
    ("lengths", "shapes"),
    [
        ([20], [(1, 24)]),
        ([5, 6, 7], [(4, 8)]),
        ([30] * 32, [(32, 32)]),
        ([30] * 32 + [21], [(32, 32), (1, 24)]),
        ([3, 250], [(1, 8), (1, 256)]),
        ([20] * 12 + [30] * 20, [(32, 32)]),  # some padding is cheaper than four runs
        ([60] * 100, [*[(16, 64)] * 6, (4, 64)]),
    ],
)
def test_padding_and_the_number_of_runs_are_weighed(
    lengths: list[int], shapes: list[tuple[int, int]]
) -> None:
    runs = BUCKETS.runs(np.array(lengths))
    assert sorted((run.num_rows, run.seq_len) for run in runs) == sorted(shapes)


def test_shapes_are_few_and_the_cheapest_come_first() -> None:
    shapes = list(Buckets(256).shapes())
    assert len(shapes) < 90
    assert shapes[:2] == [(1, 8), (1, 16)]
    assert max(rows * length for rows, length in shapes) <= MAX_RUN_TOKENS


@pytest.mark.parametrize("max_tokens", [1, 8, 77, 512, 8_192])
def test_the_longest_length_is_the_limit(max_tokens: int) -> None:
    lengths = Buckets(max_tokens).lengths
    assert lengths[-1] == max(8, max_tokens)
    assert len(lengths) < 40
    assert next(iter(Buckets(max_tokens).runs(np.array([max_tokens])))).seq_len == lengths[-1]


def test_a_row_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 513 tokens"):
        list(BUCKETS.runs(np.array([5, 513])))
