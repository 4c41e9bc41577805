"""Types of arrays, and the one check that every attention array passes on its way in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


def attention_array(attention: NDArray[Any], *, square: bool = False) -> Float32:
    """One layer's attention as contiguous float32, copied only when it is not that already.

    [num_heads, query_len, key_len] -> the same. Raises ValueError when the array has another
    form, is empty, or (``square``) queries and keys are not the same tokens.
    """
    if attention.ndim != 3 or 0 in attention.shape:
        raise ValueError(
            f"attention of one layer is [num_heads, query_len, key_len], not {attention.shape}"
        )
    if square and attention.shape[1] != attention.shape[2]:
        raise ValueError(f"self attention has as many queries as keys, not {attention.shape[1:]}")
    return np.ascontiguousarray(attention, dtype=np.float32)


def require_finite(values: NDArray[Any], *, name: str) -> None:
    """Raises ValueError when ``values`` hold NaN or infinity."""
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinite values")
