"""Attention rollout: how input tokens mix over the layers, if attention were all that mixes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pellucid.introspection.arrays import Float32, Float64, attention_array, require_finite

HeadFusion = Literal["mean", "max", "min"]


class Rollout:
    """Layers are fed one at a time, from the first to the last, none left out.

    R_0 = I, R_l = A_l R_(l-1) with A_l = rows of (residual I + (1 - residual) fused heads), each
    divided by its sum (Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers";
    they take residual = 0.5 and the mean over heads). Row i of the result says from which input
    tokens position i is made; rows sum to 1.

    What a learned sink takes carries no token's value: dividing the row by its sum gives that part
    back to the tokens and the residual in proportion. The same holds for "max" and "min", whose
    rows do not sum to 1 by themselves. Values, norms and feed-forward parts are ignored.
    """

    def __init__(self, *, head_fusion: HeadFusion = "mean", residual: float = 0.5) -> None:
        if not 0.0 < residual <= 1.0:  # without it a row may be empty
            raise ValueError(f"residual is above 0 and at most 1, not {residual}")
        self._head_fusion = head_fusion
        self._residual = residual
        self._mixed: Float64 | None = None
        self._num_layers = 0

    @property
    def num_layers(self) -> int:
        """How many layers were fed; the caller compares it with the model's."""
        return self._num_layers

    def add(self, attention: NDArray[Any]) -> None:
        """Feed the next layer: [num_heads, seq_len, seq_len], all heads.

        Raises ValueError for cross attention, another length than before, NaN or infinity.
        """
        weights = attention_array(attention, square=True)
        length = weights.shape[1]
        if self._mixed is not None and self._mixed.shape[0] != length:
            raise ValueError(f"layer of {length} tokens after layers of {self._mixed.shape[0]}")
        step = _fuse(weights, self._head_fusion) * (1.0 - self._residual)
        require_finite(step, name="attention")
        step[np.diag_indices(length)] += self._residual
        step /= step.sum(axis=1, keepdims=True)
        self._mixed = step if self._mixed is None else step @ self._mixed
        self._num_layers += 1

    def result(self) -> Float32:
        """[seq_len, seq_len], rows sum to 1. Raises ValueError before the first layer."""
        if self._mixed is None:
            raise ValueError("no layer was fed")
        return self._mixed.astype(np.float32)


def _fuse(weights: Float32, head_fusion: HeadFusion) -> Float64:
    if head_fusion == "mean":
        mean: Float64 = weights.mean(axis=0, dtype=np.float64)
        return mean
    extreme: Float32 = weights.max(axis=0) if head_fusion == "max" else weights.min(axis=0)
    return extreme.astype(np.float64)
