"""``/``, ``/docs`` and ``/openapi.json``: how to ask, readable without any other server."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from pellucid import __version__
from pellucid.api.dependencies import services_of
from pellucid.api.docs_page import docs_page
from pellucid.api.error_handlers import PUBLIC

router = APIRouter(tags=["server"])

_PAGE_HEADERS = {
    # The page loads nothing and runs nothing, and no other page may frame it.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "base-uri 'none'; frame-ancestors 'none'",
}


class Welcome(BaseModel):
    name: str = "pellucid"
    version: str = __version__
    docs: str = "/docs"
    openapi: str = "/openapi.json"


@router.get(
    "/",
    operation_id="getStart",
    summary="Where to begin",
    response_model=Welcome,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}, **PUBLIC},
)
async def get_start(request: Request) -> Any:
    """The documentation for a browser, a pointer to it for a program."""
    accept = request.headers.get("accept", "")
    return _page(request) if "text/html" in accept.lower() else Welcome()


@router.get(
    "/docs",
    operation_id="getDocs",
    summary="Documentation",
    response_class=HTMLResponse,
    responses=PUBLIC,
)
async def get_docs(request: Request) -> HTMLResponse:
    """Every address and every error, with a command to try."""
    return _page(request)


@router.get(
    "/openapi.json",
    operation_id="getOpenapi",
    summary="OpenAPI document",
    response_model=dict[str, Any],
    responses=PUBLIC,
)
async def get_openapi_document(request: Request) -> Response:
    """The contract from which clients are made."""
    return Response(orjson.dumps(request.app.openapi()), media_type="application/json")


def _page(request: Request) -> HTMLResponse:
    base_url = str(request.base_url).rstrip("/")
    page = docs_page(
        request.app.openapi(),
        base_url=base_url,
        needs_token=services_of(request).auth_token is not None,
    )
    return HTMLResponse(page, headers=_PAGE_HEADERS)
