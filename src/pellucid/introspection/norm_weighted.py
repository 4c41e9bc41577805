"""Attention weighted by the length of what it moves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.introspection.arrays import Float32, attention_array, require_finite


def norm_weighted_attention(
    attention: NDArray[Any], value_norms: NDArray[Any], *, normalize: bool = False
) -> Float32:
    """||a_ij f(x_j)|| = a_ij ||f(x_j)||: [num_heads, query_len, key_len] -> the same shape.

    ``value_norms`` [num_heads, key_len] are the norms of each token's value vector after that
    head's part of the output projection. A weight says how much is taken, not of what: heads often
    look at [CLS], [SEP] or full stops whose vectors are next to zero, so that a weight of 0.9 may
    move nothing (Kobayashi et al. 2020, "Attention is Not Only a Weight").

    The result has the unit of the hidden states and no upper bound, and heads of one layer compare;
    with ``normalize`` each row is divided by its sum (rows of zeros stay), which makes rows compare
    with raw attention and loses how much is moved. Directions are not seen: vectors of several
    tokens or heads may still cancel out.
    Raises ValueError for shapes that do not fit, negative norms, NaN or infinity.
    """
    weights = attention_array(attention)
    num_heads, _, key_len = weights.shape
    norms = np.asarray(value_norms, dtype=np.float32)
    if norms.shape != (num_heads, key_len):
        raise ValueError(f"value_norms are [{num_heads}, {key_len}], not {norms.shape}")
    require_finite(norms, name="value_norms")
    if (norms < 0).any():
        raise ValueError("value_norms are norms: none is negative")
    with np.errstate(over="ignore"):  # refused in the next lines
        weighted: Float32 = weights * norms[:, None, :]
    sums = weighted.sum(axis=2, keepdims=True, dtype=np.float64)
    require_finite(sums, name="norm-weighted attention")
    if normalize:
        weighted /= np.where(sums > 0, sums, 1.0).astype(np.float32)
    return weighted
