"""What is made of a finished forward pass: projections, the logit lens, what knock-outs changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from pellucid.errors import TooFewTokens
from pellucid.inference.attention_reader import listed
from pellucid.inference.plan import InspectionPlan
from pellucid.introspection.change import TokenChanges, logit_change, vector_change
from pellucid.introspection.logit_lens import lens_summary
from pellucid.introspection.projection import TooFewPoints, project
from pellucid.models.backend import Backend, Float32, LogitLens, ModelOutputs

CHANGED_TOKENS = 10  # listed before, after, and as the largest movers


def read_projection(plan: InspectionPlan, hidden_states: Float32, *, name: str) -> dict[str, Any]:
    """[num_points or layers, seq_len, hidden_size] -> coordinates as plain lists.

    ``hidden_states`` holds the projected layer alone, or all of them for ``"all"``. Raises
    TooFewTokens.
    """
    query = plan.query.projection
    points = hidden_states if plan.projected_index is None else hidden_states[0]
    try:
        projection = project(points, method=query.method, dimensions=query.dimensions)
    except TooFewPoints as error:
        raise TooFewTokens(
            method=error.method, min_tokens=error.min_points, tokens=error.points
        ) from error
    ratio = projection.explained_variance_ratio
    return {
        "method": query.method,
        "dimensions": query.dimensions,
        "of": name,
        "layer": "all" if plan.projected_index is None else plan.projected_index,
        "coordinates": listed(projection.coordinates),
        "explained_variance_ratio": None if ratio is None else listed(ratio),
        "num_neighbors": projection.num_neighbors,
    }


def read_logit_lens(backend: Backend, lens: LogitLens) -> dict[str, Any]:
    """Most likely next tokens per layer and position; ``tokens`` maps ids to what they read as."""
    token_ids, probabilities = lens.token_ids[:, 0], lens.probabilities[:, 0]
    summary = lens_summary(token_ids, probabilities)
    return {
        "top_k": token_ids.shape[-1],
        "token_ids": listed(token_ids),
        "probabilities": listed(probabilities),
        "entropy": listed(lens.entropy[:, 0]),
        "final_token_ids": listed(summary.final_token_ids),
        "settled_layer": listed(summary.settled_layer),
        "rank": listed(summary.rank),
        "tokens": tokens_of(backend, np.unique(token_ids).tolist()),
    }


def read_change(backend: Backend, *, before: ModelOutputs, after: ModelOutputs) -> dict[str, Any]:
    """The run without knock-outs beside the run with them: of logits, or of the embedding."""
    if before.logits is not None and after.logits is not None:
        change = logit_change(before.logits[0], after.logits[0], top_k=CHANGED_TOKENS)
        return {
            "of": "logits",
            "divergence": listed(change.divergence),
            "position": change.position,
            "likeliest_before": _rows(backend, change.likeliest_before),
            "likeliest_after": _rows(backend, change.likeliest_after),
            "movers": _rows(backend, change.movers),
        }
    assert before.pooled is not None
    assert after.pooled is not None
    vectors = vector_change(before.pooled[0], after.pooled[0])
    return {
        "of": "embedding",
        "cosine_similarity": vectors.cosine_similarity,
        "distance": vectors.distance,
        "relative_distance": vectors.relative_distance,
    }


def tokens_of(backend: Backend, token_ids: Iterable[int]) -> dict[str, str]:
    """Readable pieces by id (as text: the keys of a JSON object)."""
    return {str(token_id): backend.encoding_of([token_id]).tokens[0] for token_id in token_ids}


def _rows(backend: Backend, changes: TokenChanges) -> list[dict[str, Any]]:
    tokens = tokens_of(backend, changes.token_ids.tolist())
    columns = {
        "logit_before": listed(changes.logits_before),
        "logit_after": listed(changes.logits_after),
        "probability_before": listed(changes.probabilities_before),
        "probability_after": listed(changes.probabilities_after),
    }
    return [
        {"id": token_id, "text": tokens[str(token_id)]}
        | {name: column[row] for name, column in columns.items()}
        for row, token_id in enumerate(changes.token_ids.tolist())
    ]
