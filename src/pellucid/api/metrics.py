"""``GET /metrics``: what the server counts, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Response

from pellucid.api.dependencies import ServicesDep
from pellucid.api.error_handlers import GUARDED
from pellucid.telemetry import EXPOSITION_TYPE

router = APIRouter(tags=["server"])


@router.get(
    "/metrics",
    operation_id="getMetrics",
    summary="Metrics",
    response_class=Response,
    responses={
        200: {"content": {"application/openmetrics-text": {"schema": {"type": "string"}}}},
        **GUARDED,
    },
)
async def get_metrics(services: ServicesDep) -> Response:
    """Requests, times, tokens and models, in the OpenMetrics text format."""
    return Response(services.metrics.exposition(), media_type=EXPOSITION_TYPE)
