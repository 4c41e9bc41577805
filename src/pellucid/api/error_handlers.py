"""Errors on the wire: RFC 9457 problem documents, and the one table from code to status."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from pellucid.api import problems
from pellucid.api.head import answers_head
from pellucid.api.validation import invalid_request
from pellucid.errors import (
    Forbidden,
    InvalidRequest,
    PellucidError,
    Refused,
    Unauthorized,
    WorkerReplaced,
)
from pellucid.telemetry import API_LOG, get_logger

STATUS_OF: dict[str, int] = {
    "internal_error": 500,
    # the message itself
    "malformed_json": 400,
    "json_too_complex": 400,
    "route_not_found": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "unsupported_encoding": 415,
    "host_not_allowed": 421,
    # what it asks
    "invalid_input": 422,
    "invalid_request": 422,
    "empty_text": 422,
    "invalid_text": 422,
    "text_too_large": 413,
    "too_many_tokens": 422,
    "too_many_inputs": 422,
    "invalid_input_ids": 422,
    "layer_out_of_range": 422,
    "head_out_of_range": 422,
    "position_out_of_range": 422,
    "dimensions_unsupported": 422,
    "too_few_tokens": 422,
    "target_required": 422,
    "target_unsupported": 422,
    "pair_unsupported": 422,
    "chat_template_missing": 422,
    "inputs_conflict": 422,
    "invalid_model_id": 422,
    "prompt_unknown": 422,
    "knockout_invalid": 422,
    "too_large": 422,
    # what the model or this server can do
    "capability_missing": 422,
    "attention_unavailable": 422,
    "norm_weighted_unavailable": 422,
    "logit_lens_unavailable": 422,
    "generation_unavailable": 422,
    "embedding_unavailable": 422,
    "store_unavailable": 422,
    # whether the model can be had
    "model_unavailable": 503,
    "model_not_found": 404,
    "model_private": 403,
    "model_gated_no_token": 403,
    "model_gated_not_accepted": 403,
    "model_too_large": 422,
    "model_offline": 404,
    # 424, not 5xx: the request depends on another server, and this one is well.
    "hub_unreachable": 424,
    "download_failed": 503,
    "no_loadable_weights": 422,
    "remote_code_required": 422,
    "weights_corrupt": 500,
    "model_load_failed": 422,
    "model_not_loaded": 404,
    "model_in_use": 409,
    "out_of_memory": 503,
    "no_free_model_slot": 503,
    "graph_unavailable": 422,
    # who asks, or how much at once
    "refused": 403,
    "unauthorized": 401,
    "forbidden": 403,
    "overloaded": 429,
    "too_many_connections": 503,
    "takes_too_long": 413,
    "not_ready": 503,
    "deadline_exceeded": 504,
    # the command line's, never on the wire
    "invalid_settings": 500,
    "input_unreadable": 422,
    "input_changed": 409,
    "output_unusable": 422,
    "start_failed": 500,
    "port_taken": 500,
    "address_unavailable": 500,
    # our fault
    "capture_incomplete": 500,
    "non_finite_values": 422,  # this text leads this model there: no other answer will come
    "forward_out_of_memory": 503,
    "worker_replaced": 503,
}

_NEVER_ON_THE_WIRE = frozenset(
    {
        "invalid_settings",
        "input_unreadable",
        "input_changed",
        "output_unusable",
        "start_failed",
        "port_taken",
        "address_unavailable",
    }
)
PROBLEM_TYPE = "application/problem+json"
_RETRY_STATUSES = (429, 503)
_DEFAULT_RETRY_S = 1
_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class OpenAIError(BaseModel):
    """The same error in OpenAI's shape, for clients that read only that."""

    message: str
    type: str
    param: str | None
    code: str


class Problem(BaseModel):
    """An error: RFC 9457 members, the stable `code`, and the facts of the sentence as members."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    error: OpenAIError


def status_of(kind: type[PellucidError]) -> int:
    """The status of an error class; a new class without a line has its parent's until then."""
    for parent in kind.__mro__:
        if (status := STATUS_OF.get(getattr(parent, "code", ""))) is not None:
            return status
    return 500


