"""``POST /v1/embeddings``: OpenAI's request and answer, with a few additions."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Header, Response
from pydantic import BaseModel, Field

from pellucid.api.dependencies import ServicesDep, StrictModel, model_ref, server_timing
from pellucid.api.error_handlers import ANY_PROBLEM
from pellucid.api.route import WorkRoute
from pellucid.api.tensors import (
    BYTES_TYPE,
    JSON_OPTIONS,
    JSON_TYPE,
    SAFETENSORS_TYPE,
    preferred_type,
    require_finite,
    safetensors_response,
)
from pellucid.errors import InvalidRequest, PellucidError
from pellucid.inference.engine import EmbeddingQuery, Embeddings, Tensor
from pellucid.services import Services

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
    truncate: Literal["error", "end", "start", "chunk"] = Field(
        "end",
        description="What to do with a text that is too long: refuse, cut one end off, or read it "
        "in pieces and average their vectors, each weighing as many as its tokens.",
    )
    priority: Literal["interactive", "bulk"] | None = Field(
        None,
        description="bulk lets interactive requests pass; left out: interactive for at most "
        "`interactive_inputs` inputs, else bulk.",
    )
    on_error: Literal["fail", "report"] = Field(
        "fail",
        description="An input that cannot be embedded fails the request, or is reported in "
        "`errors` while the others are answered.",
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
            on_error=self.on_error,
        )


class EmbeddingItem(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str | None = Field(
        description="Numbers, or base64 when asked for; null for an input in `errors`."
    )
    truncated: bool = Field(description="Whether the model read less than was sent.")
    chunks: int = Field(description="Pieces that it was read in; 1 unless `truncate` is chunk.")


class InputError(BaseModel):
    """Why one input has no embedding."""

    index: int
    code: str
    message: str


class Usage(BaseModel):
    prompt_tokens: int = Field(description="Tokens that the model read, special ones included.")
    total_tokens: int


class EmbeddingAnswer(BaseModel):
    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    revision: str
    usage: Usage
    errors: list[InputError] | None = Field(
        None, description="Where `on_error` is report: the inputs without an embedding."
    )


_OFFERED = (JSON_TYPE, SAFETENSORS_TYPE, BYTES_TYPE)
_BINARY = {"type": "string", "format": "binary"}


@router.post(
    "/embeddings",
    operation_id="createEmbeddings",
    summary="Embed texts",
    response_model=None,
    responses={
        200: {
            "model": EmbeddingAnswer,
            "content": {
                SAFETENSORS_TYPE: {
                    "schema": {
                        **_BINARY,
                        "description": "One float32 tensor, `embeddings`; everything else is JSON "
                        "text in its `__metadata__`, under `answer`.",
                    }
                },
                BYTES_TYPE: {
                    "schema": {
                        **_BINARY,
                        "description": "Little-endian float32, row by row; `Embedding-Shape` tells "
                        "rows and columns.",
                    }
                },
            },
        },
        **ANY_PROBLEM,
    },
)
async def create_embeddings(
    request: EmbeddingRequest,
    services: ServicesDep,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """One vector per input, in the order sent. The official OpenAI clients work unchanged.

    `Accept: application/vnd.safetensors` gives the vectors as such a file, and
    `Accept: application/octet-stream` as bare float32 with `Embedding-Shape: ROWS, COLUMNS`.
    """
    chosen = preferred_type(accept, offered=_OFFERED)
    if chosen == BYTES_TYPE and request.on_error == "report":
        problem = {"field": "on_error", "problem": "bare numbers cannot tell errors"}
        raise InvalidRequest(
            reason="on_error: bare numbers cannot tell errors; accept JSON or safetensors.",
            field="on_error",
            problems=[problem],
        )
    embeddings = await services.engine.embed(request.query())
    headers = {**account_for(embeddings, services), "Vary": "Accept"}
    if chosen == BYTES_TYPE:
        vectors = np.ascontiguousarray(embeddings.vectors, dtype="<f4")
        headers["Embedding-Shape"] = ", ".join(str(size) for size in vectors.shape)
        return Response(vectors.data.cast("B"), media_type=BYTES_TYPE, headers=headers)
    errors = _errors(embeddings) if request.on_error == "report" else {}
    fields = _fields(embeddings) | errors
    if chosen == SAFETENSORS_TYPE:
        tensors = {"embeddings": Tensor(values=embeddings.vectors, axes=("input", "dimension"))}
        items = {"truncated": embeddings.truncated, "chunks": _num_chunks(embeddings)}
        return safetensors_response(tensors, metadata={"answer": fields | items}, headers=headers)
    data = _data(embeddings, as_text=request.encoding_format == "base64")
    content = orjson.dumps({"object": "list", "data": data, **fields}, option=JSON_OPTIONS)
    return Response(content, media_type=JSON_TYPE, headers=headers)


def account_for(embeddings: Embeddings, services: Services) -> dict[str, str]:
    """Count what was done, and tell how long it took: the headers of the answer.

    Raises NonFiniteValues rather than let null be sent for a number.
    """
    services.metrics.tokens.labels("embedding").inc(sum(embeddings.num_tokens))
    services.metrics.observe_stages("embedding", embeddings.timing)
    require_finite({"embeddings": embeddings.vectors}, model_id=embeddings.model.model_id)
    timing = server_timing(embeddings.timing)
    return {"Server-Timing": f'{timing}, lane;desc="{embeddings.lane}"'}


def _data(embeddings: Embeddings, *, as_text: bool) -> list[dict[str, Any]]:
    vectors = np.ascontiguousarray(embeddings.vectors, dtype="<f4")
    failed = embeddings.errors
    per_input = zip(vectors, embeddings.truncated, _num_chunks(embeddings), strict=True)
    return [
        {
            "object": "embedding",
            "index": index,
            "embedding": None
            if index in failed
            else base64.b64encode(vector.data).decode()
            if as_text
            else vector,
            "truncated": truncated,
            "chunks": num_chunks,
        }
        for index, (vector, truncated, num_chunks) in enumerate(per_input)
    ]


def _fields(embeddings: Embeddings) -> dict[str, Any]:
    num_tokens = sum(embeddings.num_tokens)
    return {
        "model": embeddings.model.model_id,
        "revision": embeddings.model.revision,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def _errors(embeddings: Embeddings) -> dict[str, Any]:
    failed: Mapping[int, PellucidError] = embeddings.errors
    return {
        "errors": [
            {"index": index, "code": failed[index].code, "message": failed[index].detail}
            for index in sorted(failed)
        ]
    }


def _num_chunks(embeddings: Embeddings) -> tuple[int, ...]:
    return embeddings.num_chunks or (1,) * len(embeddings.truncated)


def _as_list(given: Any) -> tuple[list[str | list[int]], bool]:
    """The inputs, and whether it was one alone: a text, or a list of ids."""
    if isinstance(given, str) or isinstance(given[0], int):
        return [given], True
    return list(given), False
