"""A graph on disk is whole and unchanged, or it is not there."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pellucid.models.graph.store import MANIFEST, GraphKey, GraphStore, seal

KEY = GraphKey.of("owner/some model", "a" * 40, "none")


@pytest.fixture
def store(tmp_path: Path) -> GraphStore:
    return GraphStore(tmp_path / "graphs")


def put(store: GraphStore, key: GraphKey = KEY) -> Path:
    with store.writing(key, timeout_s=5) as partial:
        (partial / "graph.bin").write_bytes(b"weights" * 100)
        (partial / "graph.xml").write_text("<net/>")
        seal(partial, key, conversion_s=1.0)
        return store.publish(key, partial)


def test_what_was_published_is_found_again(store: GraphStore) -> None:
    assert store.find(KEY) is None
    path = put(store)
    assert store.find(KEY) == path
    assert path.parent.name == "owner--some--model"
    assert (path / "graph.xml").read_text() == "<net/>"


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, model_id="owner/other"),
        replace(KEY, revision="b" * 40),
        replace(KEY, quantization="int8"),
        replace(KEY, versions=(("openvino", "1.0"),)),
        replace(KEY, format=KEY.format + 1),
    ],
    ids=["model", "revision", "quantization", "versions", "format"],
)
def test_another_key_is_another_graph(store: GraphStore, other: GraphKey) -> None:
    put(store)
    assert store.find(other) is None


def flip(path: Path) -> None:
    content = bytearray((path / "graph.bin").read_bytes())
    content[350] ^= 1
    (path / "graph.bin").write_bytes(content)


def truncate(path: Path) -> None:
    (path / "graph.bin").write_bytes((path / "graph.bin").read_bytes()[:100])


def lose_a_file(path: Path) -> None:
    (path / "graph.xml").unlink()


def break_the_manifest(path: Path) -> None:
    (path / MANIFEST).write_text('{"files": ')


def make_it_foreign(path: Path) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["key"]["model_id"] = "owner/foreign"
    (path / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("harm", [flip, truncate, lose_a_file, break_the_manifest, make_it_foreign])
def test_a_harmed_graph_is_replaced_with_a_line_in_the_log(
    store: GraphStore, harm: object, caplog: pytest.LogCaptureFixture
) -> None:
    path = put(store)
    assert callable(harm)
    harm(path)
    assert store.find(KEY) is None
    assert "owner/some model" in caplog.text
    assert put(store) == path
    assert store.find(KEY) == path
    assert [found for found in path.parent.iterdir() if found.is_dir()] == [path]


def test_a_graph_that_cannot_be_read_now_is_not_taken_for_broken(
    store: GraphStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(store)
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "open", lambda *_args, **_options: (_ for _ in ()).throw(OSError(24, "too many"))
        )
        with pytest.raises(OSError, match="too many"):
            store.find(KEY)
    assert store.find(KEY) == path


def test_what_fails_half_way_leaves_nothing(store: GraphStore) -> None:
    def fail() -> None:
        with store.writing(KEY, timeout_s=5) as partial:
            (partial / "graph.bin").write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert store.find(KEY) is None
    assert [path.suffix for path in store.path(KEY).parent.iterdir()] == [".lock"]


def test_what_a_killed_process_left_is_swept(store: GraphStore) -> None:
    left_over = store.path(KEY).parent / f".{KEY.digest}.killed"
    left_over.mkdir(parents=True)
    (left_over / "graph.bin").write_bytes(b"half")
    of_another = store.path(KEY).parent / ".0123.other"
    of_another.mkdir()
    put(store)
    assert not left_over.exists()
    assert of_another.exists()


def test_the_same_graph_of_other_versions_is_replaced(store: GraphStore) -> None:
    old = put(store, replace(KEY, versions=(("openvino", "1.0"),)))
    other_commit = put(store, replace(KEY, revision="b" * 40))
    new = put(store)
    assert not old.exists()
    assert other_commit.exists()
    assert new.exists()


def test_what_a_folder_held_before_is_swept_commits_are_not(store: GraphStore) -> None:
    commit = put(store, replace(KEY, revision="b" * 40))
    before = put(store, replace(KEY, revision="local-000000000000"))
    before_int8 = put(store, replace(KEY, revision="local-000000000001", quantization="int8"))
    now = put(store, replace(KEY, revision="local-111111111111"))
    assert not before.exists()
    assert not before_int8.exists()
    assert commit.exists()
    now_int8 = put(store, replace(KEY, revision="local-111111111111", quantization="int8"))
    assert now.exists()
    assert now_int8.exists()


def test_what_cannot_be_swept_stops_nobody(
    store: GraphStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed writer may still be putting files into its folder."""
    left_over = store.path(KEY).parent / f".{KEY.digest}.killed"
    left_over.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", lambda *_args, **_options: (_ for _ in ()).throw(OSError(39)))
        with store.writing(KEY, timeout_s=5) as partial:
            assert partial != left_over
    assert left_over.exists()


def test_a_graph_depends_on_all_that_makes_and_reads_it() -> None:
    names = {name for name, _ in KEY.versions}
    assert names == {"pellucid", "openvino", "torch", "transformers", "tokenizers"}
    assert "none" not in {version for _, version in KEY.versions}


def test_one_writer_at_a_time(store: GraphStore) -> None:
    with store.writing(KEY, timeout_s=5):
        with (
            pytest.raises(TimeoutError, match="another process"),
            store.writing(KEY, timeout_s=0.1),
        ):
            raise AssertionError
        with store.writing(replace(KEY, revision="b" * 40), timeout_s=0.1):
            pass


def test_a_refusal_is_remembered_for_these_versions(store: GraphStore) -> None:
    assert store.refusal(KEY) is None
    put(store)
    store.refuse(KEY, "it has no graph")
    assert store.refusal(KEY) == "it has no graph"
    assert store.refusal(replace(KEY, versions=(("openvino", "1.0"),))) is None


def test_a_broken_refusal_counts_for_nothing(store: GraphStore) -> None:
    put(store)
    store.refuse(KEY, "it has no graph")
    for path in store.path(KEY).parent.glob("*.refused.json"):
        path.write_text("{")
    assert store.refusal(KEY) is None
