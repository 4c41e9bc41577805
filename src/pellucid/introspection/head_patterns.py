"""Known kinds of heads, looked for on the reader's own text.

A pattern is a set of cells (query position, key position) that the text fixes. A head's score is
the attention mass on those cells, averaged over the queries that have any: 1 = all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pellucid.introspection.arrays import Bool, Float32, Int64, attention_array, require_finite

Pattern = Literal["previous_token", "first_token", "self", "duplicate", "induction"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)

DOMINANT_SCORE = 0.5  # more than half of the mass: no room for an unlike pattern beside it
DOMINANT_RATIO = 2.0  # and twice what uniform attention would score on this text
DOMINANT_SUPPORT = 3  # and not a matter of one or two queries


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternCells:
    """Where the patterns lie in one text; the same for every layer and head."""

    repeats: Float32  # [seq_len * seq_len, 2] 1 = a cell of "duplicate", of "induction"
    first_choice: int  # first query that sees more than one key
    support: Mapping[Pattern, int]  # queries that have a cell of the pattern
    chance: Mapping[Pattern, float]  # score of uniform attention; 0 without support


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadPatterns:
    """Scores of one layer's heads."""

    scores: Mapping[Pattern, Float32 | None]  # [num_heads] in [0, 1]; None = not in this text
    support: Mapping[Pattern, int]
    chance: Mapping[Pattern, float]
    dominant: tuple[Pattern | Literal["none"], ...]  # [num_heads]


def pattern_cells(input_ids: Int64, *, special: Bool, causal: bool) -> PatternCells:
    """The cells of each pattern: input_ids [seq_len], special [seq_len].

    - previous_token: (i, i - 1). first_token: (i, 0) for i > 0. self: (i, i). Clark et al. 2019.
    - duplicate: (i, j) with input_ids[j] == input_ids[i] and j != i (Wang et al. 2022).
    - induction: (i, j) with input_ids[j - 1] == input_ids[i], j - 1 != i and j != i: the token
      that followed this one before (Olsson et al. 2022).

    With ``causal``, only j <= i, so duplicate and induction look at earlier occurrences; else at
    any other. Special tokens are neither query nor key of these two: their repetition says nothing
    about the text. A query that sees only one key has no choice and counts for no pattern.
    """
    if input_ids.ndim != 1 or input_ids.size == 0 or special.shape != input_ids.shape:
        raise ValueError("input_ids and special are [seq_len] each, at least one token")
    length = input_ids.size
    query, key = np.arange(length)[:, None], np.arange(length)[None, :]
    visible = key <= query if causal else np.ones((length, length), dtype=np.bool_)
    ordinary = ~special.astype(np.bool_)
    content = visible & ordinary[:, None] & ordinary[None, :] & (key != query)
    same = input_ids[:, None] == input_ids[None, :]
    follows = np.zeros_like(same)
    # Column j says whether token j - 1 equals the query; an occurrence is never the query itself.
    follows[:, 1:] = (same & ordinary[None, :] & (key != query))[:, :-1]
    num_visible = np.arange(1, length + 1) if causal else np.full(length, length)
    num_cells: dict[Pattern, Int64] = {  # per query
        "previous_token": (np.arange(length) > 0).astype(np.int64),
        "first_token": (np.arange(length) > 0).astype(np.int64),
        "self": (num_visible > 1).astype(np.int64),
        "duplicate": (content & same).sum(axis=1),
        "induction": (content & follows).sum(axis=1),
    }
    support = {name: int(np.count_nonzero(counts)) for name, counts in num_cells.items()}
    repeats = np.empty((length * length, 2), dtype=np.float32)
    repeats[:, 0] = (content & same).ravel()
    repeats[:, 1] = (content & follows).ravel()
    return PatternCells(
        repeats=repeats,
        first_choice=int(np.argmax(num_visible > 1)) if length > 1 else length,
        support=support,
        chance={
            name: float((counts / num_visible).sum() / max(support[name], 1))
            for name, counts in num_cells.items()
        },
    )


def head_patterns(attention: NDArray[Any], cells: PatternCells) -> HeadPatterns:
    """Scores of one layer: [num_heads, seq_len, seq_len] -> [num_heads] per pattern.

    score = (sum of the attention on the pattern's cells) / (number of queries that have one); the
    mass of a learned sink counts for nothing. ``dominant`` is the pattern with the highest score
    among those with score > 0.5, more than twice ``chance`` and at least 3 queries; else "none".
    These are observations on one text: a head that scores 0 here may do so elsewhere.
    Raises ValueError when the attention is not that of the text of ``cells``, or not finite.
    """
    weights = attention_array(attention, square=True)
    flat = weights.reshape(weights.shape[0], -1)
    if flat.shape[1] != cells.repeats.shape[0]:
        raise ValueError(f"attention is of another text: {weights.shape[1]} tokens")
    on_itself = np.diagonal(weights, axis1=1, axis2=2)[:, cells.first_choice :]
    before_itself = np.diagonal(weights, offset=-1, axis1=1, axis2=2)
    with np.errstate(invalid="ignore"):  # refused in the next lines
        repeats = flat @ cells.repeats
    require_finite(repeats, name="attention")  # NaN times 0 is NaN: every cell is looked at
    mass = np.column_stack(
        [
            before_itself.sum(axis=1),
            weights[:, 1:, 0].sum(axis=1),
            on_itself.sum(axis=1),
            repeats,
        ]
    )
    queries = np.array([cells.support[name] for name in PATTERNS], dtype=np.float32)
    scores = np.clip(mass / np.maximum(queries, 1), 0.0, 1.0).astype(np.float32)
    return HeadPatterns(
        scores={
            name: scores[:, column].copy() if cells.support[name] else None
            for column, name in enumerate(PATTERNS)
        },
        support=cells.support,
        chance=cells.chance,
        dominant=_dominant(scores, cells),
    )


def _dominant(scores: Float32, cells: PatternCells) -> tuple[Pattern | Literal["none"], ...]:
    chance = np.array([cells.chance[name] for name in PATTERNS])
    support = np.array([cells.support[name] for name in PATTERNS])
    is_candidate = ((scores > DOMINANT_SCORE) & (scores > DOMINANT_RATIO * chance)) & (
        support >= DOMINANT_SUPPORT
    )
    best = np.where(is_candidate, scores, -1.0).argmax(axis=1)
    return tuple(
        PATTERNS[column] if is_candidate[head, column] else "none"
        for head, column in enumerate(best)
    )
