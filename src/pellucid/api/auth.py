"""Who may ask: bearer tokens, on loopback the name by which the server is asked, and how many."""

from __future__ import annotations

import secrets
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pellucid.api.error_handlers import problem_response, request_id_of
from pellucid.api.head import CHANGING_GETS
from pellucid.api.http_protocol import CROWDED
from pellucid.api.problems import HostNotAllowed, TooManyConnections
from pellucid.errors import Forbidden, PellucidError, Unauthorized
from pellucid.services import Services, is_loopback

PUBLIC_PATHS = frozenset({"/", "/docs", "/openapi.json", "/health", "/ready"})
"""Never need a token: whether the server lives, and how to ask it. They hold no user's data."""

_CROWDED_RETRY_S = 5


class Gate:
    """ASGI middleware that lets a request through, or answers it with the reason why not."""

    def __init__(self, app: ASGIApp, *, services: Services) -> None:
        self._app = app
        self._token = services.auth_token
        self._origins = frozenset(services.settings.cors_origins)
        self._host = services.settings.host.strip("[]").lower()
        self._max_connections = services.settings.max_connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = self._refusal(scope, Headers(scope=scope))
        if error is None:
            await self._app(scope, receive, send)
            return
        scope["state"]["error_code"] = error.code
        headers = {"Connection": "close"} if isinstance(error, TooManyConnections) else None
        response = problem_response(error, request_id=request_id_of(scope), headers=headers)
        await response(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> PellucidError | None:
        if scope["state"].get(CROWDED) and scope["path"] not in PUBLIC_PATHS:
            return TooManyConnections(
                max_connections=self._max_connections, retry_after_s=_CROWDED_RETRY_S
            )
        if self._token is not None:
            if scope["path"] in PUBLIC_PATHS:
                return None
            return _token_refusal(headers, self._token)
        return self._host_refusal(headers) or self._page_refusal(scope, headers)

    def _host_refusal(self, headers: Headers) -> PellucidError | None:
        """Against DNS rebinding: a foreign name that was made to point at 127.0.0.1."""
        host = _without_port(headers.get("host", "")).lower()
        if is_loopback(host) or host == self._host:
            return None
        return HostNotAllowed(host=host, known="localhost")

    def _page_refusal(self, scope: Scope, headers: Headers) -> PellucidError | None:
        """Against foreign pages in the user's browser; programs send none of these headers."""
        changes = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        # A link or an image on a foreign page must not reach a GET that changes something.
        if not changes and scope["path"] not in CHANGING_GETS:
            return None
        origin = headers.get("origin")
        if origin in self._origins:
            return None
        foreign_origin = origin is not None and origin.partition("://")[2] != headers.get("host")
        if foreign_origin or headers.get("sec-fetch-site") == "cross-site":
            return Forbidden(
                reason="A web page of another origin asked; `cors_origins` names those that may"
            )
        return None


def _token_refusal(headers: Headers, token: str) -> PellucidError | None:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given.strip():
        return Unauthorized(reason="none was sent")
    # Bytes, as they came (headers are read as latin-1): compare_digest takes only ASCII text.
    if not secrets.compare_digest(given.strip().encode("latin-1"), token.encode()):
        return Unauthorized(reason="the one that was sent is not it")
    return None


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0].removeprefix("[")
    return host.partition(":")[0]


SECURITY_SCHEME: dict[str, Any] = {
    "type": "http",
    "scheme": "bearer",
    "description": "Needed where the server was given a token, or listens beyond this machine.",
}
