"""What the attention of one layer looks like, in numbers per head and per token.

The mean of an attention row is 1 / key_len whatever the head does, so it is not among them. Rows
are queries. A row sums to 1, except in models with a learned sink (a score without a token that
takes part in the softmax and is dropped after it, as in gpt-oss): there the rest is the sink's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.introspection.arrays import (
    Bool,
    Float32,
    Float64,
    Int64,
    attention_array,
    require_finite,
)

ROW_SUM_TOLERANCE = 1e-3  # float32 and bfloat16 softmax rows miss 1 by less; a learned sink by more
_ROUNDING = 1e-6  # what a softmax in float32 leaves over is no sink
_SMALLEST = np.finfo(np.float32).tiny  # log of anything smaller is never taken; 0 log 0 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadStatistics:
    """One layer's heads. Every array is [num_heads] unless it says otherwise.

    ``None``: the quantity has no meaning here (positions of two different texts).
    """

    entropy: Float32  # nats, mean over queries
    effective_support: Float32  # keys, mean over queries of exp(entropy)
    maximum: Float32  # mean over queries of the largest weight
    maximum_overall: Float32  # largest weight of the head
    maximum_position: Int64  # [num_heads, 2] its query position and key position
    first_token_share: Float32  # mean mass on key 0
    special_share: Float32  # mean mass on special tokens, the first token too if it is one
    learned_sink_share: Float32  # mean of 1 - row sum
    sink_share: Float32  # mass on first token or special tokens (counted once) or learned sink
    distance: Float32 | None  # tokens, mean |query position - key position|
    self_share: Float32 | None  # mean mass of a query on itself
    previous_token_share: Float32 | None  # on the token before; over queries that have one
    entropy_renormalized: bool  # rows did not sum to 1, entropy and distance are of the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStatistics:
    """One layer's tokens, per head."""

    received: Float32  # [num_heads, key_len] mean over the queries that can see the key
    received_relative: Float32  # [num_heads, key_len] 1 = as much as uniform attention would give
    given: Float32  # [num_heads, query_len] share that goes to other, ordinary tokens


def head_statistics(
    attention: NDArray[Any], *, special: Bool, cross: bool = False
) -> HeadStatistics:
    """Numbers per head of one layer: [num_heads, query_len, key_len] -> [num_heads] each.

    With p the row of a query i, s its sum (1 without a learned sink):

    - entropy: mean over i of H = log s - (sum_j p_j log p_j) / s, in nats (Shannon 1948), that is
      the entropy of p / s. Between 0 and log(key_len). Used on heads by Clark et al. 2019.
    - effective_support: mean over i of exp(H), the number of keys that an equal share among them
      would give the same entropy (perplexity; Hill 1973, order 1). At least exp(entropy).
    - maximum: mean over i of max_j p_j (the head's confidence; Voita et al. 2019).
    - first_token_share, special_share, learned_sink_share: mean over i of p_0, of p on special
      keys, of 1 - s (Xiao et al. 2023; Clark et al. 2019; gpt-oss).
    - distance: mean over i of (sum_j p_j |i - j|) / s (Vig and Belinkov 2019).
    - self_share, previous_token_share: mean over i of p_i, over i > 0 of p_(i-1).

    ``special`` is [key_len]. With ``cross`` the positions of queries and keys are of different
    texts and the last three are None; previous_token_share is None for a single token too. A query
    without any mass (nothing left to see) counts as entropy 0, support 0, distance 0.
    Raises ValueError for another shape, NaN or infinity.
    """
    weights = attention_array(attention, square=not cross)
    num_heads, query_len, key_len = weights.shape
    ordinary = _ordinary_keys(special, key_len)
    row_sums = _row_sums(weights)
    row_maxima = weights.max(axis=2)
    heads = np.arange(num_heads)
    best_query = row_maxima.argmax(axis=1)
    best_key = weights[heads, best_query].argmax(axis=1)

    entropies = _row_entropies(weights, row_sums)
    support = np.where(row_sums > 0, np.exp(entropies), 0.0)
    column_means = weights.mean(axis=1, dtype=np.float64)
    is_special = special.astype(np.bool_)
    learned_sink = 1.0 - row_sums.mean(axis=1)
    learned_sink = np.where(learned_sink > _ROUNDING, learned_sink, 0.0)
    is_renormalized = bool((row_sums < 1.0 - ROW_SUM_TOLERANCE).any())
    sink_share = column_means[:, ~ordinary].sum(axis=1) + learned_sink
    return HeadStatistics(
        entropy=_float32(entropies.mean(axis=1)),
        effective_support=_float32(support.mean(axis=1)),
        maximum=_float32(row_maxima.mean(axis=1, dtype=np.float64)),
        maximum_overall=row_maxima.max(axis=1),
        maximum_position=np.stack([best_query, best_key], axis=1).astype(np.int64),
        first_token_share=_share(column_means[:, 0]),
        special_share=_share(column_means[:, is_special].sum(axis=1)),
        learned_sink_share=_share(learned_sink),
        sink_share=_share(sink_share),
        distance=None if cross else _mean_distance(weights, row_sums),
        self_share=None if cross else _share(_diagonal(weights, 0).mean(axis=1, dtype=np.float64)),
        previous_token_share=None
        if cross or query_len == 1
        else _share(_diagonal(weights, 1).mean(axis=1, dtype=np.float64)),
        entropy_renormalized=is_renormalized,
    )


