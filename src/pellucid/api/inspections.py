"""``POST /v1/inspections``: what a model sees in a text, layer by layer and head by head."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pellucid.api.dependencies import ServicesDep, StrictModel, model_ref, server_timing
from pellucid.api.error_handlers import ANY_PROBLEM
from pellucid.api.problems import StoreUnavailable
from pellucid.api.route import WorkRoute
from pellucid.api.tensors import (
    JSON_TYPE,
    SAFETENSORS_TYPE,
    json_response,
    preferred_type,
    require_finite,
    safetensors_response,
)
from pellucid.errors import InputsConflict
from pellucid.inference.engine import (
    AnswerFormat,
    Include,
    Inspection,
    InspectionQuery,
    ProjectionQuery,
    Token,
)
from pellucid.models.backend import AttentionName, Knockout

router = APIRouter(prefix="/v1", tags=["inspections"], route_class=WorkRoute)

_INPUTS = ("text", "input_ids", "messages")


def _distinct(values: list[int]) -> list[int]:
    if len(set(values)) != len(values):
        raise ValueError("each may be named once")
    return values


Indices = Annotated[
    list[int],
    Field(min_length=1, fail_fast=True, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_distinct),
]


class ChatMessage(StrictModel):
    role: str
    content: str


class KnockoutRequest(StrictModel):
    """Edges to cut: those whose layer, head, query and key position are all named."""

    layers: Indices | None = None
    heads: Indices | None = None
    query_positions: Indices | None = None
    key_positions: Indices | None = None
    attention: AttentionName | None = Field(
        None, description="Which of its three attentions; needed for encoder-decoder models only."
    )


class ProjectionRequest(StrictModel):
    method: Literal["pca", "umap"] = "pca"
    dimensions: Literal[2, 3] = 2
    layer: int | Literal["all"] = Field(
        default=-1,
        description="Index into `hidden_states`, -1 for the last; all: one space for all.",
    )


class InspectionRequest(StrictModel):
    """Exactly one of `text`, `input_ids` and `messages`, and what to tell about it."""

    model_id: str | None = Field(None, description="Left out: the server's default model.")
    revision: str | None = Field(None, description="Branch, tag or commit of `model_id`.")
    text: str | None = Field(
        None, description="What to look into.", examples=["The cat sat on the mat."]
    )
    input_ids: Annotated[list[int], Field(fail_fast=True)] | None = Field(
        None, min_length=1, description="Token ids, taken as they are."
    )
    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] | None = Field(
        None, min_length=1, description="A chat, through the model's own template."
    )
    text_pair: str | None = Field(None, description="Second text, for models that read pairs.")
    target_text: str | None = Field(
        None, description="For encoder-decoder models; left out: what the model generates greedily."
    )
    include: Annotated[list[Include], Field(fail_fast=True)] = Field(
        default_factory=lambda: list[Include](["attentions", "statistics"]),
        description="What to tell; left out: attentions and statistics.",
    )
    layers: Indices | None = Field(None, description="From 0; left out: all.")
    heads: Indices | None = Field(None, description="From 0; left out: all.")
    dtype: Literal["float32", "float16", "uint8"] = Field(
        "float32", description="uint8: attention as round(255 * weight); other tensors as float16."
    )
    projection: ProjectionRequest = Field(
        default_factory=lambda: ProjectionRequest(),
        description="How, when `include` names `projection`.",
    )
    knockouts: Annotated[list[KnockoutRequest], Field(fail_fast=True)] = Field(
        default_factory=list,
        description="Edges cut for this request alone; `change` in the answer tells the effect.",
    )
    truncate: Literal["error", "end"] = Field(
        "error", description="What to do with a text that is too long: refuse it, or cut its end."
    )
    max_tokens: int | None = Field(None, ge=1, description="Less than the model's own limit.")
    store: bool = Field(False, description="Keeping inspections is not offered by this version.")

    def query(self, *, answer_format: AnswerFormat = "json") -> InspectionQuery:
        """The meaning of the request. Raises InputsConflict, StoreUnavailable."""
        given = [name for name in _INPUTS if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputsConflict(given=" and ".join(given) or "none", choices=", ".join(_INPUTS))
        if self.store:
            raise StoreUnavailable(field="store")
        messages = self.messages
        return InspectionQuery(
            model=model_ref(self.model_id, self.revision),
            text=self.text,
            input_ids=self.input_ids,
            messages=[message.model_dump() for message in messages] if messages else None,
            text_pair=self.text_pair,
            target_text=self.target_text,
            include=frozenset(self.include),
            layers=_tuple(self.layers),
            heads=_tuple(self.heads),
            dtype=self.dtype,
            projection=ProjectionQuery(
                method=self.projection.method,
                dimensions=self.projection.dimensions,
                layer=self.projection.layer,
            ),
            knockouts=tuple(_knockout(wanted) for wanted in self.knockouts),
            truncate=self.truncate,
            max_tokens=self.max_tokens,
            answer_format=answer_format,
        )


class TokenAnswer(BaseModel):
    id: int
    text: str
    start: int = Field(description="First character in the text that was sent.")
    end: int = Field(description="One past the last character.")
    special: bool
    text_index: int = Field(description="0: text, 1: text_pair, -1: special.")


class TensorAnswer(BaseModel):
    dtype: Literal["float32", "float16", "uint8", "int64", "bool"]
    shape: list[int]
    axes: list[str]
    scale: float | None = Field(None, description="value = stored * scale")
    note: str | None = None


class InspectionAnswer(BaseModel):
    """The values of each tensor stand beside these fields, under the tensor's own name."""

    model_config = ConfigDict(extra="allow")

    model_id: str
    revision: str
    architecture: str
    num_layers: int
    num_heads: int
    tokens: list[TokenAnswer]
    target_tokens: list[TokenAnswer] | None = None
    target_generated: bool | None = None
    truncated: bool
    num_tokens_untruncated: int
    layers: list[int] = Field(description="What each index of a layer axis stands for.")
    heads: list[int] = Field(description="What each index of a head axis stands for.")
    dtype: str
    attention_implementation: str
    tensors: dict[str, TensorAnswer]
    statistics: dict[str, Any] | None = None
    patterns: dict[str, Any] | None = None
    projection: dict[str, Any] | None = None
    logit_lens: dict[str, Any] | None = None
    change: dict[str, Any] | None = None
    timing: dict[str, float] = Field(description="Milliseconds.")


