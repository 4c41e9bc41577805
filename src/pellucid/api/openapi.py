"""The OpenAPI document: the contract from which clients are made."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from pellucid import __version__
from pellucid.api.auth import PUBLIC_PATHS, SECURITY_SCHEME
from pellucid.api.error_handlers import Problem
from pellucid.api.routes import create_routes

_DESCRIPTION = (
    "See through any transformer: embed texts, inspect hidden states and attention. "
    "Every error is a problem document (RFC 9457) with a stable `code`."
)


def openapi_document() -> dict[str, Any]:
    """The document of this version; the same on every machine, whatever is set."""
    app = FastAPI()
    app.router.routes.extend(create_routes())
    return document_of(app)


def openapi_text() -> str:
    """``contract/openapi.json``, byte for byte."""
    return json.dumps(openapi_document(), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def document_of(app: FastAPI) -> dict[str, Any]:
    """What FastAPI knows, and what it cannot know: sign-in, and the form of errors."""
    document = get_openapi(
        title="Pellucid", version=__version__, description=_DESCRIPTION, routes=app.routes
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs", {}))
    schemas["Problem"] = problem
    components["securitySchemes"] = {"bearer": SECURITY_SCHEME}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            # The empty requirement: on loopback no token is needed.
            operation["security"] = [] if path in PUBLIC_PATHS else [{"bearer": []}, {}]
    return document
