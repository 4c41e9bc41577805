"""The pool keeps a model once in each runtime, and lets go of one that no longer answers."""

from __future__ import annotations

import threading

import pytest

from fake_pool import FakeLoader, FakeLocator
from pellucid.errors import GraphUnavailable, ModelInUse, NoFreeModelSlot
from pellucid.models.backend import ModelRef, Runtime
from pellucid.models.fake.backend import FakeBackend
from pellucid.models.pool import ModelPool, PoolLimits
from pellucid.models.sources.source import ModelSource

A, B = ModelRef(model_id="a"), ModelRef(model_id="b")


def make_pool(loader: FakeLoader, *, budget: int = 1_000, max_loaded_models: int = 8) -> ModelPool:
    limits = PoolLimits(
        memory_budget=lambda: budget, max_loaded_models=max_loaded_models, room_timeout_s=0.05
    )
    return ModelPool(FakeLocator(), loader, limits=limits)


def test_what_takes_long_keeps_no_other_model_waiting() -> None:
    converting, done = threading.Event(), threading.Event()

    def prepare(source: ModelSource, runtime: Runtime) -> None:
        if runtime == "openvino":
            converting.set()
            assert done.wait(10)

    limits = PoolLimits(memory_budget=lambda: 1_000)
    pool = ModelPool(FakeLocator(), FakeLoader(), limits=limits, prepare=prepare)
    slow = pool.request(A, "openvino")
    assert converting.wait(10)
    pool.request(B).result(timeout=5).release()
    pool.request(A).result(timeout=5).release()
    assert not slow.done()
    done.set()
    slow.result(timeout=5).release()


def test_what_cannot_be_prepared_is_told_and_frees_its_place() -> None:
    def refuse(source: ModelSource, runtime: Runtime) -> None:
        if runtime == "openvino":
            raise GraphUnavailable(model_id=source.model_id, reason="it has none")

    limits = PoolLimits(memory_budget=lambda: 1_000)
    pool = ModelPool(FakeLocator(), FakeLoader(), limits=limits, prepare=refuse)
    for _ in range(2):
        with pytest.raises(GraphUnavailable, match="it has none"):
            pool.request(A, "openvino").result(timeout=5)
    pool.request(A).result(timeout=5).release()


def places(pool: ModelPool) -> list[tuple[str, str]]:
    return [(model.key.model_id, model.runtime) for model in pool.view().loaded]


def test_each_runtime_is_loaded_once() -> None:
    loader = FakeLoader()
    pool = make_pool(loader)
    leases = [pool.acquire(A, runtime) for runtime in ("torch", "openvino", "torch", "openvino")]
    assert places(pool) == [("a", "torch"), ("a", "openvino")]
    assert leases[0].backend is leases[2].backend
    assert leases[0].backend is not leases[1].backend


def test_a_model_in_two_runtimes_takes_one_place() -> None:
    pool = make_pool(FakeLoader(), max_loaded_models=1)
    first, second = pool.acquire(A, "torch"), pool.acquire(A, "openvino")
    with pytest.raises(NoFreeModelSlot) as refused:
        pool.acquire(B)
    assert refused.value.facts["busy"] == 1
    first.release()
    second.release()
    pool.acquire(B).release()
    assert places(pool) == [("b", "torch")]


def test_both_runtimes_count_towards_the_budget() -> None:
    loader = FakeLoader(budget_bytes=200)
    pool = make_pool(loader, budget=200)
    pool.acquire(A, "torch").release()
    pool.acquire(A, "openvino").release()
    pool.acquire(B, "torch").release()
    assert places(pool) == [("a", "openvino"), ("b", "torch")]
    assert loader.over_budget == []


def test_evicting_one_runtime_leaves_the_name_of_the_other_known() -> None:
    loader = FakeLoader()
    pool = make_pool(loader, budget=200)
    pool.acquire(A, "torch").release()
    pool.acquire(A, "openvino").release()
    pool.acquire(B).release()  # closes the torch one
    pool.acquire(A, "openvino").release()
    assert len(loader.made) == 3


def test_unloading_a_name_unloads_every_runtime() -> None:
    pool = make_pool(FakeLoader())
    lease = pool.acquire(A, "torch")
    pool.acquire(A, "openvino").release()
    with pytest.raises(ModelInUse):
        pool.unload(A)
    lease.release()
    assert pool.unload(A) == 200
    assert places(pool) == []


def test_a_model_without_a_graph_has_not_failed() -> None:
    loader = FakeLoader(error=GraphUnavailable(model_id="a", reason="it is odd"))
    pool = make_pool(loader)
    with pytest.raises(GraphUnavailable):
        pool.acquire(A, "openvino")
    assert pool.view().failures == {}


def test_a_condemned_backend_is_replaced_at_once_and_its_memory_counts_until_it_is_closed() -> None:
    pool = make_pool(FakeLoader(), budget=200)
    lease = pool.acquire(A)
    stuck = lease.backend
    assert isinstance(stuck, FakeBackend)
    bury = pool.condemn(stuck)
    assert places(pool) == []
    fresh = pool.acquire(A)
    assert fresh.backend is not stuck
    assert not stuck.closed
    fresh.release()
    pool.acquire(B).release()  # no room beside the stuck one: the fresh one had to go
    assert places(pool) == [("b", "torch")]
    lease.release()
    bury()
    assert stuck.closed
    pool.acquire(A).release()
    assert places(pool) == [("b", "torch"), ("a", "torch")]


def test_condemning_what_is_gone_does_nothing() -> None:
    pool = make_pool(FakeLoader())
    lease = pool.acquire(A)
    lease.release()
    pool.unload(A)
    pool.condemn(lease.backend)()
    assert places(pool) == []
