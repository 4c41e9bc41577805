"""The pool: each model once, within its budget, never closed under a lease."""

from __future__ import annotations

import gc
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from fake_pool import DEFAULT, FakeLoader, FakeLocator
from pellucid.errors import (
    ModelInUse,
    ModelLoadFailed,
    ModelNotFound,
    ModelNotLoaded,
    NoFreeModelSlot,
    NotReady,
    OutOfMemory,
    Overloaded,
)
from pellucid.models import residency
from pellucid.models.backend import Backend, ModelRef
from pellucid.models.fake.backend import FakeBackend
from pellucid.models.pool import ModelPool, PoolLimits
from pellucid.progress import ProgressEvent, ignore_progress


def make_pool(
    *,
    locator: FakeLocator | None = None,
    loader: FakeLoader | None = None,
    budget: int = 1_000,
    max_loaded_models: int = 8,
    max_waiting: int = 256,
    room_timeout_s: float = 0.05,
    progress: Callable[[ProgressEvent], None] = ignore_progress,
) -> ModelPool:
    return ModelPool(
        locator or FakeLocator(),
        loader or FakeLoader(budget),
        limits=PoolLimits(
            memory_budget=lambda: budget,
            max_loaded_models=max_loaded_models,
            max_waiting=max_waiting,
            room_timeout_s=room_timeout_s,
        ),
        progress=progress,
    )


def named(name: str, revision: str | None = None) -> ModelRef:
    return ModelRef(model_id=name, revision=revision)


def loaded_names(pool: ModelPool) -> list[str]:
    return [model.key.model_id for model in pool.view().loaded]


def test_a_hundred_concurrent_acquires_load_once() -> None:
    loader = FakeLoader(delay_s=0.02)
    pool = make_pool(loader=loader)
    with ThreadPoolExecutor(100) as threads:
        leases = list(threads.map(lambda _: pool.acquire(named("a")), range(100)))
    assert len(loader.made) == 1
    assert {id(lease.backend) for lease in leases} == {id(loader.made[0])}
    assert pool.view().loaded[0].in_use == 100


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (named("a"), named("a", "c0ffee")),
        (named("a", "c0ffee"), named("a", "main")),
        (None, named("fake/default")),
    ],
    ids=["none-then-commit", "commit-then-branch", "default-then-name"],
)
@pytest.mark.parametrize("at_once", [False, True], ids=["in-turn", "at-once"])
def test_names_of_one_commit_are_one_entry(
    first: ModelRef | None, second: ModelRef | None, at_once: bool
) -> None:
    loader = FakeLoader(delay_s=0.01)
    pool = make_pool(loader=loader)
    if at_once:
        futures = [pool.request(first), pool.request(second)]
        leases = [future.result(5) for future in futures]
    else:
        leases = [pool.acquire(first), pool.acquire(second)]
    assert leases[0].backend is leases[1].backend
    assert len(loader.made) == 1


def test_another_commit_is_another_entry() -> None:
    pool = make_pool()
    assert pool.acquire(named("a")).backend is not pool.acquire(named("a", "beef")).backend


def test_least_recently_used_idle_model_goes_first() -> None:
    loader = FakeLoader(300)
    pool = make_pool(loader=loader, budget=300)
    for name in ("a", "b", "c"):
        pool.acquire(named(name)).release()
    pool.acquire(named("a")).release()  # now b is the oldest
    pool.acquire(named("d")).release()
    assert loaded_names(pool) == ["c", "a", "d"]
    assert [backend.model.model_id for backend in loader.made if backend.closed] == ["b"]
    assert not loader.over_budget  # b was closed before d was loaded


def test_models_at_work_are_never_evicted() -> None:
    pool = make_pool(budget=250)
    with pool.acquire(named("a")) as backend, pool.acquire(named("b")):
        with pytest.raises(OutOfMemory) as caught:
            pool.acquire(named("c"))
        assert caught.value.facts == {
            "model_id": "c",
            "needed_bytes": 100,
            "available_bytes": 50,
            "budget_bytes": 250,
        }
        assert isinstance(backend, FakeBackend)
        assert not backend.closed
    pool.acquire(named("c")).release()
    assert loaded_names(pool) == ["b", "c"]


def test_a_load_waits_for_a_lease_about_to_end() -> None:
    pool = make_pool(budget=100, room_timeout_s=5)
    lease = pool.acquire(named("a"))
    future = pool.request(named("b"))
    time.sleep(0.05)
    assert not future.done()
    lease.release()
    assert future.result(5).backend.info.model_id == "b"


def test_idle_models_stay_when_evicting_them_would_not_help() -> None:
    pool = make_pool(locator=FakeLocator(sizes={"big": 950}), budget=1_000)
    busy = pool.acquire(named("busy"))
    pool.acquire(named("idle")).release()
    with pytest.raises(OutOfMemory):
        pool.acquire(named("big"))
    assert loaded_names(pool) == ["busy", "idle"]
    busy.release()


