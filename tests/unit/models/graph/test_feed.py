"""Batches as a graph reads them."""

from __future__ import annotations

import numpy as np
import pytest

from pellucid.models.backend import Batch, EmbeddingInput
from pellucid.models.graph.feed import Feeder, input_names

NAMES = ("input_ids", "attention_mask")


def test_rows_are_filled_up_to_the_shape() -> None:
    batch = Batch(
        input_ids=np.array([[5, 6, 7], [8, 9, 1]]), attention_mask=np.array([[1, 1, 1], [1, 1, 0]])
    )
    feeder = Feeder(batch, NAMES, pad_id=3)
    feed = feeder.feed(np.array([1, 0]), num_rows=3, seq_len=4)
    assert feeder.lengths.tolist() == [3, 2]
    assert feed["input_ids"].tolist() == [[8, 9, 3, 3], [5, 6, 7, 3], [3, 3, 3, 3]]
    # a row without text looks at one token, or its attention would be no number
    assert feed["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]
    assert {values.dtype for values in feed.values()} == {np.dtype(np.int32)}


def test_padding_on_the_left_is_moved() -> None:
    batch = Batch(
        input_ids=np.array([[0, 0, 5, 6], [7, 8, 9, 4]]),
        attention_mask=np.array([[0, 0, 1, 1], [1, 1, 1, 1]]),
        token_type_ids=np.array([[0, 0, 2, 1], [1, 0, 0, 2]]),
    )
    feeder = Feeder(batch, (*NAMES, "token_type_ids"), pad_id=0)
    feed = feeder.feed(np.arange(2), num_rows=2, seq_len=8)
    assert feed["input_ids"][0].tolist() == [5, 6, 0, 0, 0, 0, 0, 0]
    assert feed["attention_mask"][0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert feed["token_type_ids"][0].tolist() == [2, 1, 0, 0, 0, 0, 0, 0]
    assert feed["input_ids"][1, :4].tolist() == [7, 8, 9, 4]


def test_prompts_are_counted_row_by_row() -> None:
    batch = Batch(
        input_ids=np.array([[5, 6], [8, 9]]),
        attention_mask=np.ones((2, 2), dtype=np.int64),
        num_prompt_tokens=np.array([1, 0]),
    )
    feeder = Feeder(batch, (*NAMES, "num_prompt_tokens"), pad_id=0)
    feed = feeder.feed(np.array([1, 0]), num_rows=4, seq_len=2)
    assert feed["num_prompt_tokens"].tolist() == [0, 1, 0, 0]


def test_segments_without_an_input_are_refused_unless_they_say_nothing() -> None:
    batch = Batch(
        input_ids=np.array([[5, 6]]),
        attention_mask=np.array([[1, 1]]),
        token_type_ids=np.array([[0, 1]]),
    )
    with pytest.raises(ValueError, match="segments"):
        Feeder(batch, NAMES, pad_id=0)


def test_a_graph_has_the_inputs_that_its_model_makes_use_of() -> None:
    plain = EmbeddingInput(
        input_ids=np.array([1, 2]), num_tokens_untruncated=2, token_type_ids=np.array([0, 0])
    )
    typed = EmbeddingInput(
        input_ids=np.array([1, 2]), num_tokens_untruncated=2, token_type_ids=np.array([0, 2])
    )
    assert input_names([plain], takes_token_types=True, leaves_prompt_out=False) == list(NAMES)
    assert input_names([plain, typed], takes_token_types=True, leaves_prompt_out=True) == [
        *(*NAMES, "token_type_ids", "num_prompt_tokens")
    ]
    assert input_names([typed], takes_token_types=False, leaves_prompt_out=False) == list(NAMES)
