"""Which runtime embeds a model, and what is told of it."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from conftest import plain_settings
from fake_pool import DEFAULT, FakeLocator
from pellucid.errors import GraphUnavailable
from pellucid.inference.composition import build_engine
from pellucid.inference.engine import EmbeddingQuery, InspectionQuery
from pellucid.inference.local_engine import LocalEngine
from pellucid.models.backend import Backend, EmbeddingRuntime, ModelInfo, ModelRef, Parity, Runtime
from pellucid.models.fake.backend import FakeBackend, FakeModel
from pellucid.models.pool import ModelPool, PoolLimits
from pellucid.models.sources.source import ModelSource
from tiny_models import build

ONE = EmbeddingQuery(inputs=["hello world"])
PARITY = Parity(mean_cosine=0.9999, min_cosine=0.9998, threshold=0.999, num_texts=24)


class GraphBackend(FakeBackend):
    """A fake that says that it is a graph."""

    @property
    def info(self) -> ModelInfo:
        return replace(super().info, embedding=EmbeddingRuntime(runtime="openvino", parity=PARITY))


@dataclass
class Loads:
    """What was loaded, in order; models in ``graphless`` have no graph."""

    graphless: set[str] = field(default_factory=set)
    order: list[tuple[str, Runtime]] = field(default_factory=list)
    before_graph: Callable[[], object] = lambda: None

    def __call__(self, source: ModelSource, runtime: Runtime) -> Backend:
        self.order.append((source.model_id, runtime))
        model = FakeModel(model_id=source.model_id, revision=source.revision, memory_bytes=100)
        if runtime == "torch":
            return FakeBackend(model)
        if source.model_id in self.graphless:
            raise GraphUnavailable(model_id=source.model_id, reason="it is odd")
        self.before_graph()
        return GraphBackend(model)


def make_engine(loads: Loads, **settings: Any) -> LocalEngine:
    pool = ModelPool(FakeLocator(), loads, limits=PoolLimits(memory_budget=lambda: 1_000))
    return LocalEngine(
        pool, plain_settings(model=DEFAULT.model_id, **settings), embeds_with="openvino"
    )


def test_a_graph_embeds_and_torch_is_loaded_by_the_first_inspection() -> None:
    loads = Loads()
    engine = make_engine(loads)

    async def main() -> None:
        await engine.load()
        embeddings = await engine.embed(ONE)
        assert embeddings.model.embedding.parity == PARITY
        assert loads.order == [(DEFAULT.model_id, "openvino")]
        await engine.inspect(InspectionQuery(text="hello"))
        assert loads.order[1:] == [(DEFAULT.model_id, "torch")]
        (status,) = engine.list_models()
        assert (status.memory_bytes, status.is_default) == (200, True)
        assert status.embedding == EmbeddingRuntime(runtime="openvino", parity=PARITY)

    asyncio.run(main())


def test_a_model_loaded_only_to_inspect_does_not_say_that_torch_embeds_it() -> None:
    engine = make_engine(Loads())

    async def main() -> None:
        await engine.inspect(InspectionQuery(text="hello"))
        status = engine.default_status()
        assert (status.state, status.embedding) == ("loaded", None)
        assert status.info is not None

    asyncio.run(main())


@pytest.mark.parametrize("name", [None, ModelRef(model_id="a/other")])
def test_a_model_is_listed_once_and_as_loading_until_what_embeds_it_is_loaded(
    name: ModelRef | None,
) -> None:
    go_on = threading.Event()
    loads = Loads(before_graph=lambda: go_on.wait(10))
    engine = make_engine(loads)

    async def main() -> None:
        await engine.inspect(InspectionQuery(text="hello", model=name))
        loading = asyncio.create_task(engine.load(name))
        while len(loads.order) < 2:
            await asyncio.sleep(0.001)
        status, *others = [status for status in engine.list_models() if status.memory_bytes]
        assert (status.state, status.embedding, status.waiting) == ("loading", None, 1)
        assert not others
        assert [status.state for status in engine.list_models()].count("loading") == 1
        go_on.set()
        await loading
        status = next(status for status in engine.list_models() if status.memory_bytes)
        assert status.state == "loaded"
        assert status.embedding is not None

    asyncio.run(main())


def test_without_a_graph_torch_embeds_and_the_model_says_why() -> None:
    loads = Loads(graphless={DEFAULT.model_id})
    engine = make_engine(loads)

    async def main() -> None:
        await engine.load()
        for _ in range(3):
            await engine.embed(ONE)
        assert [runtime for _, runtime in loads.order] == ["openvino", "torch"]
        status = engine.default_status()
        assert status.embedding == EmbeddingRuntime(runtime="torch", reason="it is odd")
        assert status.state == "loaded"

    asyncio.run(main())


def test_a_graph_is_tried_again_after_unloading() -> None:
    loads = Loads(graphless={DEFAULT.model_id})
    engine = make_engine(loads)

    async def main() -> None:
        await engine.embed(ONE)
        loads.graphless.clear()
        await engine.unload()
        await engine.embed(ONE)
        assert [runtime for _, runtime in loads.order] == ["openvino", "torch", "openvino"]

    asyncio.run(main())


def test_who_insists_on_openvino_is_refused() -> None:
    engine = make_engine(Loads(graphless={"a/odd"}), embedding_runtime="openvino")
    with pytest.raises(GraphUnavailable):
        asyncio.run(engine.embed(replace(ONE, model=ModelRef(model_id="a/odd"))))


def test_without_openvino_torch_embeds_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pellucid.models.openvino_backend", None)
    folder = build("bert", tmp_path / "bert")
    engine = build_engine(plain_settings(device="cpu", model=str(folder), data_dir=tmp_path))

    async def main() -> None:
        try:
            assert (await engine.embed(ONE)).vectors.shape[0] == 1
            embedding = engine.default_status().embedding
            assert embedding is not None
            assert embedding.runtime == "torch"
            assert (embedding.reason or "").startswith("OpenVINO cannot be imported")
        finally:
            await engine.close()

    asyncio.run(main())
