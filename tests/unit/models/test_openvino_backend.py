"""Graphs give torch's embeddings, whatever the model and however texts are put together."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_reference import cosines, texts_of_all_lengths
from graphs import embedding_repository, load_graph, without_processes
from pellucid.errors import (
    CapabilityMissing,
    ForwardOutOfMemory,
    GraphUnavailable,
    ModelNotLoaded,
)
from pellucid.models.backend import Batch, CaptureSpec, Float32
from pellucid.models.graph import obtaining, tracing
from pellucid.models.graph.reference import Reference
from pellucid.models.openvino_backend import OpenVinoBackend
from pellucid.models.sources.local_folder import revision_of
from pellucid.models.transformers_backend import TransformersBackend
from pellucid.progress import ProgressEvent
from tiny_backends import load_tiny

TEXTS = [text[:600] for text in texts_of_all_lengths()[::12]]

Pair = tuple[TransformersBackend, OpenVinoBackend]
# family, pooling, further options of the repository
REPOSITORIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert, mean": ("bert", "mean", {}),
    "bert, cls and dense": ("bert", "cls", {"dense_width": 20, "truncate_dim": 12}),
    "bert, max": ("bert", "max", {}),
    "bert, prompt left out": (
        "bert",
        "mean",
        {"include_prompt": False, "prompts": {"query": "the river: "}},
    ),
    "roberta, cls": ("roberta", "cls", {}),
    "xlm_roberta, mean": ("xlm_roberta", "mean", {}),
    "distilbert, mean": ("distilbert", "mean", {}),
    "albert, mean": ("albert", "mean", {}),
    "mpnet, mean": ("mpnet", "mean", {}),
    "t5, mean": ("t5", "mean", {}),
    "llama, last token": ("llama", "lasttoken", {}),
    "qwen3, weighted mean": ("qwen3", "weightedmean", {}),
    "gemma2, windows and caps": ("gemma2", "mean", {}),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One model by name, on torch and on OpenVINO."""
    root = tmp_path_factory.mktemp("graphs")

    def load(name: str) -> Pair:
        family, pooling, options = REPOSITORIES[name]
        folder = embedding_repository(family, root / name, pooling=pooling, **options)
        return load_tiny(folder), load_graph(folder, root / "graphs")

    with pytest.MonkeyPatch.context() as patch:
        without_processes(patch)
        yield cache(load)


def encode(backend: Any, texts: list[str], *, prompt: str | None = None) -> Float32:
    inputs = backend.tokenize_for_embedding(texts, prompt=prompt)
    vectors: Float32 = backend.encode(Batch.of(inputs, pad_id=backend.pad_id))
    return vectors


@pytest.mark.parametrize("name", REPOSITORIES)
def test_vectors_are_torchs(pair: Callable[[str], Pair], name: str) -> None:
    torch_backend, graph = pair(name)
    prompt = next(iter(graph.info.prompts.values()), None)
    expected = encode(torch_backend, TEXTS, prompt=prompt)
    given = encode(graph, TEXTS, prompt=prompt)
    assert given.dtype == np.float32
    assert given.shape == (len(TEXTS), graph.info.dimensions)
    np.testing.assert_allclose(given, expected, atol=5e-5)
    parity = graph.info.embedding.parity
    assert parity is not None
    assert parity.min_cosine > 0.99999


@pytest.mark.parametrize("name", ["bert, mean", "llama, last token"])
def test_padding_on_the_left_changes_nothing(pair: Callable[[str], Pair], name: str) -> None:
    graph = pair(name)[1]
    right = Batch.of(graph.tokenize_for_embedding(TEXTS[:6]), pad_id=graph.pad_id)
    left_ids, left_mask = np.full_like(right.input_ids, graph.pad_id), right.attention_mask * 0
    for row, length in enumerate(right.attention_mask.sum(axis=1)):
        left_ids[row, -length:] = right.input_ids[row, :length]
        left_mask[row, -length:] = 1
    left = Batch(input_ids=left_ids, attention_mask=left_mask)
    np.testing.assert_array_equal(graph.encode(left), graph.encode(right))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=24))
def test_no_text_changes_anothers_vector(pair: Callable[[str], Pair], texts: list[str]) -> None:
    graph = pair("bert, mean")[1]
    alone = np.concatenate([encode(graph, [text]) for text in texts])
    assert cosines(encode(graph, texts), alone).min() > 0.99999


