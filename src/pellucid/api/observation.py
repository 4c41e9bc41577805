"""What happens around every request: an id, a time, a log line, a count, and no lost exception."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pellucid import telemetry
from pellucid.api.error_handlers import problem_response
from pellucid.errors import PellucidError
from pellucid.services import Services

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class Observation:
    """Outermost ASGI middleware: whatever happens inside, the client gets an answer with an id."""

    def __init__(self, app: ASGIApp, *, services: Services) -> None:
        self._app = app
        self._metrics = services.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        telemetry.bind_request_id(request_id)
        answer = _Answer(send, request_id)
        try:
            with self._metrics.in_flight.track_inprogress():
                await self._answered(scope, receive, answer)
        finally:
            self._record(scope, answer)
            telemetry.unbind_request_id()

    async def _answered(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            await self._app(scope, receive, answer)
        except Exception:
            telemetry.get_logger(telemetry.API_LOG).exception("request failed unexpectedly")
            if answer.status is not None:
                raise  # half an answer is out: only a broken connection tells the client
            error = PellucidError()
            scope["state"]["error_code"] = error.code
            response = problem_response(error, request_id=answer.request_id)
            await response(scope, receive, answer)

    def _record(self, scope: Scope, answer: _Answer) -> None:
        status = answer.status or 500
        route = getattr(scope.get("route"), "path", "(none)")
        code = scope["state"].get("error_code")
        self._metrics.requests.labels(route, _method(scope), str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(answer.elapsed_s)
        if code is not None:
            self._metrics.errors.labels(code).inc()
        if not telemetry.is_debugged(telemetry.API_LOG):
            return
        facts: dict[str, Any] = {
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "total_ms": round(answer.elapsed_s * 1000, 1),
        }
        if code is not None:
            facts["code"] = code
        telemetry.get_logger(telemetry.API_LOG).debug("request", **facts)


class _Answer:
    """Passes the answer on, with its id and its time in the headers."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._started = time.perf_counter()
        self.request_id = request_id
        self.status: int | None = None
        self.elapsed_s = 0.0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.elapsed_s = time.perf_counter() - self._started
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            headers["x-content-type-options"] = "nosniff"
            stages = headers.get("server-timing")
            total = f"total;dur={self.elapsed_s * 1000:.1f}"
            headers["server-timing"] = f"{stages}, {total}" if stages else total
        await self._send(message)


def _method(scope: Scope) -> str:
    # A made-up method must not make a new time series each.
    known = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
    return scope["method"] if scope["method"] in known else "other"
