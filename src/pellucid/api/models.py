"""``/v1/models``: which models there are, what they are, and what another would cost."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from pellucid.api.dependencies import EngineDep, StrictModel, model_ref
from pellucid.api.error_handlers import ANY_PROBLEM
from pellucid.api.route import LoadRoute, WorkRoute
from pellucid.errors import ModelNotLoaded
from pellucid.inference.engine import ModelStatus, SizeEstimate
from pellucid.models.backend import ModelInfo, ModelRef

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=WorkRoute)
_loading = APIRouter(route_class=LoadRoute)


class ModelRequest(StrictModel):
    """A model by name."""

    model_id: str = Field(
        description="A Hub id, or a folder under `local_models_dir`.",
        examples=["openai-community/gpt2"],
    )
    revision: str | None = Field(None, description="Branch, tag or commit.")


class OptionalModelRequest(StrictModel):
    """A model by name, or none for the default (load) or for all that are idle (unload)."""

    model_id: str | None = None
    revision: str | None = None


class AttentionAnswer(BaseModel):
    """Whether attention can be captured exactly, and how that is known."""

    available: bool
    layers: dict[str, list[int]]
    reason: str | None
    method: str | None
    max_error: float | None = Field(description="Largest difference from eager when loaded.")


class ModelDetails(BaseModel):
    """What a loaded model is."""

    architecture: str
    model_type: str
    kind: str
    num_layers: int
    num_heads: int
    num_decoder_layers: int | None
    num_decoder_heads: int | None
    hidden_size: int
    vocab_size: int
    max_tokens: int | None
    max_embedding_tokens: int | None
    dimensions: int
    matryoshka_dimensions: list[int]
    pooling: str
    prompts: dict[str, str]
    device: str
    dtype: str
    attention_implementation: str
    num_parameters: int
    memory_bytes: int
    attention: AttentionAnswer

    @classmethod
    def of(cls, info: ModelInfo) -> ModelDetails:
        return cls.model_validate(dataclasses.asdict(info))


class ModelAnswer(BaseModel):
    """One model: OpenAI's fields first, then ours."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(
        default=0, description="Always 0: the Hub's date says nothing about the weights."
    )
    owned_by: str
    revision: str | None
    state: Literal["available", "loading", "loaded", "failed"]
    is_default: bool
    in_use: int = Field(description="Requests that it answers now.")
    waiting: int = Field(description="Requests that wait for it.")
    memory_bytes: int | None
    details: ModelDetails | None = Field(description="Known once it is loaded.")
    error: dict[str, Any] | None = Field(description="Why it failed last, by code.")

    @classmethod
    def of(cls, status: ModelStatus) -> ModelAnswer:
        return cls(
            id=status.model_id,
            owned_by=status.model_id.partition("/")[0] if "/" in status.model_id else "local",
            revision=status.revision,
            state=status.state,
            is_default=status.is_default,
            in_use=status.in_use,
            waiting=status.waiting,
            memory_bytes=status.memory_bytes,
            details=ModelDetails.of(status.info) if status.info else None,
            error=dict(status.error) if status.error else None,
        )


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class UnloadAnswer(BaseModel):
    freed_bytes: int


class EstimateAnswer(BaseModel):
    """What loading a model would take, known before anything is downloaded."""

    model_id: str
    revision: str
    weights_bytes: int
    download_bytes: int = Field(description="Still to fetch; 0: all is on this machine.")
    memory_bytes: int
    num_parameters: int | None
    source: Literal["default", "local", "cache", "hub"]
    fits: bool
    limit_bytes: int

    @classmethod
    def of(cls, estimate: SizeEstimate) -> EstimateAnswer:
        return cls.model_validate(dataclasses.asdict(estimate))


@router.get("", operation_id="listModels", summary="List models", responses=ANY_PROBLEM)
async def list_models(engine: EngineDep) -> ModelList:
    """The default model and every other that was asked for, in OpenAI's form."""
    return ModelList(data=[ModelAnswer.of(status) for status in engine.list_models()])


@_loading.post("/load", operation_id="loadModel", summary="Load a model", responses=ANY_PROBLEM)
async def load_model(request: OptionalModelRequest, engine: EngineDep) -> ModelAnswer:
    """Download if needed, load, and answer when it is ready."""
    info = await engine.load(model_ref(request.model_id, request.revision))
    return _one_of(engine.list_models(), info.model_id, info.revision)


@router.post(
    "/unload", operation_id="unloadModel", summary="Free one model or all", responses=ANY_PROBLEM
)
async def unload_model(request: OptionalModelRequest, engine: EngineDep) -> UnloadAnswer:
    """Free one model, or all that are idle."""
    ref = model_ref(request.model_id, request.revision)
    return UnloadAnswer(freed_bytes=await engine.unload(ref))


@router.post(
    "/estimate",
    operation_id="estimateModel",
    summary="What a model would take",
    responses=ANY_PROBLEM,
)
async def estimate_model(request: ModelRequest, engine: EngineDep) -> EstimateAnswer:
    """How large a model is, and whether it would fit, before anything is downloaded."""
    ref = ModelRef(model_id=request.model_id, revision=request.revision)
    return EstimateAnswer.of(await engine.estimate(ref))


router.include_router(_loading)


@router.get("/{model_id:path}", operation_id="getModel", summary="One model", responses=ANY_PROBLEM)
async def get_model(model_id: Annotated[str, Path(min_length=1)], engine: EngineDep) -> ModelAnswer:
    """One model of the list."""
    return _one_of(engine.list_models(), model_id, None)


def _one_of(models: list[ModelStatus], model_id: str, revision: str | None) -> ModelAnswer:
    for status in models:
        if status.model_id == model_id and revision in (None, status.revision):
            return ModelAnswer.of(status)
    raise ModelNotLoaded(model_id=model_id)
