"""A converted model whose files were harmed on disk: it is made again, and answers the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import plain_settings
from faults.conftest import EMBEDDINGS
from pellucid.models import openvino_backend
from pellucid.models.backend import Batch
from pellucid.models.graph.store import MANIFEST, GraphKey, GraphStore
from pellucid.models.openvino_backend import OpenVinoBackend
from pellucid.models.sources.locator import Locator
from pellucid.models.sources.source import ModelSource
from server_process import server_process

TEXTS = ["Harmed on disk.", "A second text, which is a little longer than the first one."]
Harm = Callable[[Path], None]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def put_other_json(path: Path) -> None:
    path.write_text("[]")


def keep_only_its_key(path: Path) -> None:
    """As it would be in another layout of the same files."""
    path.write_text(json.dumps({"key": json.loads(path.read_text())["key"], "files": []}))


@pytest.fixture(scope="session")
def source() -> ModelSource:
    return Locator.of(plain_settings(offline=True)).locate()


@pytest.fixture(scope="session")
def key(source: ModelSource) -> GraphKey:
    return GraphKey.of(source.model_id, source.revision, "none")


@pytest.fixture(scope="session")
def sound(source: ModelSource, key: GraphKey) -> GraphStore:
    """Where the default model's graph lies, made now if no test needed it before."""
    graphs_dir = plain_settings().data_dir / "graphs"
    store = GraphStore(graphs_dir)
    if store.find(key) is None:
        OpenVinoBackend.load(source, graphs_dir=graphs_dir).close()
    return store


@pytest.fixture
def copied(sound: GraphStore, key: GraphKey, tmp_path: Path) -> GraphStore:
    """A graph that may be harmed."""
    copy = GraphStore(tmp_path / "data" / "graphs")
    shutil.copytree(sound.path(key), copy.path(key))
    return copy


@pytest.mark.parametrize("harm", [flip_a_bit, cut_in_half, empty, put_other_json, Path.unlink])
def test_whichever_file_it_is_it_is_noticed(harm: Harm, copied: GraphStore, key: GraphKey) -> None:
    folder = copied.path(key)
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    assert len(names) == 4
    kept = folder.parent.parent / "kept"
    folder.rename(kept)
    for name in names:
        shutil.copytree(kept, folder, copy_function=os.link)
        (folder / name).unlink()
        shutil.copyfile(kept / name, folder / name)
        harm(folder / name)
        assert copied.find(key) is None, name
        shutil.rmtree(folder)


@pytest.mark.parametrize("harm", [cut_in_half, empty, put_other_json, keep_only_its_key])
def test_a_harmed_manifest_is_noticed(harm: Harm, copied: GraphStore, key: GraphKey) -> None:
    harm(copied.path(key) / MANIFEST)
    assert copied.find(key) is None


def test_the_server_converts_it_anew(
    copied: GraphStore,
    sound: GraphStore,
    source: ModelSource,
    key: GraphKey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flip_a_bit(copied.path(key) / "float32.bin")
    with server_process(tmp_path, offline=True) as server:
        server.wait_until_ready()
        with server.client() as client:
            answer = client.post(EMBEDDINGS, json={"input": TEXTS})
            assert answer.status_code == 200, answer.text
        assert "is not as it was written" in server.stderr()
    assert copied.find(key) is not None
    monkeypatch.setattr(openvino_backend, "_WARM_UP_S", 0.0)
    graphs_dir = sound.path(key).parent.parent
    backend = OpenVinoBackend.load(source, graphs_dir=graphs_dir)
    batch = Batch.of(backend.tokenize_for_embedding(TEXTS), pad_id=backend.pad_id)
    found = np.array([item["embedding"] for item in answer.json()["data"]])
    assert (np.sum(found * backend.encode(batch), axis=1) > 0.9999).all()
    backend.close()
