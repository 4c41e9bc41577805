"""Processes that are killed in the middle of a conversion or a download: the next one goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from faults.conftest import EMBEDDINGS
from hub_stand_in import HubStandIn
from server_process import ServerProcess, server_process

TEXT = "Killed in the middle."
SOON_S = 20.0
WEIGHTS = "model.safetensors"


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)


def converting_child(server: ServerProcess, graphs: Path) -> psutil.Process:
    """The process that converts, once there is something of its work to be left behind."""
    process = psutil.Process(server.pid)
    wait_for(lambda: bool(process.children()) and bool(partial_graphs(graphs)))
    return process.children()[0]


def partial_graphs(graphs: Path) -> list[Path]:
    return list(graphs.glob("*/.*"))


def whole_graphs(graphs: Path) -> list[Path]:
    return [path.parent for path in graphs.glob("*/[!.]*/manifest.json")]


def partial_files(cache: Path) -> list[Path]:
    return list(cache.rglob("*.partial"))


def embedding(server: ServerProcess) -> np.ndarray:
    with server.client() as client:
        answer = client.post(EMBEDDINGS, json={"input": TEXT})
        assert answer.status_code == 200, answer.text
        return np.array(answer.json()["data"][0]["embedding"])


def test_killed_while_it_converts(
    tmp_path: Path, tiny_encoder: Path, tiny_embedding: Callable[[str], np.ndarray]
) -> None:
    graphs = tmp_path / "data" / "graphs"
    settings = {"model": tiny_encoder, "device": "cpu", "embedding_runtime": "openvino"}
    with server_process(tmp_path, **settings) as server:
        child = converting_child(server, graphs)
        server.process.kill()
        child.wait(SOON_S)  # it does not outlive its parent
    assert not list(graphs.rglob("manifest.json")), "it went on to the end"
    with server_process(tmp_path, **settings) as server, server.client(timeout_s=60) as client:
        converting_child(server, graphs).kill()
        wait_for(lambda: client.get("/ready").json()["phase"] == "failed")
        assert client.get("/ready").json()["error"]["code"] == "graph_unavailable"
        assert client.get("/health").status_code == 200
        assert not whole_graphs(graphs)
        np.testing.assert_allclose(embedding(server), tiny_embedding(TEXT), atol=0.02)
        assert client.get("/ready").status_code == 200
    assert len(whole_graphs(graphs)) == 1
    assert not partial_graphs(graphs)


def test_killed_while_it_downloads(
    tmp_path: Path,
    hub: HubStandIn,
    tiny_encoder: Path,
    tiny_embedding: Callable[[str], np.ndarray],
) -> None:
    repo = hub.add("owner/tiny", tiny_encoder)
    half = len(repo.files[WEIGHTS]) // 2
    repo.stall(WEIGHTS, at=half)
    cache = tmp_path / "cache"
    settings = {
        "model": "owner/tiny",
        "hub_endpoint": hub.endpoint,
        "hub_cache_dir": cache,
        "embedding_runtime": "torch",
    }
    with server_process(tmp_path, **settings) as server:
        # what the file still buffers is lost with the process
        wait_for(lambda: any(path.stat().st_size > half // 2 for path in partial_files(cache)))
        server.process.kill()
        server.end()
    (received,) = [path.stat().st_size for path in partial_files(cache)]
    repo.mend()
    with server_process(tmp_path, **settings) as server:
        server.wait_until_ready()
        np.testing.assert_allclose(embedding(server), tiny_embedding(TEXT), atol=1e-4)
    assert [r.range_start for r in hub.requested(WEIGHTS) if r.method == "GET"] == [
        None,
        received,
    ]
    assert not partial_files(cache)
