"""Disks without room: for graphs, PyTorch embeds and says why; for downloads, the rest goes on."""

from __future__ import annotations

import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from faults.conftest import EMBEDDINGS, assert_problem
from hub_stand_in import HubStandIn
from pellucid.models.backend import Float32
from server_process import ServerProcess, server_process

TEXT = "There is no room for this."
ROOM_BYTES = 64_000
NEEDED_BYTES = 1_000_000
NO_ROOM = re.compile("No space left on device|File too large|has [0-9]+ bytes free")


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk of ``ROOM_BYTES`` at ``folder``; False where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs", str(folder)]
    is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def server_on_small_disk(folder: Path, **settings: object) -> Iterator[ServerProcess]:
    """A server whose data folder and Hub cache lie on a disk without room."""
    disk = folder / "disk"
    with (
        small_disk(disk) as is_mounted,
        server_process(folder, data_dir=disk, hub_cache_dir=disk, **settings) as server,
    ):
        if not is_mounted:  # files that may not grow are the next best
            limits = (ROOM_BYTES, ROOM_BYTES)
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, limits)
        yield server


def test_it_serves_all_the_same_and_says_what_is_wrong(
    tmp_path: Path,
    hub: HubStandIn,
    tiny_encoder: Path,
    tiny_embedding: Callable[[str], Float32],
) -> None:
    weights = save({"embeddings.word_embeddings.weight": np.zeros(NEEDED_BYTES // 4, np.float32)})
    config = (tiny_encoder / "config.json").read_bytes()
    hub.add_files("owner/large", {"config.json": config, "model.safetensors": weights})
    with server_on_small_disk(tmp_path, model=tiny_encoder, hub_endpoint=hub.endpoint) as server:
        server.wait_until_ready()
        with server.client() as client:
            runtime = client.get("/info").json()["embedding"]
            assert runtime["runtime"] == "torch"
            assert NO_ROOM.search(runtime["reason"]), runtime["reason"]
            problem = assert_problem(
                client.post(EMBEDDINGS, json={"input": TEXT, "model": "owner/large"}),
                *(503, "download_failed"),
            )
            assert NO_ROOM.search(problem["detail"]), problem["detail"]
            answer = client.post(EMBEDDINGS, json={"input": TEXT})
            assert answer.status_code == 200, answer.text
            found = answer.json()["data"][0]["embedding"]
            np.testing.assert_allclose(found, tiny_embedding(TEXT), atol=1e-4)
            assert client.get("/ready").status_code == 200