def documented(*kinds: type[PellucidError]) -> dict[int | str, dict[str, Any]]:
    """These errors as OpenAPI responses, by status, each naming its codes."""
    codes: dict[int, list[str]] = {}
    for kind in kinds:
        for error in kind.tree():
            if error.code in _NEVER_ON_THE_WIRE:
                continue
            codes.setdefault(status_of(error), []).append(error.code)
    return {
        status: {
            "description": "Codes: " + ", ".join(f"`{code}`" for code in codes[status]) + ".",
            "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted(codes)
    }


ANY_PROBLEM = documented(PellucidError)
"""For routes that run a model: whatever can go wrong."""
PUBLIC = documented(problems.HostNotAllowed)
"""For routes that need no token."""
GUARDED = documented(Unauthorized, Forbidden, problems.HostNotAllowed)
"""For routes that only tell something: who asks is all that can be wrong."""


def problem_document(error: PellucidError, *, request_id: str) -> dict[str, Any]:
    """The wire form of ``error``; its facts never hide a standard member."""
    status = status_of(type(error))
    field = error.facts.get("field")
    standard = {
        "type": f"/docs#{error.code}",
        "title": error.title,
        "status": status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
        "error": {
            "message": error.detail,
            "type": _OPENAI_TYPES.get(
                status, "invalid_request_error" if status < 500 else "server_error"
            ),
            "param": field if isinstance(field, str) else None,
            "code": error.code,
        },
    }
    return {**error.facts, **standard}


def problem_response(
    error: PellucidError, *, request_id: str, headers: Mapping[str, str] | None = None
) -> Response:
    """``error`` as an HTTP answer, with Retry-After where asking again makes sense."""
    document = problem_document(error, request_id=request_id)
    status = document["status"]
    sent = dict(headers or {})
    if status in _RETRY_STATUSES:
        wait_s = error.facts.get("retry_after_s", _DEFAULT_RETRY_S)
        sent.setdefault("Retry-After", str(max(1, math.ceil(wait_s))))
    if status == 401:
        sent.setdefault("WWW-Authenticate", 'Bearer realm="pellucid"')
    content = orjson.dumps(
        document, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    )
    response = Response(content, status_code=status, media_type=PROBLEM_TYPE, headers=sent)
    response.error_code = error.code  # type: ignore[attr-defined]
    return response


def install(app: FastAPI) -> None:
    """Answer every error that the routes raise with a problem document."""
    app.add_exception_handler(PellucidError, _on_pellucid_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


def request_id_of(scope: Mapping[str, Any]) -> str:
    return str(scope.get("state", {}).get("request_id", ""))


async def _on_pellucid_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PellucidError)
    if status_of(type(error)) >= 500:
        # Where it was raised says nothing of errors that come in storms, as while shutting down.
        is_foreseen = isinstance(error, Refused | WorkerReplaced) and error.__cause__ is None
        log = get_logger(API_LOG)
        log.error("request failed", code=error.code, exc_info=None if is_foreseen else error)
    return _answer(request, error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _answer(request, invalid_request(error.errors()))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no route, wrong method."""
    assert isinstance(error, HTTPException)
    known: PellucidError
    if error.status_code == 404:
        known = problems.RouteNotFound(path=request.url.path)
    elif error.status_code == 405:
        known = problems.MethodNotAllowed(path=request.url.path, method=request.method)
        return _answer(request, known, headers={"Allow": _allowed(request, error)})
    else:
        known = InvalidRequest(reason=f"{error.detail}.")
    return _answer(request, known, headers=error.headers)


def _allowed(request: Request, error: HTTPException) -> str:
    """Every method of the address; the router names those of one route only."""
    named = (error.headers or {}).get("Allow", "")
    methods = {method.strip() for method in named.split(",") if method.strip()}
    operations = request.app.openapi()["paths"].get(request.url.path, {})
    methods |= {method.upper() for method in operations}
    if "GET" in methods and answers_head(request.scope):
        methods.add("HEAD")
    return ", ".join(sorted(methods))


def _answer(
    request: Request, error: PellucidError, *, headers: Mapping[str, str] | None = None
) -> Response:
    request.scope["state"]["error_code"] = error.code
    return problem_response(error, request_id=request_id_of(request.scope), headers=headers)