def test_exact_is_float32_whatever_the_graph(pair: Callable[[str], Pair]) -> None:
    torch_backend, _ = pair("bert, mean")
    graph = _again(pair, precision="bfloat16", min_parity=0.5)
    batch = Batch.of(graph.tokenize_for_embedding(TEXTS[:4]), pad_id=graph.pad_id)
    expected = torch_backend.encode(batch)
    assert graph.info.embedding.precision == "bfloat16"
    np.testing.assert_allclose(graph.encode(batch, exact=True), expected, atol=5e-5)


def _again(pair: Callable[[str], Pair], **options: Any) -> OpenVinoBackend:
    """The first model's graph once more, from its cache."""
    graph = pair("bert, mean")[1]
    folder = graph.folder.parents[1].parent / "bert, mean"
    return load_graph(folder, graph.folder.parents[1], **options)


def test_what_it_cannot_do_it_says(pair: Callable[[str], Pair]) -> None:
    graph = pair("bert, mean")[1]
    batch = Batch.of(graph.tokenize_for_embedding(["a"]))
    for call in (
        lambda: graph.tokenize("a"),
        lambda: graph.tokenize_messages([]),
        lambda: graph.encoding_of([1]),
        lambda: graph.inspect(batch, CaptureSpec()),
    ):
        with pytest.raises(CapabilityMissing, match="only gives embeddings"):
            call()


def test_it_describes_itself(pair: Callable[[str], Pair]) -> None:
    torch_backend, graph = pair("bert, cls and dense")
    ours, torchs = graph.info, torch_backend.info
    assert ours.embedding.runtime == "openvino"
    assert ours.attention_implementation == "openvino"
    assert ours.attention == torchs.attention  # what an inspection of this model will give
    for name in ("dimensions", "pooling", "prompts", "max_embedding_tokens", "num_parameters"):
        assert getattr(ours, name) == getattr(torchs, name)
    assert ours.dimensions == 12


def test_ids_are_taken_as_they_are(pair: Callable[[str], Pair]) -> None:
    graph = pair("bert, mean")[1]
    (item,) = graph.tokenize_for_embedding(["The fox jumps"])
    given = graph.ids_for_embedding(item.input_ids.tolist())
    np.testing.assert_array_equal(given.input_ids, item.input_ids)
    assert graph.chunk_for_embedding(["The fox"])[0][0].input_ids.size == 4


