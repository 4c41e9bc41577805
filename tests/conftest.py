"""Fixtures that many tests share."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from hub_stand_in import HubStandIn
from pellucid.api.app import create_app
from pellucid.inference.engine import Engine
from pellucid.services import build_services
from pellucid.settings import Settings
from serving import served
from stub_engine import StubEngine

_LOAD_S = 120.0

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch
# One data folder for all, also for servers and test workers in processes of their own: a model is
# converted once.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["PELLUCID_DATA_DIR"] = tempfile.mkdtemp(prefix="pellucid-tests-")
_DATA_DIR = Path(os.environ["PELLUCID_DATA_DIR"])

MakeClient = Callable[..., TestClient]


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(_DATA_DIR, ignore_errors=True)


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    """A Hub on this machine, empty; fill it with ``hub.add("owner/name", folder)``."""
    with HubStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def engine() -> StubEngine:
    """The engine behind ``client``."""
    return StubEngine()


@pytest.fixture
def make_client() -> Iterator[MakeClient]:
    """Clients of applications with an engine and settings of the test's choice."""
    with ExitStack() as stack:

        def make(
            engine: Engine, *, base_url: str = "http://localhost:8421", **settings: Any
        ) -> TestClient:
            app = create_app(build_services(plain_settings(**settings), engine=engine))
            return stack.enter_context(
                TestClient(app, base_url=base_url, raise_server_exceptions=False)
            )

        yield make


@pytest.fixture
def client(make_client: MakeClient, engine: StubEngine) -> TestClient:
    """A client of an application without a model: ``engine`` answers what the test tells it to."""
    return make_client(engine)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of the real thing: the default model, the whole application, a real connection."""
    settings = plain_settings(offline=True)
    with served(create_app(build_services(settings))) as url:
        until = time.monotonic() + _LOAD_S
        while httpx.get(f"{url}/ready").status_code != 200:
            assert time.monotonic() < until, httpx.get(f"{url}/ready").text
            time.sleep(0.05)
        yield url


@pytest.fixture
def http(server: str) -> Iterator[httpx.Client]:
    """A client of ``server``."""
    with httpx.Client(base_url=server, timeout=60) as client:
        yield client


def plain_environment(**changes: str) -> dict[str, str]:
    """For a process of its own: nothing that whoever runs the tests has set for Pellucid, but the
    data folder that all share."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PELLUCID_")}
    return kept | {"PELLUCID_DATA_DIR": str(_DATA_DIR), "OMP_NUM_THREADS": "1"} | changes


def plain_settings(**changes: Any) -> Settings:
    """The defaults, whatever the environment of whoever runs the tests says."""
    # Given by name they win over the environment, which cannot be switched off.
    defaults = {name: field.get_default() for name, field in Settings.model_fields.items()}
    defaults["data_dir"] = _DATA_DIR
    return Settings(_env_file=None, **{**defaults, **changes})
