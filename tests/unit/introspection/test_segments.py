from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from attention_examples import attentions, random_attention
from pellucid.introspection.segments import (
    merge_segments,
    merge_words,
    segment_mass,
    words_of_tokens,
)


@given(attentions(square=False), st.data())
def test_mass_equals_sums_and_loses_nothing(
    weights: NDArray[np.float32], data: st.DataObject
) -> None:
    key_len = weights.shape[2]
    segments = data.draw(st.lists(st.integers(0, 3), min_size=key_len, max_size=key_len))
    mass = segment_mass(weights, np.array(segments), num_segments=4)
    for segment in range(4):
        keys = [j for j in range(key_len) if segments[j] == segment]
        assert mass[:, :, segment] == pytest.approx(weights[:, :, keys].sum(axis=2), abs=1e-6)
    assert mass.sum(axis=2) == pytest.approx(weights.sum(axis=2), abs=1e-5)


def test_keys_without_a_segment_are_left_out() -> None:
    weights = np.array([[[0.5, 0.3, 0.2]]], dtype=np.float32)
    mass = segment_mass(weights, np.array([0, -1, 0]), num_segments=2)
    assert mass[0, 0] == pytest.approx([0.7, 0])


def test_rows_are_averaged_and_columns_summed() -> None:
    weights = np.array([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.0, 1.0, 0.0]]], dtype=np.float32)
    groups = np.array([0, 0, 1])
    merged = merge_segments(
        weights,
        segment_of_query=groups,
        segment_of_key=groups,
        num_query_segments=3,
        num_key_segments=2,
    )
    assert merged[0] == pytest.approx(np.array([[0.5, 0.5], [1, 0], [0, 0]]))


def test_words_of_subwords_keep_row_sums() -> None:
    text = "Don't over-think tokenization, ok?"
    pieces = ["Don", "'t", " over", "-", "think", " token", "ization", ",", " ok", "?"]
    offsets, start = [(0, 0)], 0
    for piece in pieces:
        offsets.append((start, start + len(piece)))
        start += len(piece)
    offsets.append((0, 0))
    index = np.array([-1, *[0] * len(pieces), -1])
    words = words_of_tokens([text], offsets=np.array(offsets), text_index=index)

    assert words.word_of_token.tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6, 7]
    shown = [text[start:end].strip() for start, end in words.spans.tolist()]
    assert shown == ["", "Don't", "over-think", "tokenization", ",", "ok", "?", ""]
    assert words.text_index.tolist() == [-1, 0, 0, 0, 0, 0, 0, -1]

    weights = random_attention(0, query_len=12)
    merged = merge_words(weights, words)
    assert merged.shape == (3, 8, 8)
    assert merged.sum(axis=2) == pytest.approx(np.ones((3, 8)), abs=1e-5)
    assert merged[:, 1, 2] == pytest.approx(weights[:, 1:3, 3:6].sum(axis=2).mean(axis=1))


def test_two_texts_line_breaks_and_split_characters() -> None:
    first, second = "a\nb", "a🤖"
    offsets = np.array([[0, 1], [1, 2], [2, 3], [0, 1], [1, 2], [1, 2]])
    words = words_of_tokens(
        [first, second], offsets=offsets, text_index=np.array([0, 0, 0, 1, 1, 1])
    )
    # The break stands alone; the "a" of each text is its own; an emoji of two tokens is one word.
    assert words.word_of_token.tolist() == [0, 1, 2, 3, 3, 3]
    assert words.spans.tolist() == [[0, 1], [1, 2], [2, 3], [0, 2]]


def test_words_begin_again_after_punctuation() -> None:
    text = "(yes)no"
    offsets = np.array([[i, i + 1] for i in range(len(text))])
    words = words_of_tokens([text], offsets=offsets, text_index=np.zeros(len(text), dtype=int))
    assert words.word_of_token.tolist() == [0, 1, 1, 1, 2, 3, 3]


def test_words_of_scripts_with_marks_are_not_torn() -> None:
    text = "नमस्ते दुनिया"
    offsets = np.array([[i, i + 1] for i in range(len(text))])
    words = words_of_tokens([text], offsets=offsets, text_index=np.zeros(len(text), dtype=int))
    assert len(set(words.word_of_token[:6].tolist())) == 1
    assert len(words.spans) == 3  # two words and the space


@given(st.text(max_size=30), st.integers(1, 4))
def test_every_token_has_a_word_and_words_are_in_order(text: str, size: int) -> None:
    offsets = [(start, min(start + size, len(text))) for start in range(0, len(text), size)]
    words = words_of_tokens(
        [text],
        offsets=np.array(offsets, dtype=np.int64).reshape(-1, 2),
        text_index=np.zeros(len(offsets), dtype=np.int64),
    )
    steps = np.diff(words.word_of_token, prepend=-1)
    assert set(steps.tolist()) <= {0, 1}
    assert len(words.spans) == (words.word_of_token.max() + 1 if offsets else 0)


def test_refusals() -> None:
    weights = random_attention(0, query_len=3)
    with pytest.raises(ValueError, match="one segment for each"):
        segment_mass(weights, np.array([0, 1]), num_segments=2)
    with pytest.raises(ValueError, match="segments are"):
        segment_mass(weights, np.array([0, 1, 2]), num_segments=2)
