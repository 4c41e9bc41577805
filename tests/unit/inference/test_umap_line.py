"""UMAP has a thread of its own: the model stays free for everybody else meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import plain_settings
from fake_pool import FakeLoader, FakeLocator
from pellucid.errors import DeadlineExceeded, Overloaded, TooFewTokens
from pellucid.inference import readings, umap_line
from pellucid.inference.engine import (
    EmbeddingQuery,
    Inspection,
    InspectionQuery,
    ProjectionQuery,
)
from pellucid.inference.local_engine import LocalEngine
from pellucid.introspection.projection import project
from pellucid.models.pool import ModelPool, PoolLimits


class SlowUmap:
    """UMAP that waits until it is let go. What it gives does not matter here: PCA."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun: list[str] = []  # names of threads

    def __call__(self, points: Any, *, method: Any, dimensions: int) -> Any:
        if method == "umap":
            self.begun.append(threading.current_thread().name)
            assert self.gate.wait(10)
        return project(points, method="pca", dimensions=dimensions)


@pytest.fixture
def umap(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowUmap]:
    slow = SlowUmap()
    monkeypatch.setattr(readings, "project", slow)
    yield slow
    slow.gate.set()


def engine(**settings: Any) -> LocalEngine:
    limits = PoolLimits(memory_budget=lambda: 1 << 40)
    pool = ModelPool(FakeLocator(), FakeLoader(), limits=limits)
    return LocalEngine(pool, plain_settings(model="fake/default", **settings))


def query(text: str = "one two three four five", method: Any = "umap") -> InspectionQuery:
    return InspectionQuery(
        text=text, include=frozenset({"projection"}), projection=ProjectionQuery(method=method)
    )


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def test_others_are_answered_while_umap_runs_and_the_model_may_go(umap: SlowUmap) -> None:
    async def main() -> Inspection:
        local = engine()
        slow = asyncio.create_task(local.inspect(query()))
        await until(lambda: umap.begun)
        async with asyncio.timeout(5):
            await local.embed(EmbeddingQuery(inputs=["hello"]))
            pca = await local.inspect(query(method="pca"))
        assert pca.projection is not None
        assert await local.unload() > 0
        assert not slow.done()
        umap.gate.set()
        return await slow

    seen = asyncio.run(main())
    assert seen.projection is not None
    assert len(seen.projection["coordinates"]) == len(seen.tokens)
    assert umap.begun == ["for UMAP"]
    assert set(seen.timing) >= {"queue_ms", "introspection_ms", "total_ms"}


def test_one_at_a_time_each_with_its_own_text(umap: SlowUmap) -> None:
    texts = [" ".join(["word"] * count) for count in range(5, 12)]

    async def main() -> list[Inspection]:
        local = engine()
        tasks = [asyncio.create_task(local.inspect(query(text))) for text in texts]
        await until(lambda: umap.begun)
        await asyncio.sleep(0.05)
        assert len(umap.begun) == 1
        umap.gate.set()
        return await asyncio.gather(*tasks)

    for text, seen in zip(texts, asyncio.run(main()), strict=True):
        assert seen.projection is not None
        assert len(seen.projection["coordinates"]) == len(seen.tokens) >= len(text.split())


def test_those_who_leave_are_never_begun_and_take_no_place(
    umap: SlowUmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(umap_line, "_PLACES", 2)

    async def main() -> None:
        local = engine()
        first = asyncio.create_task(local.inspect(query()))
        await until(lambda: umap.begun)
        others = [asyncio.create_task(local.inspect(query())) for _ in range(6)]
        await asyncio.sleep(0.05)
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        last = asyncio.create_task(local.inspect(query()))
        await asyncio.sleep(0.05)
        umap.gate.set()
        async with asyncio.timeout(5):
            await asyncio.gather(first, last)
        assert len(umap.begun) == 2

    asyncio.run(main())


def test_waiting_is_bounded(umap: SlowUmap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(umap_line, "_PLACES", 1)

    async def main() -> None:
        local = engine(max_waiting=2)
        tasks = [asyncio.create_task(local.inspect(query())) for _ in range(3)]
        await until(lambda: umap.begun)
        with pytest.raises(Overloaded, match="2 requests wait for UMAP, the limit is 2"):
            await local.inspect(query())
        umap.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_the_deadline_holds(umap: SlowUmap) -> None:
    async def main() -> None:
        with pytest.raises(DeadlineExceeded):
            await engine(request_timeout_s=0.2).inspect(query())

    asyncio.run(main())


def test_too_few_tokens_are_told() -> None:
    with pytest.raises(TooFewTokens):
        asyncio.run(engine().inspect(query("a")))
