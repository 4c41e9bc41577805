"""Whether it lives, and whether it can work."""

from __future__ import annotations

import asyncio
import time

from starlette.testclient import TestClient

from conftest import MakeClient, plain_settings
from pellucid.errors import ModelTooLarge
from pellucid.models.backend import EmbeddingRuntime, Parity
from pellucid.progress import ProgressEvent
from pellucid.services import build_services
from stub_engine import StubEngine, with_info


def _until_ready(client: TestClient, status: int = 200) -> None:
    until = time.monotonic() + 5
    while client.get("/ready").status_code != status and time.monotonic() < until:
        time.sleep(0.01)


def test_while_a_model_loads_it_lives_and_says_how_far_it_is(make_client: MakeClient) -> None:
    engine = StubEngine(state="available", hold=asyncio.Event())
    client = make_client(engine)
    health = client.get("/health")
    assert health.status_code == 200
    assert health.json()["status"] == "ok"
    assert (health.json()["dim"], health.json()["model_loaded"]) == (None, False)
    ready = client.get("/ready")
    assert (ready.status_code, ready.json()["phase"]) == (503, "loading")
    assert int(ready.headers["retry-after"]) > 0
    info = client.get("/info").json()
    assert (info["dim"], info["limits"]["max_inputs"]) == (None, 2048)


def test_a_download_is_told_with_its_figures(make_client: MakeClient) -> None:
    engine = StubEngine(state="available", hold=asyncio.Event())
    client = make_client(engine)
    services = client.app.state.services  # type: ignore[attr-defined]
    services.progress(ProgressEvent("download_started", {"model": "m"}))
    assert client.get("/ready").json()["phase"] == "downloading"
    step = {"model": "m", "bytes": 30, "total": 90, "eta": 1.5}
    services.progress(ProgressEvent("download_progress", step))
    body = client.get("/ready").json()
    assert (body["received_bytes"], body["total_bytes"], body["eta_s"]) == (30, 90, 1.5)
    services.progress(ProgressEvent("model_converting", {"model": "m"}))
    body = client.get("/ready").json()
    assert (body["phase"], body["received_bytes"]) == ("converting", None)


def test_once_loaded_it_is_ready_and_stays_so_when_unloaded(make_client: MakeClient) -> None:
    client = make_client(StubEngine(state="available"))
    _until_ready(client)
    health = client.get("/health").json()
    assert (health["dim"], health["device"], health["model_loaded"]) == (8, "cpu", True)
    assert client.post("/unload").json() == {"freed_bytes": 4000}
    assert client.get("/health").json()["model_loaded"] is False
    assert client.get("/ready").status_code == 200


def test_a_model_that_cannot_be_had_is_told_and_the_server_lives(make_client: MakeClient) -> None:
    error = ModelTooLarge(model_id="m", size_bytes=9_000_000_000, limit_bytes=6_000_000_000)
    client = make_client(StubEngine(state="available", error=error))
    until = time.monotonic() + 5
    while client.get("/ready").json()["phase"] != "failed" and time.monotonic() < until:
        time.sleep(0.01)
    ready = client.get("/ready")
    assert ready.status_code == 503
    assert ready.json()["error"] == {"code": "model_too_large", "detail": error.detail}
    assert client.get("/health").status_code == 200


def test_a_parent_hears_why_the_start_failed() -> None:
    heard: list[ProgressEvent] = []
    error = ModelTooLarge(model_id="m", size_bytes=9, limit_bytes=6)

    async def start() -> None:
        engine = StubEngine(state="available", error=error)
        services = build_services(plain_settings(), engine=engine, progress=heard.append)
        await services.start()
        await asyncio.sleep(0.01)
        await services.aclose()
        assert engine.closed

    asyncio.run(start())
    assert [(event.type, event.data["code"]) for event in heard] == [("error", "model_too_large")]


def test_closing_while_loading_stops_the_loading() -> None:
    async def start_and_close() -> StubEngine:
        engine = StubEngine(state="available", hold=asyncio.Event())
        services = build_services(plain_settings(), engine=engine)
        await services.start()
        await asyncio.sleep(0)
        await services.aclose()
        return engine

    engine = asyncio.run(start_and_close())
    assert (engine.cancelled, engine.closed) == (1, True)


def test_info_tells_every_limit(client: TestClient) -> None:
    limits = client.get("/info").json()["limits"]
    settings = plain_settings()
    bounds = {name for name in type(settings).model_fields if name.startswith("max_")}
    bounds |= {"request_timeout_s", "hub_timeout_s"}
    fixed = {"max_json_depth", "max_json_containers", "max_knockouts", "umap_min_tokens"}
    assert set(limits) == bounds | fixed | {"memory_budget_bytes"}
    assert all(limits[name] == getattr(settings, name) for name in bounds)
    assert all(limits[name] > 0 for name in limits)  # in force: none is left open


def test_info_tells_the_length_that_is_taken(make_client: MakeClient, engine: StubEngine) -> None:
    for server_limit, in_force in ((10, 10), (1_000, 64)):  # the stub model itself takes 64
        client = make_client(engine, max_inspection_tokens=server_limit)
        assert client.get("/info").json()["max_tokens"] == in_force


def test_a_model_that_is_being_replaced_is_not_ready(
    client: TestClient, engine: StubEngine
) -> None:
    engine.healthy = False
    response = client.get("/ready")
    assert (response.status_code, response.json()["phase"]) == (503, "recovering")
    assert int(response.headers["retry-after"]) > 0
    assert client.get("/health").status_code == 200
    engine.healthy = True
    assert client.get("/ready").json()["phase"] == "ready"


def test_what_computes_the_embeddings_is_told(make_client: MakeClient) -> None:
    parity = Parity(mean_cosine=0.9999, min_cosine=0.9995, threshold=0.999, num_texts=32)
    runtime = EmbeddingRuntime(runtime="openvino", precision="bfloat16", parity=parity)
    client = make_client(with_info(StubEngine(), embedding=runtime))
    expected = {"mean_cosine": 0.9999, "min_cosine": 0.9995, "threshold": 0.999, "num_texts": 32}
    assert client.get("/info").json()["embedding"] == {
        "runtime": "openvino",
        "precision": "bfloat16",
        "quantization": "none",
        "parity": expected,
        "reason": None,
    }
    assert client.get("/ready").json()["parity"] == expected


def test_why_it_is_not_a_faster_runtime_is_told(make_client: MakeClient) -> None:
    client = make_client(
        with_info(StubEngine(), embedding=EmbeddingRuntime(reason="it has no encoder"))
    )
    told = client.get("/info").json()["embedding"]
    assert (told["runtime"], told["parity"], told["reason"]) == ("torch", None, "it has no encoder")
    assert client.get("/ready").json()["parity"] is None
