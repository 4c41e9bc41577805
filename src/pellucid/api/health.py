"""``/health``, ``/ready`` and ``/info``: whether it lives, can work, and within which limits.

``/health`` is the union of two earlier contracts: ``dim`` and ``device`` are null until the default
model is loaded, because nobody knows them before; ``model_loaded`` says which it is.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from pellucid import __version__
from pellucid.api.dependencies import ServicesDep
from pellucid.api.error_handlers import GUARDED, PUBLIC
from pellucid.api.route import MAX_CONTAINERS, MAX_DEPTH
from pellucid.inference.knockouts import MAX_KNOCKOUTS
from pellucid.introspection.projection import UMAP_MIN_POINTS
from pellucid.models.backend import EmbeddingRuntime, ModelInfo
from pellucid.services import Services
from pellucid.settings import Settings

router = APIRouter(tags=["server"])

_RETRY_AFTER_S = 2
# Every setting that bounds what a request may ask, ...
_SET_LIMITS = tuple(
    name
    for name in Settings.model_fields
    if name.startswith("max_") or name in ("request_timeout_s", "hub_timeout_s")
)
# ... and what no setting changes.
_FIXED_LIMITS: dict[str, int | float] = {
    "max_json_depth": MAX_DEPTH,
    "max_json_containers": MAX_CONTAINERS,
    "max_knockouts": MAX_KNOCKOUTS,
    "umap_min_tokens": UMAP_MIN_POINTS,
}


class HealthAnswer(BaseModel):
    """Alive. Never depends on a model, so it answers at any moment."""

    status: Literal["ok"] = "ok"
    model: str
    dim: int | None = Field(description="Width of the vectors; null until the model is loaded.")
    device: str | None = Field(description="cpu, cuda or mps; null until it is known.")
    model_loaded: bool
    chroma_connected: bool = Field(default=False, description="This version keeps no vectors.")
    version: str = __version__
    phase: str = Field(description="As GET /ready tells it.")


class ParityAnswer(BaseModel):
    """How near the embeddings are to PyTorch's in float32, measured when the model was loaded."""

    mean_cosine: float
    min_cosine: float
    threshold: float = Field(description="The least that `min_cosine` may be.")
    num_texts: int


class EmbeddingRuntimeAnswer(BaseModel):
    """What computes the embeddings of the default model."""

    runtime: Literal["torch", "openvino"]
    precision: str = Field(description="Of the matrix products.")
    quantization: Literal["none", "int8"]
    parity: ParityAnswer | None = Field(description="Null for PyTorch itself.")
    reason: str | None = Field(description="Why not a faster one.")


class ReadyAnswer(BaseModel):
    """Whether requests for the default model would be answered now."""

    status: Literal["ready", "not_ready"]
    phase: str = Field(
        description="starting, downloading, converting (for OpenVINO, once), loading, ready, "
        "recovering (the model stopped answering and is being replaced) or failed."
    )
    model: str
    received_bytes: int | None = Field(None, description="While downloading.")
    total_bytes: int | None = None
    eta_s: float | None = Field(None, description="Estimated seconds that are left.")
    error: dict[str, Any] | None = Field(None, description="When the phase is failed.")
    parity: ParityAnswer | None = Field(None, description="As GET /info tells it.")


class InfoAnswer(BaseModel):
    """The default model, and every limit in force."""

    model_id: str
    revision: str | None
    dim: int | None
    device: str | None
    version: str
    model_loaded: bool
    hidden_size: int | None
    num_layers: int | None
    num_heads: int | None
    pooling: str | None
    max_tokens: int | None = Field(
        description="Longest input of an inspection: the model's limit or the server's."
    )
    max_embedding_tokens: int | None = Field(description="Where texts are cut for embedding.")
    embedding: EmbeddingRuntimeAnswer | None = Field(
        description="What computes the embeddings; null until that is loaded."
    )
    sign_in: bool = Field(description="Whether requests need a token.")
    limits: dict[str, int | float] = Field(
        description="By the name of the setting, where one sets it."
    )


@router.get("/health", operation_id="getHealth", summary="Health", responses=PUBLIC)
async def get_health(services: ServicesDep) -> HealthAnswer:
    """Alive: 200 as long as the process answers at all, also while a model loads."""
    status = services.engine.default_status()
    return HealthAnswer(
        model=status.model_id,
        dim=status.info.dimensions if status.info else None,
        device=_device(services),
        model_loaded=status.state == "loaded",
        phase=services.readiness().phase,
    )


@router.get(
    "/ready",
    operation_id="getReady",
    summary="Readiness",
    responses={503: {"model": ReadyAnswer, "description": "Not yet, or failed."}, **PUBLIC},
)
async def get_ready(services: ServicesDep, response: Response) -> ReadyAnswer:
    """200 when the default model can be asked; 503 with the phase before, or if it failed."""
    readiness = services.readiness()
    status = services.engine.default_status()
    if not readiness.ready:
        response.status_code = 503
        response.headers["Retry-After"] = str(_RETRY_AFTER_S)
    return ReadyAnswer(
        status="ready" if readiness.ready else "not_ready",
        phase=readiness.phase,
        model=status.model_id,
        received_bytes=readiness.received_bytes,
        total_bytes=readiness.total_bytes,
        eta_s=readiness.eta_s,
        error=readiness.error,
        parity=_parity(status.embedding),
    )


@router.get("/info", operation_id="getInfo", summary="Model and limits", responses=GUARDED)
async def get_info(services: ServicesDep) -> InfoAnswer:
    """What the default model is, and every limit that requests meet."""
    status = services.engine.default_status()
    info = status.info
    limits = {name: getattr(services.settings, name) for name in _SET_LIMITS}
    limits["memory_budget_bytes"] = await services.engine.memory_budget_bytes()
    return InfoAnswer(
        model_id=status.model_id,
        revision=status.revision,
        dim=info.dimensions if info else None,
        device=_device(services),
        version=__version__,
        model_loaded=status.state == "loaded",
        hidden_size=info.hidden_size if info else None,
        num_layers=info.num_layers if info else None,
        num_heads=info.num_heads if info else None,
        pooling=info.pooling if info else None,
        max_tokens=_max_tokens(info, services.settings) if info else None,
        max_embedding_tokens=info.max_embedding_tokens if info else None,
        embedding=_embedding(status.embedding),
        sign_in=services.auth_token is not None,
        limits=limits | _FIXED_LIMITS,
    )


def _embedding(runtime: EmbeddingRuntime | None) -> EmbeddingRuntimeAnswer | None:
    if runtime is None:
        return None
    return EmbeddingRuntimeAnswer(
        runtime=runtime.runtime,
        precision=runtime.precision,
        quantization=runtime.quantization,
        parity=_parity(runtime),
        reason=runtime.reason,
    )


def _parity(runtime: EmbeddingRuntime | None) -> ParityAnswer | None:
    if runtime is None or runtime.parity is None:
        return None
    return ParityAnswer.model_validate(runtime.parity, from_attributes=True)


def _max_tokens(info: ModelInfo, settings: Settings) -> int:
    return min(info.max_tokens or settings.max_inspection_tokens, settings.max_inspection_tokens)


def _device(services: Services) -> str | None:
    """The kind of device: of the loaded model, else as set; ``auto`` is not known before."""
    info = services.engine.default_status().info
    if info is not None:
        return info.device.partition(":")[0]
    set_device = services.settings.device
    return None if set_device == "auto" else set_device
