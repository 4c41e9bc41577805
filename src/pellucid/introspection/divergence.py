"""How far apart two distributions over the vocabulary are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.introspection.arrays import Float64, require_finite

_BLOCK = 1 << 20  # values at a time in float64; whole logits of a long text would take gigabytes


def log_softmax(logits: NDArray[Any]) -> Float64:
    """log(exp(x) / sum exp(x)) over the last axis, the largest taken out first: same shape."""
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return values


def kl_divergence(logits: NDArray[Any], other: NDArray[Any]) -> Float64:
    """KL(p || q) in nats per position: [seq_len, vocab_size] twice -> [seq_len].

    sum_v p_v (log p_v - log q_v) with p = softmax(logits), q = softmax(other): what is lost by
    taking q for p (Kullback and Leibler 1951). Never negative, 0 only when they are the same.
    Raises ValueError for shapes that differ, NaN or infinity.
    """
    if logits.shape != other.shape or logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(
            f"logits are [seq_len, vocab_size] twice, not {logits.shape} and {other.shape}"
        )
    num_positions, vocab_size = logits.shape
    divergences = np.empty(num_positions, dtype=np.float64)
    rows = max(1, _BLOCK // vocab_size)
    for start in range(0, num_positions, rows):
        block = slice(start, start + rows)
        require_finite(logits[block], name="logits")
        require_finite(other[block], name="logits")
        log_p, log_q = log_softmax(logits[block]), log_softmax(other[block])
        divergences[block] = np.einsum("tv,tv->t", np.exp(log_p), log_p - log_q)
    return np.maximum(divergences, 0.0)
