"""When, on the way through the layers, the prediction was made.

The reading of hidden states through the output matrix (nostalgebraist 2020) is the model's part;
here is what follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.introspection.arrays import Bool, Float32, Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class LensSummary:
    """Per position. Layers count as hidden states do: 0 = embedding layer, num_layers = the end."""

    final_token_ids: Int64  # [seq_len] most likely next token at the end
    settled_layer: Int64  # [seq_len] from here on the final token is the most likely at every layer
    agrees: Bool  # [num_layers + 1, seq_len] the layer's most likely token is the final one
    rank: Int64  # [num_layers + 1, seq_len] of the final token, 0 = most likely; -1 = below top_k
    probability: Float32  # [num_layers + 1, seq_len] of the final token; 0 where rank is -1


def lens_summary(token_ids: NDArray[Any], probabilities: NDArray[Any]) -> LensSummary:
    """[num_layers + 1, seq_len, top_k] each, most likely first -> where predictions settle.

    A probability of 0 with rank -1 means "not among the top_k", an upper bound being the last one
    listed. Raises ValueError for shapes that differ.
    """
    if token_ids.shape != probabilities.shape or token_ids.ndim != 3 or 0 in token_ids.shape:
        raise ValueError(
            "token_ids and probabilities are [num_layers + 1, seq_len, top_k], "
            f"not {token_ids.shape} and {probabilities.shape}"
        )
    final = token_ids[-1, :, 0].astype(np.int64)
    matches = token_ids == final[None, :, None]
    is_listed = matches.any(axis=2)
    agrees: Bool = matches[:, :, 0]
    # From the end backwards: how many layers in a row agree.
    unbroken = np.logical_and.accumulate(agrees[::-1], axis=0).sum(axis=0)
    return LensSummary(
        final_token_ids=final,
        settled_layer=(len(token_ids) - unbroken).astype(np.int64),
        agrees=agrees,
        rank=np.where(is_listed, matches.argmax(axis=2), -1).astype(np.int64),
        probability=(probabilities * matches).sum(axis=2).astype(np.float32),
    )
