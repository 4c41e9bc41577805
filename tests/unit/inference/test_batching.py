"""Which inputs run together, and how many tokens a batch may take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.inference.batching import InputsByLength, TokenBudget, padded_length


def waiting(lengths: list[int]) -> InputsByLength[int]:
    """Entries 0, 1, 2, ... of these lengths."""
    inputs: InputsByLength[int] = InputsByLength()
    for entry, length in enumerate(lengths):
        inputs.add(entry, length)
    return inputs


def take(inputs: InputsByLength[int], longest: int, *, max_tokens: int) -> list[int]:
    return inputs.take(longest, max_tokens=max_tokens, is_wanted=lambda entry: True)


def test_similar_lengths_run_together_older_ones_first() -> None:
    inputs = waiting([30, 100, 26, 31, 98, 25])
    assert take(inputs, 100, max_tokens=224) == [1, 4]
    assert take(inputs, 31, max_tokens=64) == [0, 2]
    assert take(inputs, 31, max_tokens=64) == [3, 5]
    assert inputs.num_entries == 0


def test_shorter_ones_fill_the_batch_while_they_cost_little() -> None:
    assert take(waiting([32, 24, 16, 8, 8, 8]), 32, max_tokens=1_000) == [0, 1, 2, 3]
    assert take(waiting([512, 8]), 512, max_tokens=2_000) == [0]


def test_longer_ones_wait_for_a_leader_of_their_length() -> None:
    inputs = waiting([500, 20])
    assert take(inputs, 20, max_tokens=10_000) == [1]
    assert inputs.num_entries == 1


def test_what_is_longer_than_the_budget_runs_alone() -> None:
    assert take(waiting([50, 50]), 50, max_tokens=10) == [0]


def test_what_is_not_wanted_is_thrown_away() -> None:
    inputs = waiting([20, 20, 20])
    batch = inputs.take(20, max_tokens=1_000, is_wanted=lambda entry: entry != 1)
    assert (batch, inputs.num_entries) == ([0, 2], 0)
    inputs = waiting([20, 500, 20])
    inputs.keep_only(lambda entry: entry == 2)
    assert inputs.num_entries == 1
    assert take(inputs, 20, max_tokens=1_000) == [2]


@given(st.lists(st.integers(1, 600), min_size=1, max_size=60), st.integers(1, 1_500))
def test_each_input_once_and_within_the_budget(lengths: list[int], budget: int) -> None:
    inputs, left, widths = waiting(lengths), set(range(len(lengths))), []
    while left:
        oldest = min(left)
        batch = take(inputs, lengths[oldest], max_tokens=budget)
        assert left.issuperset(batch)
        left -= set(batch)
        width = max(padded_length(lengths[entry]) for entry in batch)
        widths.append(width)
        assert width * len(batch) <= budget or len(batch) == 1
        padding = sum(width - padded_length(lengths[entry]) for entry in batch)
        assert padding <= max(64, 0.25 * width * len(batch))
    assert inputs.num_entries == 0


@pytest.mark.parametrize(
    ("length", "padded"), [(1, 8), (8, 8), (57, 64), (65, 80), (128, 128), (129, 160), (513, 640)]
)
def test_padded_lengths(length: int, padded: int) -> None:
    assert padded_length(length) == padded


def test_the_budget_falls_at_once_and_rises_slowly() -> None:
    budget = TokenBudget(1_024)
    budget.lower(900)
    assert budget.tokens == 450
    budget.lower(2_000)  # one long input: says nothing of batches
    assert budget.tokens == 450
    budget.lower(450)
    assert budget.tokens == 225
    budget.succeeded(50)  # says nothing of larger ones
    assert budget.tokens == 225
    steps = 0
    while budget.tokens < 1_024:
        budget.succeeded(budget.tokens)
        steps += 1
    assert 20 < steps < 100
    budget.succeeded(1_024)
    assert budget.tokens == 1_024


def test_the_budget_never_falls_to_nothing() -> None:
    budget = TokenBudget(4)
    for _ in range(5):
        budget.lower(1)
    assert budget.tokens == 1
