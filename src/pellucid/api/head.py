"""HEAD: the headers of a GET without its body, for every address that only tells something."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

CHANGING_GETS = frozenset({"/unload"})
"""Addresses whose GET changes something, so that asking for the headers alone must not run it."""


class HeadAsGet:
    """ASGI middleware that runs a HEAD request as GET and leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not (scope["type"] == "http" and scope["method"] == "HEAD" and answers_head(scope)):
            await self._app(scope, receive, send)
            return
        inner = {**scope, "method": "GET"}  # a copy: the server must go on to see a HEAD request
        try:
            await self._app(inner, receive, _without_body(send))
        finally:
            scope["route"] = inner.get("route")  # for the metrics


def answers_head(scope: Scope) -> bool:
    return scope["path"] not in CHANGING_GETS


def _without_body(send: Send) -> Send:
    async def send_headers(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
        elif not message.get("more_body", False):
            await send({"type": "http.response.body", "body": b""})

    return send_headers