def test_out_of_memory_is_told_apart(
    pair: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = _again(pair)
    batch = Batch.of(graph.tokenize_for_embedding(["a", "b"]))

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Exception from src/inference: std::bad_alloc")

    monkeypatch.setattr("pellucid.models.graph.compiled.CompiledGraph.encode", fail)
    with pytest.raises(ForwardOutOfMemory, match="2 inputs"):
        graph.encode(batch)


def test_a_closed_backend_says_so(pair: Callable[[str], Pair]) -> None:
    graph = _again(pair)
    batch = Batch.of(graph.tokenize_for_embedding(["a"]))
    graph.close()
    graph.close()
    with pytest.raises(ModelNotLoaded):
        graph.encode(batch)


# --------------------------------------------------------------------------- parity


def test_a_graph_that_is_too_far_off_is_refused_with_the_figures(
    pair: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Reference.read

    def other(path: Path) -> Reference:
        reference = read(path)
        embeddings = reference.embeddings.copy()
        embeddings[3] = embeddings[3][::-1]
        return Reference(inputs=reference.inputs, embeddings=embeddings)

    pair("bert, mean")
    monkeypatch.setattr(Reference, "read", other)
    with pytest.raises(GraphUnavailable, match=r"cosine with PyTorch over 2\d texts is 0\.\d+"):
        _again(pair)


def test_bfloat16_that_is_too_far_off_gives_way_to_float32(
    pair: Callable[[str], Pair],
) -> None:
    graph = _again(pair, precision="bfloat16", min_parity=0.9999999)
    assert graph.info.embedding.precision == "float32"
    assert "bfloat16" in (graph.info.embedding.reason or "")


# --------------------------------------------------------------------------- the cache


def test_a_cached_graph_needs_no_conversion(
    pair: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pair("bert, mean")[1]

    def convert(*_: object, **__: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(obtaining, "convert_in_child", convert)
    again = _again(pair)
    np.testing.assert_array_equal(encode(again, TEXTS), encode(first, TEXTS))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder, for tests that harm its graph."""
    without_processes(monkeypatch)
    return embedding_repository("bert", tmp_path / "bert")


def test_a_corrupt_graph_is_converted_anew(
    own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = load_graph(own, tmp_path / "graphs")
    expected = encode(graph, TEXTS[:3])
    weights = graph.folder / "float32.bin"
    graph.close()
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0x40
    weights.write_bytes(content)
    np.testing.assert_array_equal(encode(load_graph(own, tmp_path / "graphs"), TEXTS[:3]), expected)
    assert "float32.bin is not as it was written" in caplog.text


def test_a_conversion_is_told_and_told_once(own: Path, tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    for _ in range(2):
        load_graph(own, tmp_path / "graphs", progress=events.append).close()
    (event,) = events
    assert (event.type, event.data) == ("model_converting", {"model": "tiny/bert"})


def test_a_graph_that_another_server_replaced_goes_on(own: Path, tmp_path: Path) -> None:
    graph = load_graph(own, tmp_path / "graphs")
    expected = encode(graph, TEXTS[:3])
    shutil.rmtree(tmp_path / "graphs")
    np.testing.assert_array_equal(encode(graph, TEXTS[:3]), expected)
    batch = Batch.of(graph.tokenize_for_embedding(TEXTS[:3]), pad_id=graph.pad_id)
    assert cosines(graph.encode(batch, exact=True), expected).min() > 0.999


def test_a_full_disk_leaves_nothing_and_may_go_well_later(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pellucid.models.graph.store._sync", no_space)
        with pytest.raises(GraphUnavailable, match="No space left on device"):
            load_graph(own, tmp_path / "graphs")
    left = [path.suffix for path in (tmp_path / "graphs").rglob("*") if path.is_file()]
    assert left == [".lock"]
    assert load_graph(own, tmp_path / "graphs").info.embedding.runtime == "openvino"


def test_a_model_that_can_have_no_graph_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_models import build

    without_processes(monkeypatch)
    folder = build("llama", tmp_path / "llama")  # plain: its texts go through its chat template
    with pytest.raises(GraphUnavailable, match="chat template"):
        load_graph(folder, tmp_path / "graphs")
    monkeypatch.setattr(obtaining, "convert_in_child", None)
    with pytest.raises(GraphUnavailable, match="chat template"):
        load_graph(folder, tmp_path / "graphs")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "too little memory"),
        (OSError(28, "No space left on device"), "No space left"),
    ],
    ids=["memory", "disk"],
)
def test_a_poor_machine_is_no_refusal(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("pellucid.models.graph.tracing.trace", fail)
        with pytest.raises(GraphUnavailable, match=reason):
            load_graph(own, tmp_path / "graphs")
    assert load_graph(own, tmp_path / "graphs").info.embedding.runtime == "openvino"


def test_a_folder_that_changes_meanwhile_gives_no_graph(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tracing.trace

    def changing(*given_: Any) -> Any:
        (own / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
        return trace(*given_)

    with monkeypatch.context() as patch:
        patch.setattr("pellucid.models.graph.tracing.trace", changing)
        with pytest.raises(GraphUnavailable, match="changed meanwhile"):
            load_graph(own, tmp_path / "graphs")
    assert load_graph(own, tmp_path / "graphs").info.embedding.runtime == "openvino"


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "linear"])
def test_positions_that_change_with_the_length_have_no_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    without_processes(monkeypatch)
    folder = embedding_repository("llama", tmp_path / "llama", pooling="lasttoken")
    config = json.loads((folder / "config.json").read_text())
    half = config["hidden_size"] // config["num_attention_heads"] // 2
    config["rope_parameters"] |= {"rope_type": kind, "factor": 2.0}
    if kind == "longrope":
        config["rope_parameters"] |= {
            "short_factor": [1.0] * half,
            "long_factor": [2.0] * half,
            "original_max_position_embeddings": config["max_position_embeddings"] // 2,
        }
    (folder / "config.json").write_text(json.dumps(config))
    if kind == "linear":
        assert load_graph(folder, tmp_path / "graphs").info.embedding.runtime == "openvino"
    else:
        with pytest.raises(GraphUnavailable, match="length of a text"):
            load_graph(folder, tmp_path / "graphs")


def test_a_cached_graph_starts_without_torch(own: Path, tmp_path: Path) -> None:
    load_graph(own, tmp_path / "graphs")
    program = f"""
import json, sys
from pathlib import Path
from pellucid.models.backend import Batch
from pellucid.models.openvino_backend import OpenVinoBackend
from pellucid.models.sources.source import ModelSource
source = ModelSource(
    folder=Path({str(own)!r}), model_id="tiny/bert", revision={revision_of(own)!r}, origin="local"
)
backend = OpenVinoBackend.load(source, graphs_dir=Path({str(tmp_path / "graphs")!r}), num_threads=1)
vectors = backend.encode(Batch.of(backend.tokenize_for_embedding(["The fox jumps"])))
heavy = ("torch", "transformers", "nncf", "openvino_telemetry")
print(json.dumps([vectors.shape, [name for name in heavy if sys.modules.get(name)]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [[1, 32], []]