@router.post(
    "/inspections",
    operation_id="createInspection",
    summary="Inspect one text",
    response_model=None,
    responses={
        200: {
            "model": InspectionAnswer,
            "content": {
                SAFETENSORS_TYPE: {
                    "schema": {
                        "type": "string",
                        "format": "binary",
                        "description": "The same tensors as a safetensors file; everything else "
                        "is JSON text in its `__metadata__`, under `inspection`.",
                    }
                }
            },
        },
        **ANY_PROBLEM,
    },
)
async def create_inspection(
    request: InspectionRequest,
    services: ServicesDep,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """Tokens, hidden states, attention and what follows from them, of one forward pass.

    With `Accept: application/vnd.safetensors` the tensors come as such a file, and everything else
    as JSON text in its `__metadata__`, under `inspection`.
    """
    chosen = preferred_type(accept)
    inspection = await services.engine.inspect(
        request.query(answer_format="json" if chosen == JSON_TYPE else "safetensors")
    )
    services.metrics.tokens.labels("inspection").inc(len(inspection.tokens))
    services.metrics.observe_stages("inspection", inspection.timing)
    arrays = {name: tensor.values for name, tensor in inspection.tensors.items()}
    require_finite(arrays, model_id=inspection.model.model_id)
    fields = inspection_fields(inspection, dtype=request.dtype)
    headers = {"Server-Timing": server_timing(inspection.timing), "Vary": "Accept"}
    if chosen == JSON_TYPE:
        return json_response(fields, arrays, headers=headers)
    return safetensors_response(
        inspection.tensors, metadata={"inspection": fields}, headers=headers
    )


def inspection_fields(inspection: Inspection, *, dtype: str) -> dict[str, Any]:
    """Everything besides the tensors' values, ready for JSON."""
    model = inspection.model
    fields: dict[str, Any] = {
        "model_id": model.model_id,
        "revision": model.revision,
        "architecture": model.architecture,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
        "tokens": _tokens(inspection.tokens),
        "truncated": inspection.truncated,
        "num_tokens_untruncated": inspection.num_tokens_untruncated,
        "layers": inspection.layers,
        "heads": inspection.heads,
        "dtype": dtype,
        "attention_implementation": model.attention_implementation,
        "tensors": {name: _tensor_fields(tensor) for name, tensor in inspection.tensors.items()},
        "timing": inspection.timing,
    }
    if inspection.target_tokens is not None:
        fields["target_tokens"] = _tokens(inspection.target_tokens)
        fields["target_generated"] = inspection.target_generated
    for name in ("statistics", "patterns", "projection", "logit_lens", "change"):
        if (value := getattr(inspection, name)) is not None:
            fields[name] = value
    return fields


def _tokens(tokens: tuple[Token, ...]) -> list[dict[str, Any]]:
    return [
        {
            "id": token.id,
            "text": token.text,
            "start": token.start,
            "end": token.end,
            "special": token.special,
            "text_index": token.text_index,
        }
        for token in tokens
    ]


def _tensor_fields(tensor: Any) -> dict[str, Any]:
    fields = {
        "dtype": tensor.values.dtype.name,
        "shape": tensor.values.shape,
        "axes": tensor.axes,
    }
    if tensor.scale is not None:
        fields["scale"] = tensor.scale
    if tensor.note is not None:
        fields["note"] = tensor.note
    return fields


def _knockout(wanted: KnockoutRequest) -> Knockout:
    return Knockout(
        layers=_tuple(wanted.layers),
        heads=_tuple(wanted.heads),
        query_positions=_tuple(wanted.query_positions),
        key_positions=_tuple(wanted.key_positions),
        attention=wanted.attention or "attentions",
    )


def _tuple(values: list[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)