def token_statistics(
    attention: NDArray[Any],
    *,
    special: Bool,
    causal: bool,
    cross: bool = False,
    visible: Bool | None = None,
) -> TokenStatistics:
    """Numbers per token of one layer: [num_heads, query_len, key_len] -> per head and token.

    - received[h, j] = (sum_i a[h, i, j]) / (number of queries that can see j). Under a causal mask
      the last key is seen by one query and the first by all, so a plain column mean would call
      every early token important.
    - received_relative[h, j] = (sum_i a[h, i, j]) / (sum over the queries i that see j of
      1 / (number of keys that i sees)). Early queries share among few keys, so the mean alone still
      depends on the position; this ratio is 1 for every key when attention is uniform.
    - given[h, i] = mass of row i on ordinary tokens other than itself: not special, not the first
      token (the usual sink; Xiao et al. 2023). A row's own sum and mean say nothing.

    ``visible`` ([query_len, key_len] or [num_heads, query_len, key_len], True = can see) tells of
    windows and knock-outs; by default all keys, or those not after the query when ``causal``. A
    key that no query sees received 0. Raises ValueError as ``head_statistics``.
    """
    weights = attention_array(attention, square=not cross)
    _, query_len, key_len = weights.shape
    ordinary = _ordinary_keys(special, key_len)
    _row_sums(weights)
    column_sums = weights.sum(axis=1, dtype=np.float64)
    viewers, expected = _expectation(query_len, key_len, causal=causal, visible=visible)
    given = weights @ ordinary.astype(np.float32)
    if not cross:
        given = given - _diagonal(weights, 0) * ordinary
    return TokenStatistics(
        received=_float32(_divide(column_sums, viewers)),
        received_relative=_float32(_divide(column_sums, expected)),
        given=_share(given),
    )


def _ordinary_keys(special: Bool, key_len: int) -> Bool:
    if special.shape != (key_len,):
        raise ValueError(f"special is [key_len] = [{key_len}], not {special.shape}")
    ordinary: Bool = ~special.astype(np.bool_)
    ordinary[0] = False
    return ordinary


def _row_sums(weights: Float32) -> Float64:
    with np.errstate(invalid="ignore"):  # refused in the next line
        row_sums: Float64 = weights.sum(axis=2).astype(np.float64)
    require_finite(row_sums, name="attention")  # a row with one NaN sums to NaN
    return row_sums


def _row_entropies(weights: Float32, row_sums: Float64) -> Float64:
    """[num_heads, query_len] nats. Head by head, so that the scratch array stays in the cache."""
    sums = np.empty(weights.shape[:2], dtype=np.float64)
    scratch = np.empty(weights.shape[1:], dtype=np.float32)
    for head, rows in enumerate(weights):
        np.maximum(rows, _SMALLEST, out=scratch)
        np.log(scratch, out=scratch)
        sums[head] = np.einsum("qk,qk->q", rows, scratch)
    has_mass = row_sums > 0
    safe = np.where(has_mass, row_sums, 1.0)
    entropies = np.where(has_mass, np.log(safe) - sums / safe, 0.0)
    return np.clip(entropies, 0.0, np.log(weights.shape[2]))


def _mean_distance(weights: Float32, row_sums: Float64) -> Float32:
    positions = np.arange(weights.shape[1], dtype=np.float32)
    offsets = np.abs(positions[:, None] - positions[None, :])
    weighted = np.einsum("hqk,qk->hq", weights, offsets).astype(np.float64)
    return _float32(_divide(weighted, row_sums).mean(axis=1))


def _diagonal(weights: Float32, before: int) -> Float32:
    """Weights of each query on the key ``before`` positions earlier: [num_heads, len - before]."""
    diagonal: Float32 = np.diagonal(weights, offset=-before, axis1=1, axis2=2)
    return diagonal


def _expectation(
    query_len: int, key_len: int, *, causal: bool, visible: Bool | None
) -> tuple[Float64, Float64]:
    """Per key: how many queries see it, and what uniform attention would give it in sum."""
    if visible is None and not causal:
        return np.full(key_len, float(query_len)), np.full(key_len, query_len / key_len)
    if visible is None:
        queries = np.arange(query_len)
        keys = np.arange(key_len)
        visible = keys[None, :] <= queries[:, None]
    seen = visible.astype(np.float32)
    uniform = _divide(np.ones(seen.shape[:-1]), seen.sum(axis=-1, dtype=np.float64))
    expected = np.einsum("...qk,...q->...k", seen, uniform)
    return seen.sum(axis=-2, dtype=np.float64), expected


def _divide(values: Float64, by: Float64) -> Float64:
    """Quotient, 0 where the divisor is 0."""
    return np.where(by > 0, values / np.where(by > 0, by, 1.0), 0.0)


def _share(values: NDArray[Any]) -> Float32:
    """Rounding may carry a share past its bounds by 1e-7; it is a share all the same."""
    share: Float32 = np.clip(values, 0.0, 1.0).astype(np.float32)
    return share


def _float32(values: Float64) -> Float32:
    return values.astype(np.float32)
