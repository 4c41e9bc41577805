"""Batches within a token budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pellucid.inference.batching import token_budget_batches


def test_similar_lengths_run_together_longest_first() -> None:
    assert token_budget_batches([3, 10, 4, 9, 3], max_batch_tokens=20) == [[1, 3], [2, 0, 4]]


def test_an_overlong_input_runs_alone() -> None:
    assert token_budget_batches([50, 2, 2], max_batch_tokens=10) == [[0], [1, 2]]


def test_no_inputs_no_batches() -> None:
    assert token_budget_batches([], max_batch_tokens=10) == []


@given(st.lists(st.integers(1, 60), max_size=50), st.integers(1, 200))
def test_each_input_once_and_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = token_budget_batches(lengths, max_batch_tokens=budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = max(lengths[index] for index in batch) * len(batch)
        assert padded <= budget or len(batch) == 1
