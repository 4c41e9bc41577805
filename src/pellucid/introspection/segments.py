"""Attention between groups of tokens: words, sentences, passages."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.introspection.arrays import Float32, Int64, attention_array, require_finite

_JOINERS = frozenset("'’-_")  # punctuation that belongs to the word around it


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Tokens grouped into words. Special tokens and line breaks are groups of their own."""

    word_of_token: Int64  # [seq_len], 0-based, numbered as they first appear
    spans: Int64  # [num_words, 2] characters of the text, from the first token to the last
    text_index: Int64  # [num_words] which text; -1 = special


def segment_mass(attention: NDArray[Any], segment_of_key: Int64, *, num_segments: int) -> Float32:
    """Attention summed over each group of keys.

    [num_heads, query_len, key_len], segment_of_key [key_len] (-1 = none)
    -> [num_heads, query_len, num_segments]. A sum and not a mean: the mass of a row is shared out,
    as word-level maps do (Clark et al. 2019, section 4.1). Raises ValueError for another shape, a
    segment out of range, NaN or infinity.
    """
    weights = attention_array(attention)
    mass: Float32 = weights @ _membership(segment_of_key, weights.shape[2], num_segments)
    require_finite(mass, name="attention")
    return mass


def merge_segments(
    attention: NDArray[Any],
    *,
    segment_of_query: Int64,
    segment_of_key: Int64,
    num_query_segments: int,
    num_key_segments: int,
) -> Float32:
    """Attention between groups: to a group summed, from a group averaged.

    [num_heads, query_len, key_len] -> [num_heads, num_query_segments, num_key_segments]; so rows
    that sum to 1 still do (Clark et al. 2019, section 4.1). A group without queries has a row of
    zeros. Raises ValueError as ``segment_mass``.
    """
    mass = segment_mass(attention, segment_of_key, num_segments=num_key_segments)
    members = _membership(segment_of_query, attention.shape[1], num_query_segments)
    members /= np.maximum(members.sum(axis=0), 1.0)
    merged: Float32 = members.T @ mass
    return merged


def merge_words(attention: NDArray[Any], words: Words) -> Float32:
    """Attention of one layer between words: [num_heads, seq_len, seq_len] -> word by word."""
    num_words = len(words.spans)
    return merge_segments(
        attention_array(attention, square=True),
        segment_of_query=words.word_of_token,
        segment_of_key=words.word_of_token,
        num_query_segments=num_words,
        num_key_segments=num_words,
    )


def words_of_tokens(texts: Sequence[str], *, offsets: Int64, text_index: Int64) -> Words:
    """Which word each token belongs to.

    ``offsets`` [seq_len, 2] are characters in ``texts[text_index]``; text_index [seq_len] is -1 for
    special tokens. White space separates words; punctuation stands alone, except apostrophe,
    hyphen and underscore. Text written without spaces is one word up to the next punctuation. A
    token belongs to the word of its first character that is not white space; one without such a
    character is a group of its own.
    """
    words = [_words_of_characters(text) for text in texts]
    numbers: dict[tuple[int, int], int] = {}
    word_of_token = np.empty(len(offsets), dtype=np.int64)
    spans: list[list[int]] = []
    indices: list[int] = []
    for position, (index, (start, end)) in enumerate(
        zip(text_index.tolist(), offsets.tolist(), strict=True)
    ):
        inside = words[index][start:end] if index >= 0 else []
        word = next((word for word in inside if word >= 0), None)
        # A negative second part never meets a word's number: the token stays by itself.
        key = (index, -1 - position if word is None else word)
        number = numbers.setdefault(key, len(numbers))
        if number == len(spans):
            spans.append([start, end])
            indices.append(index)
        spans[number][1] = max(spans[number][1], end)
        word_of_token[position] = number
    return Words(
        word_of_token=word_of_token,
        spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
        text_index=np.array(indices, dtype=np.int64),
    )


def _membership(segment_of: Int64, length: int, num_segments: int) -> Float32:
    """[length, num_segments], 1 where the token is of the segment."""
    if segment_of.shape != (length,):
        raise ValueError(f"one segment for each of {length} tokens, not {segment_of.shape}")
    if segment_of.min() < -1 or segment_of.max() >= num_segments:
        raise ValueError(f"segments are -1 to {num_segments - 1}")
    members = np.zeros((length, num_segments), dtype=np.float32)
    is_member = np.flatnonzero(segment_of >= 0)
    members[is_member, segment_of[is_member]] = 1.0
    return members


def _words_of_characters(text: str) -> list[int]:
    """Number of the word of each character; -1 for white space."""
    words: list[int] = []
    number, is_inside = -1, False
    for character in text:
        if character.isspace():
            words.append(-1)
            is_inside = False
            continue
        stands_alone = unicodedata.category(character)[0] == "P" and character not in _JOINERS
        if stands_alone or not is_inside:
            number += 1
        words.append(number)
        is_inside = not stands_alone
    return words