def test_a_model_over_the_whole_budget_is_refused_before_it_is_fetched() -> None:
    locator = FakeLocator(sizes={"big": 5_000})
    pool = make_pool(locator=locator)
    with pytest.raises(OutOfMemory, match=r"big needs 5.0 kB"):
        pool.acquire(named("big"))
    assert locator.located == []


def test_an_estimate_that_was_too_low_does_not_overfill() -> None:
    loader = FakeLoader(500, sizes={"liar": 450})
    pool = make_pool(loader=loader, budget=500)
    lease = pool.acquire(named("a"))
    with pytest.raises(OutOfMemory):
        pool.acquire(named("liar"))
    assert loader.made[-1].closed
    lease.release()
    pool.acquire(named("liar")).release()
    assert loaded_names(pool) == ["liar"]


def test_count_limit_closes_the_oldest_or_says_so() -> None:
    pool = make_pool(max_loaded_models=1)
    pool.acquire(named("a")).release()
    with pool.acquire(named("b")):
        assert loaded_names(pool) == ["b"]
        with pytest.raises(NoFreeModelSlot, match="limit is 1"):
            pool.acquire(named("c"))


def test_a_failed_load_reaches_all_waiters_and_is_tried_again() -> None:
    loader = FakeLoader(gate=threading.Event(), error=RuntimeError("bad weights"))
    pool = make_pool(loader=loader)
    futures = [pool.request(named("a")) for _ in range(3)]
    assert pool.view().loading == {named("a"): 3}
    assert loader.gate is not None
    loader.gate.set()
    for future in futures:
        with pytest.raises(ModelLoadFailed, match="RuntimeError: bad weights"):
            future.result(5)
    assert isinstance(pool.view().failures[named("a")], ModelLoadFailed)
    loader.error = None
    pool.acquire(named("a")).release()
    assert pool.view().failures == {}


def test_errors_of_the_locator_come_through_unchanged() -> None:
    error = ModelNotFound(model_id="gone", revision="main")
    pool = make_pool(locator=FakeLocator(errors={"gone": error}))
    with pytest.raises(ModelNotFound):
        pool.acquire(named("gone"))


def test_remembered_failures_are_bounded() -> None:
    names = [f"gone-{number}" for number in range(40)]
    errors: dict[str, Exception] = {
        name: ModelNotFound(model_id=name, revision=None) for name in names
    }
    pool = make_pool(locator=FakeLocator(errors=errors))
    for name in names:
        with pytest.raises(ModelNotFound):
            pool.acquire(named(name))
    assert len(pool.view().failures) == 32


def test_waiting_for_loads_is_bounded() -> None:
    loader = FakeLoader(gate=threading.Event())
    pool = make_pool(loader=loader, max_waiting=2)
    futures = [pool.request(named("a")), pool.request(named("b"))]
    with pytest.raises(Overloaded, match="2 requests wait"):
        pool.request(named("c"))
    assert loader.gate is not None
    loader.gate.set()
    for future in futures:
        future.result(5).release()


def test_a_cancelled_waiter_takes_no_lease() -> None:
    loader = FakeLoader(gate=threading.Event())
    pool = make_pool(loader=loader)
    gone, waiting = pool.request(named("a")), pool.request(named("a"))
    assert gone.cancel()
    assert loader.gate is not None
    loader.gate.set()
    waiting.result(5).release()
    assert [model.in_use for model in pool.view().loaded] == [0]


def test_unload() -> None:
    loader = FakeLoader()
    pool = make_pool(loader=loader)
    lease = pool.acquire(named("a"))
    pool.acquire(named("b")).release()
    with pytest.raises(ModelInUse, match="1 requests"):
        pool.unload(named("a"))
    with pytest.raises(ModelNotLoaded):
        pool.unload(named("never"))
    assert pool.unload() == 100  # only b is idle
    lease.release()
    lease.release()  # twice does no harm
    assert pool.unload(named("a")) == 100
    assert loader.alive_bytes() == 0


def test_unload_by_bare_name_finds_a_model_asked_for_by_commit() -> None:
    pool = make_pool()
    pool.acquire(named("a", "beef")).release()
    assert pool.unload(named("a")) == 100


def test_the_default_model_and_its_progress() -> None:
    events: list[ProgressEvent] = []
    pool = make_pool(progress=events.append)
    assert pool.view().default_key is None
    pool.acquire().release()
    assert pool.view().default_key == DEFAULT
    data = {"model": "fake/default", "dimensions": 12}
    assert events == [ProgressEvent("model_loaded", data)]


