"""Every route of the application, resource by resource."""

from __future__ import annotations

from fastapi import APIRouter

from pellucid.api import documentation, embeddings, health, inspections, metrics, models
from pellucid.api.contracts import embedding_sidecar, token_introspection


def create_router() -> APIRouter:
    """Every route, without anything behind it."""
    router = APIRouter()
    for part in (
        inspections,
        embeddings,
        models,
        token_introspection,
        embedding_sidecar,
        health,
        metrics,
        documentation,
    ):
        router.include_router(part.router)
    return router
