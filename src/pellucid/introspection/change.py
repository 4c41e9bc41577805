"""What a knock-out changed (attention knock-out: Geva et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.introspection.arrays import Float64, Int64, require_finite
from pellucid.introspection.divergence import kl_divergence, log_softmax


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChanges:
    """Some tokens of the vocabulary, before and after. Every array is [num_tokens]."""

    token_ids: Int64
    logits_before: Float64
    logits_after: Float64
    probabilities_before: Float64
    probabilities_after: Float64


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitChange:
    divergence: Float64  # [seq_len] nats, KL(before || after)
    position: int  # whose next token the rest is about
    likeliest_before: TokenChanges  # most probable first
    likeliest_after: TokenChanges
    movers: TokenChanges  # largest |change of probability| first


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorChange:
    cosine_similarity: float | None  # None: one of the vectors has no direction
    distance: float  # L2
    relative_distance: float | None  # L2 / length before; None: the length before is 0


def logit_change(
    before: NDArray[Any], after: NDArray[Any], *, top_k: int = 10, position: int = -1
) -> LogitChange:
    """Logits of the uncut and of the cut run, [seq_len, vocab_size] each -> what changed.

    ``divergence`` is KL(before || after) at every position (Kullback and Leibler 1951); the tokens
    are those of ``position`` (default: the last). Movers are ranked by probability: ranked by
    logit, tokens that never had a chance would lead. Ties go to the smaller id.
    Raises ValueError for shapes that differ, a position outside, NaN or infinity.
    """
    divergence = kl_divergence(before, after)
    length, vocab_size = before.shape
    if not -length <= position < length:
        raise ValueError(f"position {position} is outside the {length} of the text")
    if top_k < 1:
        raise ValueError(f"top_k is at least 1, not {top_k}")
    count = min(top_k, vocab_size)
    old, new = before[position].astype(np.float64), after[position].astype(np.float64)
    old_probabilities = np.exp(log_softmax(old))
    new_probabilities = np.exp(log_softmax(new))

    def tokens(ranking: Float64) -> TokenChanges:
        token_ids = np.argsort(-ranking, kind="stable")[:count].astype(np.int64)
        return TokenChanges(
            token_ids=token_ids,
            logits_before=old[token_ids],
            logits_after=new[token_ids],
            probabilities_before=old_probabilities[token_ids],
            probabilities_after=new_probabilities[token_ids],
        )

    return LogitChange(
        divergence=divergence,
        position=position % length,
        likeliest_before=tokens(old),
        likeliest_after=tokens(new),
        movers=tokens(np.abs(new_probabilities - old_probabilities)),
    )


def vector_change(before: NDArray[Any], after: NDArray[Any]) -> VectorChange:
    """Pooled vectors of the uncut and of the cut run, [dimensions] each -> what changed.

    Raises ValueError for shapes that differ, NaN or infinity.
    """
    if before.shape != after.shape or before.ndim != 1:
        raise ValueError(f"vectors are [dimensions] twice, not {before.shape} and {after.shape}")
    require_finite(before, name="the vector before")
    require_finite(after, name="the vector after")
    old, new = before.astype(np.float64), after.astype(np.float64)
    old_length, new_length = float(np.linalg.norm(old)), float(np.linalg.norm(new))
    distance = float(np.linalg.norm(new - old))
    similarity = None
    if old_length > 0 and new_length > 0:
        similarity = float(np.clip((old / old_length) @ (new / new_length), -1.0, 1.0))
    return VectorChange(
        cosine_similarity=similarity,
        distance=distance,
        relative_distance=distance / old_length if old_length > 0 else None,
    )
