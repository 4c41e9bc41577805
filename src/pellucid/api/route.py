"""How every working route takes its request: bounded, timed, and dropped when the client leaves."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from pellucid.api.interruption import ClientLeft, InFlight
from pellucid.api.problems import (
    BodyTooLarge,
    JsonTooComplex,
    MalformedJson,
    UnsupportedEncoding,
    UnsupportedMediaType,
)
from pellucid.errors import DeadlineExceeded, InvalidText
from pellucid.settings import Settings

CLIENT_CLOSED_REQUEST = 499  # nobody reads this answer; it is for logs and metrics

MAX_CONTAINERS = 100_000  # lists and objects in one body; each costs memory many times its text
MAX_DEPTH = 64
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)

Handle = Callable[[Request], Coroutine[Any, Any, Response]]


class JsonRequest(Request):
    """A request whose body is read within a limit and parsed strictly as JSON."""

    async def read_within(self, limit_bytes: int) -> bytes:
        """The body, read once. Raises BodyTooLarge as soon as it is known."""
        declared = self.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit_bytes:
            raise BodyTooLarge(limit_bytes=limit_bytes)
        chunks: list[bytes] = []
        received = 0
        async for chunk in self.stream():
            received += len(chunk)
            if received > limit_bytes:
                raise BodyTooLarge(limit_bytes=limit_bytes)
            chunks.append(chunk)
        self._body = b"".join(chunks)
        return self._body

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = parse_json(await self.body())
        return self._json

    def require_json(self) -> None:
        """Only JSON: a browser lets any page send the simpler kinds to localhost unasked."""
        content_type = self.headers.get("content-type", "")
        kind = content_type.partition(";")[0].strip().lower()
        if kind != "application/json" and not (
            kind.startswith("application/") and kind.endswith("+json")
        ):
            raise UnsupportedMediaType(content_type=content_type or "no declared type")
        encoding = self.headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            raise UnsupportedEncoding(content_encoding=encoding)


class WorkRoute(APIRoute):
    """A route whose handler may wait for a model."""

    is_timed: ClassVar[bool] = True

    def get_route_handler(self) -> Handle:
        handle = super().get_route_handler()
        takes_body = self.body_field is not None

        async def guarded(request: Request) -> Response:
            state = request.app.state
            settings: Settings = state.services.settings
            in_flight: InFlight = state.in_flight
            json_request = JsonRequest(request.scope, request.receive)
            timeout = asyncio.timeout(settings.request_timeout_s)
            try:
                async with timeout, in_flight.watch(json_request) as work:
                    if await json_request.read_within(settings.max_body_bytes) and takes_body:
                        json_request.require_json()
                        await json_request.json()
                    work.watch_client()
                    if not self.is_timed:  # the body was
                        timeout.reschedule(None)
                    return await handle(json_request)
            except (ClientLeft, ClientDisconnect):
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            except TimeoutError as error:
                if not timeout.expired():
                    raise
                raise DeadlineExceeded(timeout_s=settings.request_timeout_s) from error

        return guarded


class LoadRoute(WorkRoute):
    """A route that may wait for a download, which takes as long as it takes."""

    is_timed: ClassVar[bool] = False


def parse_json(body: bytes) -> Any:
    """Strict JSON: UTF-8, no NaN, bounded. Raises MalformedJson, JsonTooComplex, InvalidText."""
    _check_containers(body)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if "depth limit" in error.msg:
            raise JsonTooComplex(problem="is nested too deep", limit=MAX_DEPTH) from error
        if "low surrogate" in error.msg or "high surrogate" in error.msg:
            raise InvalidText(
                field="body", problem="half of a surrogate pair", position=error.pos
            ) from error
        reason, position = error.msg.partition(":")[0], error.pos
        try:
            body.decode()
        except UnicodeDecodeError as undecodable:  # orjson does not say where
            reason, position = "it is not UTF-8", undecodable.start
        raise MalformedJson(reason=reason, position=position) from error
    if _is_deeper(document, MAX_DEPTH):
        raise JsonTooComplex(problem="is nested too deep", limit=MAX_DEPTH)
    return document


def _check_containers(body: bytes) -> None:
    count = body.count(b"[") + body.count(b"{")
    if count <= MAX_CONTAINERS:
        return
    outside = _STRINGS.sub(b"", body)  # brackets inside texts are only text
    count = outside.count(b"[") + outside.count(b"{")
    if count > MAX_CONTAINERS:
        raise JsonTooComplex(problem=f"holds {count} lists and objects", limit=MAX_CONTAINERS)


def _is_deeper(document: Any, limit: int) -> bool:
    """Whether lists and objects nest more than ``limit`` deep; level by level, no recursion."""
    level = [document]
    for _ in range(limit):
        level = [
            inner
            for value in level
            if isinstance(value, list | dict)
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, list | dict)
        ]
        if not level:
            return False
    return True
