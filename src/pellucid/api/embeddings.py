"""``POST /v1/embeddings``: OpenAI's request and answer, with a few additions."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from pellucid.api.dependencies import ServicesDep, StrictModel, model_ref, server_timing
from pellucid.api.error_handlers import ANY_PROBLEM
from pellucid.api.route import WorkRoute
from pellucid.api.tensors import JSON_OPTIONS, JSON_TYPE, require_finite
from pellucid.inference.engine import EmbeddingQuery, Embeddings

router = APIRouter(prefix="/v1", tags=["embeddings"], route_class=WorkRoute)

# FailFast: a million wrong items are reported by the first, not collected.
TokenIds = Annotated[list[int], Field(min_length=1, fail_fast=True)]
Input = (
    str
    | Annotated[list[str], Field(min_length=1, fail_fast=True)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]
)


class EmbeddingRequest(StrictModel):
    """OpenAI's fields, and ours."""

    input: Input = Field(
        description="One text, many texts, one list of token ids, or many.",
        examples=["See through any transformer."],
    )
    model: str | None = Field(None, description="Model id; left out: the server's default.")
    revision: str | None = Field(None, description="Branch, tag or commit of `model`.")
    encoding_format: Literal["float", "base64"] | None = Field(
        "float", description="base64: little-endian float32, a third of the bytes of JSON."
    )
    dimensions: int | None = Field(
        None, ge=1, description="Shorter vectors, of models trained for it."
    )
    user: str | None = Field(None, description="Taken for OpenAI's sake; not used, not kept.")
    input_type: Literal["query", "document"] | None = Field(
        None, description="Chooses the model's own prompt for queries or documents."
    )
    prompt_name: str | None = Field(None, description="Chooses one of the model's prompts by name.")
    truncate: Literal["error", "end", "start"] = Field(
        "end", description="What to do with a text that is too long: refuse, or cut one end off."
    )
    priority: Literal["interactive", "bulk"] = Field(
        "interactive", description="bulk lets others pass."
    )
    normalize: bool = Field(True, description="Vectors of length 1.")

    def query(self) -> EmbeddingQuery:
        inputs, is_one = _as_list(self.input)
        return EmbeddingQuery(
            inputs=inputs,
            input_name="input" if is_one else "input[{index}]",
            model=model_ref(self.model, self.revision),
            normalize=self.normalize,
            dimensions=self.dimensions,
            input_type=self.input_type,
            prompt_name=self.prompt_name,
            truncate=self.truncate,
            priority=self.priority,
        )


class EmbeddingItem(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="Numbers, or base64 when asked for.")
    truncated: bool = Field(description="Whether the model read less than was sent.")


class Usage(BaseModel):
    prompt_tokens: int = Field(description="Tokens that the model read, special ones included.")
    total_tokens: int


class EmbeddingAnswer(BaseModel):
    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    revision: str
    usage: Usage


@router.post(
    "/embeddings",
    operation_id="createEmbeddings",
    summary="Embed texts",
    response_model=None,
    responses={200: {"model": EmbeddingAnswer}, **ANY_PROBLEM},
)
async def create_embeddings(request: EmbeddingRequest, services: ServicesDep) -> Response:
    """One vector per input, in the order sent. The official OpenAI clients work unchanged."""
    embeddings = await services.engine.embed(request.query())
    services.metrics.tokens.labels("embedding").inc(sum(embeddings.num_tokens))
    services.metrics.observe_stages("embedding", embeddings.timing)
    require_finite({"embeddings": embeddings.vectors}, model_id=embeddings.model.model_id)
    return Response(
        orjson.dumps(
            _answer(embeddings, as_text=request.encoding_format == "base64"), option=JSON_OPTIONS
        ),
        media_type=JSON_TYPE,
        headers={"Server-Timing": server_timing(embeddings.timing)},
    )


def _answer(embeddings: Embeddings, *, as_text: bool) -> dict[str, Any]:
    vectors = np.ascontiguousarray(embeddings.vectors, dtype="<f4")
    num_tokens = sum(embeddings.num_tokens)
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.data).decode() if as_text else vector,
                "truncated": truncated,
            }
            for index, (vector, truncated) in enumerate(
                zip(vectors, embeddings.truncated, strict=True)
            )
        ],
        "model": embeddings.model.model_id,
        "revision": embeddings.model.revision,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def _as_list(given: Any) -> tuple[list[str | list[int]], bool]:
    """The inputs, and whether it was one alone: a text, or a list of ids."""
    if isinstance(given, str) or isinstance(given[0], int):
        return [given], True
    return list(given), False
