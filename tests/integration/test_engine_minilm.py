"""The engine as the settings build it, with the default encoder: all-MiniLM-L6-v2."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
import torch

from conftest import plain_settings
from pellucid.errors import KnockoutInvalid, LayerOutOfRange, LogitLensUnavailable
from pellucid.inference.composition import build_engine
from pellucid.inference.engine import (
    EmbeddingQuery,
    Inspection,
    InspectionQuery,
    Priority,
    ProjectionQuery,
)
from pellucid.inference.local_engine import LocalEngine
from pellucid.models.backend import Batch, Float32, Knockout, ModelRef
from pellucid.models.sources.locator import Locator
from pellucid.models.transformers_backend import TransformersBackend
from pellucid.progress import ProgressEvent

T = TypeVar("T")

TEXT = "The boat sails past the old harbour, and the boat returns."
EVERYTHING = frozenset(
    {"attentions", "hidden_states", "statistics", "patterns", "projection", "rollout"}
    | {"norm_weighted"}
)
REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@pytest.fixture(scope="module")
def events() -> list[ProgressEvent]:
    return []


@pytest.fixture(scope="module")
def engine(events: list[ProgressEvent]) -> Iterator[LocalEngine]:
    engine = build_engine(plain_settings(device="cpu"), events.append)
    yield engine
    run(engine.close())


@pytest.fixture(scope="module")
def backend() -> Iterator[TransformersBackend]:
    """The same model without an engine around it."""
    source = Locator.of(plain_settings()).locate()
    backend = TransformersBackend.load(source, device="cpu")
    yield backend
    backend.close()


def inspect(engine: LocalEngine, **query: Any) -> Inspection:
    return run(engine.inspect(InspectionQuery(**({"text": TEXT} | query))))


def test_it_is_the_published_model(engine: LocalEngine, events: list[ProgressEvent]) -> None:
    info = run(engine.load())
    assert (info.model_id, info.revision) == ("sentence-transformers/all-MiniLM-L6-v2", REVISION)
    # Converted or not: servers of other tests share the folder of graphs.
    types = [event.type for event in events if event.type != "model_converting"]
    assert types == ["model_cached", "model_loaded"]
    assert events[-1].data == {"model": info.model_id, "dimensions": 384}


def test_its_names_are_one_model(engine: LocalEngine) -> None:
    for ref in (
        ModelRef(model_id="sentence-transformers/all-MiniLM-L6-v2"),
        ModelRef(model_id="all-MiniLM-L6-v2", revision="main"),
        ModelRef(model_id="sentence-transformers/all-MiniLM-L6-v2", revision=REVISION),
    ):
        assert run(engine.load(ref)).revision == REVISION
    assert len(engine.list_models()) == 1


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_an_inspection_with_everything(engine: LocalEngine, dtype: Any) -> None:
    found = inspect(engine, include=EVERYTHING, dtype=dtype)
    length = len(found.tokens)
    assert [token.text for token in found.tokens[:3]] == ["[CLS]", "the", "boat"]
    assert {name: tensor.values.shape for name, tensor in found.tensors.items()} == {
        "attentions": (6, 12, length, length),
        "norm_weighted": (6, 12, length, length),
        "rollout": (length, length),
        "hidden_states": (7, length, 384),
    }
    attentions = found.tensors["attentions"]
    weights = attentions.values.astype(np.float64) * (attentions.scale or 1.0)
    per_row = {"float32": 1e-5, "float16": 1e-3, "uint8": length / 510}[dtype]
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=per_row)
    plain = (found.statistics, found.patterns, found.projection, found.timing)
    assert "NaN" not in json.dumps(plain, allow_nan=False)
    assert found.patterns is not None
    support = found.patterns["attentions"]["support"]
    assert support["duplicate"] == 5  # the boat ... the ... the boat


def test_vectors_are_the_backends(engine: LocalEngine, backend: TransformersBackend) -> None:
    texts = [TEXT, "short", "The weather is lovely today.", "a b c d e f g " * 60]
    found = run(engine.embed(EmbeddingQuery(inputs=texts, normalize=False)))
    for text, vector in zip(texts, found.vectors, strict=True):
        alone = backend.encode(Batch.of(backend.tokenize_for_embedding([text])))[0]
        assert vector @ alone > 0.9999  # both of length 1; the engine's computed by OpenVINO
    assert found.truncated == (False, False, False, True)
    assert found.num_tokens[3] == 256
    assert np.abs(np.linalg.norm(found.vectors, axis=1) - 1).max() < 1e-5


def test_batch_composition_lane_and_concurrency_change_no_vector(engine: LocalEngine) -> None:
    words = TEXT.split()
    texts = [" ".join(words[place:] * (1 + place % 4)) for place in range(len(words))]

    async def ask(*chosen: str, lane: Priority) -> list[Float32]:
        answer = await engine.embed(EmbeddingQuery(inputs=chosen, priority=lane))
        return list(answer.vectors)

    async def main() -> None:
        alone = {text: (await ask(text, lane="interactive"))[0] for text in texts}
        requests = [texts[:7], texts[3:4], texts[5:], texts[::-1], texts[::3], texts[2:3]]
        answers = await asyncio.gather(
            *(
                ask(*chosen, lane="bulk" if number % 2 else "interactive")
                for number, chosen in enumerate(requests)
            )
        )
        for chosen, vectors in zip(requests, answers, strict=True):
            for text, vector in zip(chosen, vectors, strict=True):
                assert vector @ alone[text] > 0.9999

    run(main())


def test_the_pooled_vector_is_the_embedding(engine: LocalEngine) -> None:
    cut = Knockout(layers=(5,), heads=(11,), query_positions=(0,), key_positions=(3,))
    found = inspect(engine, knockouts=(cut,), include=frozenset({"hidden_states"}))
    assert found.change is not None
    pooled = found.tensors["hidden_states"].values[-1].mean(axis=0)
    vector = run(engine.embed(EmbeddingQuery(inputs=[TEXT]))).vectors[0]
    similarity = pooled @ vector / np.linalg.norm(pooled)
    assert similarity == pytest.approx(found.change["cosine_similarity"], abs=1e-3)


def test_a_knockout_cuts_what_it_names_and_nothing_else(engine: LocalEngine) -> None:
    cut = Knockout(layers=(2,), heads=(1, 7), query_positions=(3, 4), key_positions=(0, 2))
    whole = inspect(engine).tensors["attentions"].values
    found = inspect(engine, knockouts=(cut,))
    weights = found.tensors["attentions"].values
    edges = np.zeros(weights.shape[1:], dtype=np.bool_)
    edges[np.ix_((1, 7), (3, 4), (0, 2))] = True
    assert (weights[2][edges] == 0).all()
    assert (weights[2][~edges] > 0).all()
    np.testing.assert_array_equal(weights[:2], whole[:2])
    # What remains of a cut row keeps its proportions: the same scores, another sum.
    kept = whole[2].copy()
    kept[edges] = 0
    np.testing.assert_allclose(weights[2], kept / kept.sum(axis=-1, keepdims=True), atol=1e-6)
    assert found.change is not None
    assert 0 < found.change["distance"] < 1
    after = inspect(engine).tensors["attentions"].values
    np.testing.assert_array_equal(after, whole)  # for one request only


def test_a_text_pair_and_a_joint_projection(engine: LocalEngine) -> None:
    found = inspect(
        engine,
        text="one boat",
        text_pair="two boats",
        include=frozenset({"projection"}),
        projection=ProjectionQuery(layer="all", dimensions=3),
    )
    assert {token.text_index for token in found.tokens} == {-1, 0, 1}
    assert found.projection is not None
    assert np.shape(found.projection["coordinates"]) == (7, len(found.tokens), 3)


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ({"layers": (6,)}, LayerOutOfRange),
        ({"include": frozenset({"logit_lens"})}, LogitLensUnavailable),
        ({"knockouts": (Knockout(query_positions=(1,)),)}, KnockoutInvalid),
    ],
    ids=["layer", "lens", "knockout"],
)
def test_refusals(engine: LocalEngine, query: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        inspect(engine, **query)


def test_estimate_before_loading() -> None:
    engine = build_engine(plain_settings(device="cpu"))
    size = run(engine.estimate(ModelRef(model_id="sentence-transformers/all-MiniLM-L6-v2")))
    assert (size.source, size.download_bytes, size.fits) == ("default", 0, True)
    assert size.num_parameters == pytest.approx(22.7e6, rel=0.01)
    # In float32 as stored and in bfloat16 as computed with.
    assert size.memory_bytes == pytest.approx(6 * 22.7e6, rel=0.01)


def test_the_default_model_is_unloaded_by_the_name_in_the_settings() -> None:
    engine = build_engine(plain_settings(device="cpu", model="all-MiniLM-L6-v2"))
    run(engine.load())
    assert run(engine.unload(ModelRef(model_id="all-MiniLM-L6-v2"))) > 80e6
    run(engine.close())


def test_unloading_returns_the_memory() -> None:
    engine = build_engine(plain_settings(device="cpu"))
    process = psutil.Process()

    async def use() -> None:
        await engine.load()
        await engine.embed(EmbeddingQuery(inputs=[TEXT]))

    run(use())  # once before measuring: libraries keep what they need themselves
    returned = run(engine.unload())
    gc.collect()
    empty = process.memory_info().rss
    run(use())
    loaded = process.memory_info().rss
    run(engine.unload())
    after = process.memory_info().rss
    assert loaded - empty > 0.5 * returned  # rows of the vocabulary never read are not in memory
    assert after - empty < 0.2 * returned
    run(engine.close())


async def threads_of_the_worker(engine: LocalEngine) -> int:
    """A thread has its own number of threads: what counts is that of the model's worker."""
    lease = await engine._lease(None)
    ticket = engine._line(lease.backend).run(
        lambda still_wanted: torch.get_num_threads(), on_done=lease.release
    )
    return await asyncio.wrap_future(ticket.future)


def test_the_settings_reach_the_model() -> None:
    before = torch.get_num_threads()
    settings = plain_settings(
        device="cpu", dtype="bfloat16", num_threads=1, embedding_runtime="torch"
    )
    engine = build_engine(settings)
    try:
        info = run(engine.load())
        assert (info.device, info.dtype) == ("cpu", "bfloat16")
        assert info.memory_bytes == pytest.approx(2 * info.num_parameters, rel=0.02)
        assert run(threads_of_the_worker(engine)) == 1
    finally:
        run(engine.close())
        torch.set_num_threads(before)
