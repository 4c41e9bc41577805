"""``POST /process``: tokens, last hidden state and all attention of one text, as plain JSON.

The words are the earlier system's: ``embeddings`` is the last hidden state, ``attention`` is
``[num_layers][num_heads][seq_len][seq_len]``. For encoder-decoder models both are the encoder's;
``decoder_attention``, ``cross_attention`` and ``target_tokens`` stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from pellucid.api.dependencies import LenientModel, ServicesDep, model_ref, server_timing
from pellucid.api.error_handlers import ANY_PROBLEM
from pellucid.api.route import WorkRoute
from pellucid.api.tensors import Nested, json_response, require_finite
from pellucid.inference.engine import (
    Engine,
    Include,
    Inspection,
    InspectionQuery,
    ProjectionQuery,
)
from pellucid.models.backend import AttentionName

router = APIRouter(tags=["earlier contracts"], route_class=WorkRoute)

# The contract's name of each attention, by the name that tensors have.
_ATTENTIONS: dict[AttentionName, str] = {
    "attentions": "attention",
    "encoder_attentions": "attention",
    "decoder_attentions": "decoder_attention",
    "cross_attentions": "cross_attention",
}


class ProcessRequest(LenientModel):
    text: str = Field(examples=["The cat sat on the mat."])
    model_name: str | None = Field(None, description="Any model of the Hub; null: the default.")
    do_pca: bool = False
    do_umap: bool = Field(False, description="Needs more tokens than PCA; fewer are refused.")


class ProcessAnswer(BaseModel):
    tokens: list[str]
    embeddings: list[list[float]] = Field(description="Last hidden state: [seq_len][hidden_size].")
    attention: list[list[list[list[float]]]] = Field(
        description="[num_layers][num_heads][seq_len][seq_len], rows are queries."
    )
    pca_2d: list[list[float]] | None
    umap_2d: list[list[float]] | None
    model_id: str
    revision: str
    truncated: bool = Field(description="Whether the model read less than was sent.")
    target_tokens: list[str] | None = Field(None, description="Of encoder-decoder models.")
    decoder_attention: list[list[list[list[float]]]] | None = None
    cross_attention: list[list[list[list[float]]]] | None = None


@router.post(
    "/process",
    operation_id="process",
    summary="Tokens, vectors and attention of a text",
    response_model=None,
    responses={200: {"model": ProcessAnswer}, **ANY_PROBLEM},
)
async def process(request: ProcessRequest, services: ServicesDep) -> Response:
    """Everything about one text at once; a text that is too long is cut and says so."""
    inspection, projections = await _look(request, services.engine)
    services.metrics.tokens.labels("inspection").inc(len(inspection.tokens))
    services.metrics.observe_stages("inspection", inspection.timing)
    arrays = _arrays(inspection)
    require_finite(arrays, model_id=inspection.model.model_id)
    fields: dict[str, Any] = {
        "tokens": [token.text for token in inspection.tokens],
        "pca_2d": projections.get("pca"),
        "umap_2d": projections.get("umap"),
        "model_id": inspection.model.model_id,
        "revision": inspection.model.revision,
        "truncated": inspection.truncated,
    }
    if inspection.target_tokens is not None:
        fields["target_tokens"] = [token.text for token in inspection.target_tokens]
    return json_response(
        fields, arrays, headers={"Server-Timing": server_timing(inspection.timing)}
    )


async def _look(request: ProcessRequest, engine: Engine) -> tuple[Inspection, Mapping[str, Any]]:
    """One forward pass; a second, light one when both projections are asked for."""
    methods = _methods(request)
    projections: dict[str, Any] = {}
    for method in methods[1:]:
        looked = await engine.inspect(_query(request, include={"projection"}, method=method))
        projections[method] = _coordinates(looked)
    include: set[Include] = {"hidden_states", "attentions"}
    if methods:
        include.add("projection")
    inspection = await engine.inspect(
        _query(request, include=include, method=methods[0] if methods else "pca")
    )
    if methods:
        projections[methods[0]] = _coordinates(inspection)
    return inspection, projections


def _methods(request: ProcessRequest) -> list[Literal["pca", "umap"]]:
    asked: list[tuple[Literal["pca", "umap"], bool]] = [
        ("pca", request.do_pca),
        ("umap", request.do_umap),
    ]
    return [method for method, is_asked in asked if is_asked]


def _query(
    request: ProcessRequest, *, include: set[Include], method: Literal["pca", "umap"]
) -> InspectionQuery:
    return InspectionQuery(
        model=model_ref(request.model_name),
        text=request.text,
        include=frozenset(include),
        hidden_layers=(-1,),
        projection=ProjectionQuery(method=method, dimensions=2, layer=-1),
        truncate="end",
    )


def _coordinates(inspection: Inspection) -> Any:
    assert inspection.projection is not None, "asked for, so the engine gave it"
    return inspection.projection["coordinates"]


def _arrays(inspection: Inspection) -> dict[str, Nested]:
    """The tensors under the contract's names; layers of different shapes become a list."""
    arrays: dict[str, Nested] = {}
    for name, tensor in inspection.tensors.items():
        stem, _, layer = name.partition(".")
        if stem in ("hidden_states", "encoder_hidden_states") and not layer:
            arrays["embeddings"] = np.ascontiguousarray(tensor.values[-1])
        elif (known := _ATTENTIONS.get(stem)) is None:  # type: ignore[call-overload]
            continue
        elif layer:
            layers = arrays.setdefault(known, [])
            assert isinstance(layers, list)
            layers.append(tensor.values)
        else:
            arrays[known] = tensor.values
    return arrays
