"""What routes ask for by type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, cast

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict

from pellucid.errors import InvalidRequest
from pellucid.inference.engine import Engine
from pellucid.models.backend import ModelRef
from pellucid.services import Services


def services_of(request: Request) -> Services:
    return cast(Services, request.app.state.services)


# Asynchronous, though nothing waits: FastAPI would call a plain function in a thread.
async def get_services(request: Request) -> Services:
    return services_of(request)


async def get_engine(request: Request) -> Engine:
    return services_of(request).engine


ServicesDep = Annotated[Services, Depends(get_services)]
EngineDep = Annotated[Engine, Depends(get_engine)]


class StrictModel(BaseModel):
    """A request of the native API: exact types, and no field that is not known."""

    model_config = ConfigDict(strict=True, extra="forbid")


class LenientModel(BaseModel):
    """A request of a root contract: exact types; other fields are ignored, as they ever were."""

    model_config = ConfigDict(strict=True, extra="ignore")


def model_ref(model_id: str | None, revision: str | None = None) -> ModelRef | None:
    """The model that a request names; None means the default one."""
    if model_id is None and revision is not None:
        problem = {"field": "revision", "problem": "it needs a model to belong to"}
        raise InvalidRequest(
            reason="revision: it needs a model to belong to.", field="revision", problems=[problem]
        )
    return None if model_id is None else ModelRef(model_id=model_id, revision=revision)


def server_timing(timing: Mapping[str, float]) -> str:
    """``{"queue_ms": 1.5}`` -> ``queue;dur=1.5``, as the Server-Timing header has it."""
    return ", ".join(
        f"{name.removesuffix('_ms')};dur={value:.1f}"
        for name, value in timing.items()
        if name != "total_ms"
    )
