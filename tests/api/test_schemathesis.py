"""Requests made from the OpenAPI document, right and wrong ones: none surprises the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from conftest import plain_settings
from fake_models import fake_engine
from pellucid.api.app import create_app
from pellucid.api.openapi import openapi_document
from pellucid.services import build_services
from serving import served

CONFIG = {
    "request-timeout": 60,  # the first UMAP of a process compiles for some seconds
    "checks": {
        # What the document cannot say depends on the model: its layers, vocabulary, longest text.
        # Such a request is a 422 with a code; anything else would be found.
        "positive_data_acceptance": {
            "expected-statuses": ["2xx", "3xx", "401", "403", "404", "409", "422", "429", "5xx"]
        }
    },
}


schema = schemathesis.openapi.from_dict(
    openapi_document(), config=schemathesis.Config.from_dict(CONFIG)
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    limits = plain_settings(max_inspection_tokens=64, max_body_bytes=1_000_000)
    with served(create_app(build_services(limits, engine=fake_engine(limits)))) as url:
        yield url


@schema.parametrize()
@settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_nothing_is_found(case: Any, url: str) -> None:
    case.call_and_validate(base_url=url)