def test_close_refuses_and_frees() -> None:
    loader = FakeLoader()
    pool = make_pool(loader=loader)
    closed: list[Backend] = []
    pool.before_close(closed.append)
    pool.acquire(named("a")).release()
    pool.close()
    assert loader.alive_bytes() == 0
    assert closed == loader.made
    with pytest.raises(NotReady):
        pool.acquire(named("a"))


def test_a_load_that_ends_after_close_leaves_nothing_behind() -> None:
    loader = FakeLoader(gate=threading.Event())
    pool = make_pool(loader=loader)
    future = pool.request(named("a"))
    while not loader_is_waiting(pool):
        time.sleep(0.001)
    pool.close()
    assert loader.gate is not None
    loader.gate.set()
    with pytest.raises(NotReady):
        future.result(5)
    assert loader.alive_bytes() == 0


def loader_is_waiting(pool: ModelPool) -> bool:
    return pool._load_lock.locked()


def test_a_failing_close_does_not_fail_the_request_that_needs_the_room(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = make_pool(budget=100)

    def refuse(backend: Backend) -> None:
        raise RuntimeError("stuck")

    pool.before_close(refuse)
    pool.acquire(named("a")).release()
    pool.acquire(named("b")).release()
    assert loaded_names(pool) == ["b"]
    assert "unloading a failed" in caplog.text


@pytest.mark.parametrize("seed", range(3))
def test_under_stress_the_invariants_hold(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    sizes = {f"m{number}": 60 + 40 * number for number in range(6)}
    locator, loader = FakeLocator(sizes=sizes), FakeLoader(500, sizes=sizes, delay_s=0.0005)
    pool = make_pool(locator=locator, loader=loader, budget=500, room_timeout_s=5)
    problems: list[str] = []

    def work(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        for _ in range(25):
            ref = named(f"m{chance.randrange(6)}", chance.choice([None, "c0ffee"]))
            with pool.acquire(ref) as backend:
                assert isinstance(backend, FakeBackend)
                if backend.info.model_id != ref.model_id:
                    problems.append("wrong model")
                time.sleep(chance.random() * 0.001)
                if backend.closed:
                    problems.append("closed under a lease")
            if chance.random() < 0.1:
                pool.unload()

    with ThreadPoolExecutor(12) as threads, caplog.at_level(logging.ERROR):
        for done in [threads.submit(work, number) for number in range(12)]:
            done.result(60)
    assert problems == []
    assert loader.over_budget == []
    assert caplog.records == []
    assert all(model.in_use == 0 for model in pool.view().loaded)
    pool.unload()
    assert loader.alive_bytes() == 0


def test_nothing_keeps_a_closed_backend_alive() -> None:
    loader = FakeLoader()
    pool = make_pool(loader=loader)
    pool.acquire(named("a")).release()
    pool.unload()
    trace = weakref.ref(loader.made.pop())
    gc.collect()
    assert trace() is None


def test_what_is_on_this_machine_waits_for_no_download() -> None:
    arrived = threading.Event()
    names = [f"remote/{number}" for number in range(6)]
    locator = FakeLocator(downloads=dict.fromkeys(names, arrived))
    pool = make_pool(locator=locator)
    coming = [pool.request(named(name)) for name in names]
    pool.request(named("here")).result(5).release()
    assert sum(name in locator.located for name in names) <= 4
    arrived.set()
    for future in coming:
        future.result(5).release()


def test_those_who_left_do_not_count_as_waiting() -> None:
    gate = threading.Event()
    pool = make_pool(loader=FakeLoader(gate=gate), max_waiting=3)
    left = [pool.request(named("a")) for _ in range(3)]
    with pytest.raises(Overloaded):
        pool.request(named("a"))
    for future in left:
        future.cancel()
    assert pool.view().loading == {named("a"): 0}
    stayed = pool.request(named("a"))
    gate.set()
    stayed.result(5).release()


def test_a_load_that_finds_no_thread_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool()

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="new thread"):
            pool.request()
    pool.request().result(5).release()


def test_loads_that_nobody_waits_for_are_bounded_too() -> None:
    gate = threading.Event()
    pool = make_pool(loader=FakeLoader(gate=gate), max_waiting=3)
    for name in "abc":
        pool.request(named(name)).cancel()
    with pytest.raises(Overloaded):
        pool.request(named("d"))
    gate.set()


def test_memory_of_a_model_that_was_given_up_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(residency, "_CLOSING_S", 0.05)
    pool = make_pool(budget=150)
    stuck = pool.acquire()
    bury = pool.condemn(stuck.backend)
    with pytest.raises(OutOfMemory, match="needs 100 bytes, 50 bytes can be freed of 150"):
        pool.acquire()
    stuck.release()
    bury()
    with pool.acquire() as fresh:
        assert fresh is not stuck.backend
