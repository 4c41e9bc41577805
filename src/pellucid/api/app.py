"""The application: every route, and what stands around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from pellucid import __version__
from pellucid.api import error_handlers
from pellucid.api.auth import Gate
from pellucid.api.head import HeadAsGet
from pellucid.api.interruption import InFlight
from pellucid.api.observation import Observation
from pellucid.api.openapi import document_of
from pellucid.api.routes import create_routes
from pellucid.services import Services

_EXPOSED_HEADERS = ("X-Request-ID", "Server-Timing", "Retry-After")


def create_app(services: Services) -> FastAPI:
    """The ASGI application. Its lifespan starts the services and closes them."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await services.start()
        try:
            yield
        finally:
            await services.aclose()

    app = FastAPI(
        title="Pellucid",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own page loads its parts from elsewhere
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    app.state.in_flight = InFlight()
    app.router.routes.extend(create_routes())
    app.openapi = _cached_document(app)  # type: ignore[method-assign]
    error_handlers.install(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(Gate, services=services)
    if services.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=services.settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "Content-Type", "X-Request-ID"),
            expose_headers=_EXPOSED_HEADERS,
        )
    app.add_middleware(Observation, services=services)  # added last: outermost
    return app


def _cached_document(app: FastAPI) -> Any:
    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            document.update(document_of(app))
        return document

    return openapi
