"""``/embed`` and ``/unload``, as earlier clients call them.

``/embed`` is the union of two contracts: ``vectors`` of the one, ``success`` and ``count`` of the
other. Texts that are too long are cut, as they ever were, and ``truncated`` says which.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field

from pellucid.api.dependencies import LenientModel, ServicesDep
from pellucid.api.embeddings import account_for
from pellucid.api.error_handlers import ANY_PROBLEM
from pellucid.api.models import UnloadAnswer
from pellucid.api.route import WorkRoute
from pellucid.api.tensors import json_response
from pellucid.inference.engine import EmbeddingQuery
from pellucid.telemetry import SIDECAR_LOG, get_logger, is_debugged

router = APIRouter(tags=["earlier contracts"], route_class=WorkRoute)

_HTML = "text/html"


class EmbedRequest(LenientModel):
    texts: list[str] = Field(
        min_length=1, fail_fast=True, examples=[["See through any transformer."]]
    )
    normalize: bool = Field(True, description="Vectors of length 1.")


class EmbedAnswer(BaseModel):
    success: Literal[True]
    count: int
    vectors: list[list[float]]
    model: str
    dim: int
    truncated: list[bool]


@router.post(
    "/embed",
    operation_id="embed",
    summary="Embed texts",
    response_model=None,
    responses={200: {"model": EmbedAnswer}, **ANY_PROBLEM},
)
async def embed(request: EmbedRequest, services: ServicesDep) -> Response:
    """One vector per text, in the order sent."""
    query = EmbeddingQuery(
        inputs=request.texts, normalize=request.normalize, input_name="texts[{index}]"
    )
    embeddings = await services.engine.embed(query)
    headers = account_for(embeddings, services)
    count, dim = embeddings.vectors.shape
    if is_debugged(SIDECAR_LOG):
        get_logger(SIDECAR_LOG).debug(
            "embedded", count=count, tokens=sum(embeddings.num_tokens), timing=embeddings.timing
        )
    return json_response(
        {
            "success": True,
            "count": count,
            "model": embeddings.model.model_id,
            "dim": dim,
            "truncated": embeddings.truncated,
        },
        {"vectors": embeddings.vectors},
        headers=headers,
    )


@router.get(
    "/unload",
    operation_id="unloadByLink",
    summary="Free all idle models",
    response_model=UnloadAnswer,
    responses={303: {"description": "To /, for a browser."}, **ANY_PROBLEM},
)
@router.post(
    "/unload",
    operation_id="unload",
    summary="Free all idle models",
    response_model=UnloadAnswer,
    responses={303: {"description": "To /, for a browser."}, **ANY_PROBLEM},
)
async def unload(
    services: ServicesDep, accept: Annotated[str, Header(include_in_schema=False)] = ""
) -> Any:
    """Give the memory of every idle model back; they load again when they are asked for."""
    freed_bytes = await services.engine.unload()
    if _HTML in accept.lower():
        return RedirectResponse("/", status_code=303)
    return UnloadAnswer(freed_bytes=freed_bytes)
