"""The engine: deadlines, cancellation, overload, loading and unloading; on fake models."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest

from conftest import plain_settings
from fake_pool import FakeLocator
from pellucid.errors import (
    DeadlineExceeded,
    EmptyText,
    Forbidden,
    InternalError,
    ModelInUse,
    ModelLoadFailed,
    ModelNotLoaded,
    NonFiniteValues,
    NotReady,
    OutOfMemory,
    Overloaded,
    TextTooLarge,
    TooManyInputs,
    WorkerReplaced,
)
from pellucid.inference import local_engine
from pellucid.inference.engine import EmbeddingQuery, InspectionQuery
from pellucid.inference.local_engine import LocalEngine
from pellucid.inference.memory_gate import MemoryGate
from pellucid.inference.watchdog import Watchdog
from pellucid.models.backend import ModelRef, Runtime
from pellucid.models.fake.backend import FakeBackend, FakeModel, Faults
from pellucid.models.pool import ModelPool, PoolLimits
from pellucid.models.sources.source import ModelSource
from recorded_events import RecordedEvents

T = TypeVar("T")

OTHER = ModelRef(model_id="fake/other")
ONE = EmbeddingQuery(inputs=["hello world"])


class Bench:
    """An engine on fake models, and what stands behind it."""

    def __init__(
        self, *, budget: int = 1_000, faults: Faults | None = None, **settings: Any
    ) -> None:
        self.faults = faults or Faults()
        self.made: list[FakeBackend] = []
        self.gate: threading.Event | None = None
        self.load_error: Exception | None = None
        self.settings = plain_settings(model="fake/default", **settings)
        limits = PoolLimits(memory_budget=lambda: budget, room_timeout_s=0.05)
        self.locator = FakeLocator()
        self.pool = ModelPool(self.locator, self.load, limits=limits)
        self.events = RecordedEvents()
        self.engine = LocalEngine(self.pool, self.settings, events=self.events)

    def load(self, source: ModelSource, runtime: Runtime = "torch") -> FakeBackend:
        if self.gate is not None:
            assert self.gate.wait(10)
        if self.load_error is not None:
            raise self.load_error
        model = FakeModel(model_id=source.model_id, revision=source.revision, memory_bytes=100)
        self.made.append(FakeBackend(model, faults=self.faults))
        return self.made[-1]

    def in_use(self) -> int:
        return sum(model.in_use for model in self.pool.view().loaded)

    async def until_idle(self) -> None:
        for _ in range(500):
            if not self.in_use():
                return
            await asyncio.sleep(0.01)
        pytest.fail("a lease was never given back")


@pytest.fixture(autouse=True)
def nothing_is_watched_after_the_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    dogs: list[Watchdog] = []

    def watch(*args: Any, **options: Any) -> Watchdog:
        dogs.append(Watchdog(*args, **options))
        return dogs[-1]

    monkeypatch.setattr(local_engine, "Watchdog", watch)
    yield
    for dog in dogs:
        dog.stop()


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def test_a_hundred_requests_at_once_give_the_same_vector() -> None:
    bench = Bench()

    async def main() -> None:
        answers = await asyncio.gather(*(bench.engine.embed(ONE) for _ in range(100)))
        for answer in answers:
            np.testing.assert_allclose(answer.vectors, answers[0].vectors, atol=1e-6)
        assert {*answers[0].timing} == {
            *("load_ms", "queue_ms", "tokenize_ms", "forward_ms", "total_ms")
        }
        await bench.until_idle()

    run(main())
    assert len(bench.made) == 1


def test_inspection_and_embedding_of_several_models_side_by_side() -> None:
    bench = Bench()

    async def main() -> None:
        inspection, embeddings = await asyncio.gather(
            bench.engine.inspect(InspectionQuery(text="hello", model=OTHER)),
            bench.engine.embed(ONE),
        )
        assert inspection.model.model_id == "fake/other"
        assert embeddings.model.model_id == "fake/default"
        assert inspection.timing["total_ms"] > 0

    run(main())


@pytest.mark.parametrize("error", [RuntimeError("cuda"), KeyboardInterrupt("now")], ids=repr)
def test_a_raising_backend_answers_and_the_next_request_succeeds(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()

    async def main() -> None:
        await bench.engine.load()
        bench.faults.error = error
        with caplog.at_level(logging.ERROR), pytest.raises(InternalError) as caught:
            await bench.engine.embed(ONE)
        assert type(caught.value) is InternalError
        assert str(error) not in caught.value.detail
        bench.faults.error = None
        assert (await bench.engine.embed(ONE)).vectors.shape == (1, 12)
        await bench.until_idle()

    run(main())
    assert "a request for fake/default failed" in caplog.text


def test_never_nan() -> None:
    bench = Bench(faults=Faults(nan=True))
    with pytest.raises(NonFiniteValues):
        run(bench.engine.embed(ONE))


def test_a_hanging_model_answers_in_time_and_stays_leased_until_it_returns() -> None:
    hang = threading.Event()
    bench = Bench(faults=Faults(hang=hang), request_timeout_s=0.2)

    async def main() -> None:
        await bench.engine.load()
        started = time.perf_counter()
        with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
            await bench.engine.embed(ONE)
        assert time.perf_counter() - started < 2
        with pytest.raises(ModelInUse):  # the forward pass goes on: it must not lose its weights
            await bench.engine.unload(ModelRef(model_id="fake/default"))
        hang.set()
        bench.faults.hang = None
        await bench.until_idle()
        assert (await bench.engine.embed(ONE)).vectors.shape == (1, 12)

    run(main())


def test_a_slow_load_answers_in_time_and_goes_on() -> None:
    bench = Bench(request_timeout_s=0.05)
    bench.gate = threading.Event()

    async def main() -> None:
        with pytest.raises(DeadlineExceeded):
            await bench.engine.embed(ONE)
        assert bench.gate is not None
        bench.gate.set()
        info = await bench.engine.load()
        assert info.model_id == "fake/default"
        await bench.until_idle()

    run(main())
    assert len(bench.made) == 1


def test_cancelled_requests_are_dropped_before_their_forward_pass() -> None:
    hang = threading.Event()
    bench = Bench(faults=Faults(hang=hang))

    async def main() -> None:
        await bench.engine.load()
        first = asyncio.create_task(bench.engine.embed(ONE))
        others = [asyncio.create_task(bench.engine.embed(ONE)) for _ in range(5)]
        while bench.in_use() < 6 or not bench.made[0].num_forwards:
            await asyncio.sleep(0.001)
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        assert all(other.cancelled() for other in others)
        hang.set()
        await first
        await bench.until_idle()

    run(main())
    assert bench.made[0].num_forwards == 1


def test_a_long_request_whose_client_left_stops_between_batches() -> None:
    bench = Bench(faults=Faults(delay_s=0.01), max_batch_tokens=1)

    async def main() -> None:
        await bench.engine.load()
        task = asyncio.create_task(bench.engine.embed(EmbeddingQuery(inputs=["a"] * 200)))
        while bench.made[0].num_forwards < 2:
            await asyncio.sleep(0.001)
        task.cancel()
        await bench.until_idle()

    run(main())
    assert bench.made[0].num_forwards < 100


def test_cancelled_while_loading_leaves_no_lease() -> None:
    bench = Bench()
    bench.gate = threading.Event()

    async def main() -> None:
        task = asyncio.create_task(bench.engine.embed(ONE))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert bench.gate is not None
        bench.gate.set()
        await bench.engine.load()
        await bench.until_idle()

    run(main())


def test_cancelling_at_any_moment_leaves_no_lease() -> None:
    bench = Bench()

    async def main() -> None:
        for number in range(60):
            task = asyncio.create_task(bench.engine.embed(ONE))
            await asyncio.sleep(0.0002 * (number % 15))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if number % 20 == 19:
                await bench.until_idle()
                await bench.engine.unload()
        await bench.until_idle()

    run(main())


def test_overload_is_refused_with_figures() -> None:
    hang = threading.Event()
    bench = Bench(faults=Faults(hang=hang), max_waiting=2)

    async def main() -> None:
        await bench.engine.load()
        tasks = [asyncio.create_task(bench.engine.embed(ONE))]
        while not bench.made[0].num_forwards:
            await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(bench.engine.embed(ONE)) for _ in range(3)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        with pytest.raises(Overloaded, match="2 requests wait for fake/default, the limit is 2"):
            done.pop().result()
        assert bench.engine.default_status().waiting == 2
        hang.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(answer, Overloaded) for answer in answers) == 1
        await bench.until_idle()

    run(main())


def test_limits_are_checked_before_a_model_is_loaded() -> None:
    bench = Bench(max_inputs=1, max_text_characters=10)
    with pytest.raises(TooManyInputs):
        run(bench.engine.embed(EmbeddingQuery(inputs=["a", "b"])))
    with pytest.raises(TextTooLarge):
        run(bench.engine.inspect(InspectionQuery(text="x" * 11)))
    assert bench.made == []


# ---------------------------------------------------------------------------------- survival


def test_a_model_that_hangs_is_replaced_and_the_next_request_succeeds() -> None:
    hang = threading.Event()
    bench = Bench(faults=Faults(hang=hang), stall_timeout_s=0.05, canary_interval_s=60.0)

    async def main() -> None:
        await bench.engine.load()
        held = [asyncio.create_task(bench.engine.embed(ONE)) for _ in range(3)]
        held.append(asyncio.create_task(bench.engine.inspect(InspectionQuery(text="hello"))))
        for answer in await asyncio.gather(*held, return_exceptions=True):
            assert isinstance(answer, WorkerReplaced)
            assert "did not come back within 0.05 s" in answer.detail
        bench.faults = Faults()
        # The one that came of itself may hang as well: it was loaded before the fault was mended.
        for _ in range(100):
            try:
                answer = await bench.engine.embed(ONE)
                break
            except WorkerReplaced:
                await asyncio.sleep(0.01)
        assert answer.vectors.shape == (1, 12)
        assert bench.engine.default_status().healthy
        await bench.until_idle()
        assert not bench.made[0].closed  # something still runs in it
        hang.set()
        while not bench.made[0].closed:
            await asyncio.sleep(0.001)
        await bench.engine.close()

    run(main())
    assert len(bench.made) >= 2


def test_who_is_tokenised_while_the_model_is_given_up_is_told_that_it_was() -> None:
    bench = Bench()

    async def main() -> None:
        await bench.engine.embed(ONE)
        begun, closed = threading.Event(), threading.Event()

        def tokenize_late(*args: Any, **options: Any) -> Any:
            begun.set()
            assert closed.wait(5)
            raise ModelNotLoaded(model_id="fake/default")

        backend = bench.made[0]
        backend.tokenize_for_embedding = tokenize_late  # type: ignore[method-assign]
        query = EmbeddingQuery(inputs=["hello world"] * 1_000)
        task = asyncio.create_task(bench.engine.embed(query))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        bench.engine._line(backend).condemn("hung")
        closed.set()
        with pytest.raises(WorkerReplaced):
            await task
        assert (await bench.engine.embed(ONE)).vectors.shape == (1, 12)
        await bench.engine.close()

    run(main())


def test_a_model_is_served_only_while_it_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    def no_thread(*args: Any, **options: Any) -> Watchdog:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(local_engine, "Watchdog", no_thread)
            with pytest.raises(RuntimeError, match="new thread"):
                await bench.engine.embed(ONE)
        await bench.until_idle()
        await bench.engine.embed(ONE)
        assert bench.engine._watchdog is not None
        await bench.engine.close()

    run(main())


def test_the_default_model_comes_back_without_being_asked_for() -> None:
    bench = Bench(canary_interval_s=0.02)

    async def main() -> None:
        await bench.engine.embed(ONE)
        bench.faults.nan, bench.faults = True, Faults()
        while len(bench.made) < 2 or bench.engine.default_status().state != "loaded":
            await asyncio.sleep(0.001)
        assert bench.made[0].closed
        assert (await bench.engine.embed(ONE)).vectors.shape == (1, 12)
        await bench.engine.close()

    run(main())


def test_status_tells_the_truth_about_a_model_that_is_stuck() -> None:
    hang = threading.Event()
    bench = Bench(faults=Faults(hang=hang), stall_timeout_s=0.05, canary_interval_s=60.0)

    async def main() -> None:
        await bench.engine.load()
        assert bench.engine.default_status().healthy
        bench.gate = threading.Event()  # the fresh one takes its time
        task = asyncio.create_task(bench.engine.embed(ONE))
        seen = set()
        while not task.done():
            status = bench.engine.default_status()
            seen.add((status.state, status.healthy))
            await asyncio.sleep(0.001)
        with pytest.raises(WorkerReplaced):
            await task
        assert bench.engine.default_status().state == "loading"
        assert ("loaded", True) in seen
        hang.set()
        bench.gate.set()
        await bench.engine.load()
        await bench.engine.close()

    run(main())


def test_draining_lets_requests_end_and_answers_the_rest() -> None:
    hang = threading.Event()
    bench = Bench(faults=Faults(hang=hang), request_timeout_s=60.0)

    async def main() -> None:
        await bench.engine.load()
        tasks = [asyncio.create_task(bench.engine.embed(ONE)) for _ in range(3)]
        tasks.append(asyncio.create_task(bench.engine.inspect(InspectionQuery(text="hello"))))
        while bench.in_use() < 4:
            await asyncio.sleep(0.001)
        started = time.monotonic()
        await bench.engine.drain(timeout_s=0.05)
        assert 0.05 <= time.monotonic() - started < 2
        for answer in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(answer, NotReady)
        with pytest.raises(NotReady):
            await bench.engine.embed(ONE)
        started = time.monotonic()
        await bench.engine.close()
        assert time.monotonic() - started < 2
        hang.set()

    run(main())


def test_draining_answers_those_who_wait_for_a_model() -> None:
    bench = Bench()
    bench.gate = threading.Event()

    async def main() -> None:
        loading = asyncio.create_task(bench.engine.load())
        waiting = asyncio.create_task(bench.engine.embed(ONE))
        await asyncio.sleep(0.01)
        await bench.engine.drain(timeout_s=0.0)
        answers = await asyncio.gather(loading, waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [NotReady, NotReady]
        assert bench.gate is not None
        bench.gate.set()
        await bench.engine.close()

    run(main())


# ------------------------------------------------------------------------------------ embeddings


def test_few_inputs_are_interactive_unless_the_request_says_otherwise() -> None:
    bench = Bench(interactive_inputs=2)

    async def lane(count: int, **query: Any) -> str:
        answer = await bench.engine.embed(EmbeddingQuery(inputs=["a"] * count, **query))
        return answer.lane

    async def main() -> None:
        assert [await lane(count) for count in (1, 2, 3)] == ["interactive", "interactive", "bulk"]
        assert await lane(1, priority="bulk") == "bulk"
        assert await lane(3, priority="interactive") == "interactive"

    run(main())
    assert Counter(lane for lane, _ in bench.events.waits) == Counter(interactive=3, bulk=2)


def test_what_is_refused_before_tokenising_is_reported_too() -> None:
    bench = Bench(max_text_characters=10)
    inputs = ["fine", "", "x" * 11]

    async def main() -> None:
        answer = await bench.engine.embed(EmbeddingQuery(inputs=inputs, on_error="report"))
        kinds = {index: type(error) for index, error in answer.errors.items()}
        assert kinds == {1: EmptyText, 2: TextTooLarge}
        assert answer.vectors.any(axis=1).tolist() == [True, False, False]

    run(main())


def test_long_requests_are_tokenised_beside_the_loop_and_answered_alike() -> None:
    bench = Bench()
    texts = [f"{number} " + "word " * 100 for number in range(40)]

    async def main() -> None:
        together = await bench.engine.embed(EmbeddingQuery(inputs=texts))
        alone = await bench.engine.embed(EmbeddingQuery(inputs=[texts[7]]))
        np.testing.assert_allclose(together.vectors[7], alone.vectors[0], atol=1e-6)
        assert all(together.truncated)

    run(main())
    assert bench.events.counts == Counter(truncated=41)


def test_a_client_that_leaves_is_counted() -> None:
    bench = Bench(faults=Faults(delay_s=0.02))

    async def main() -> None:
        await bench.engine.load()
        task = asyncio.create_task(bench.engine.embed(ONE))
        await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bench.until_idle()

    run(main())
    assert bench.events.counts == Counter(dropped=1)


# ---------------------------------------------------------------------------------- inspections


def test_inspections_of_several_models_share_the_memory() -> None:
    bench = Bench(faults=Faults(delay_s=0.02))

    async def most_at_once(limit: int) -> int:
        bench.engine._inspection_memory = MemoryGate(limit)
        models = [ModelRef(model_id=f"fake/{number}") for number in range(3)]
        for model in models:
            await bench.engine.load(model)
        tasks = [
            asyncio.create_task(bench.engine.inspect(InspectionQuery(text="hello", model=model)))
            for model in models
        ]
        most = 0
        while not all(task.done() for task in tasks):
            most = max(most, sum(backend._busy.locked() for backend in bench.made))
            await asyncio.sleep(0.001)
        assert all(task.result().tokens for task in tasks)
        await bench.until_idle()
        assert bench.engine._inspection_memory.held_bytes == 0
        return most

    async def main() -> None:
        assert await most_at_once(1) == 1
        assert await most_at_once(1_000_000_000) > 1
        await bench.engine.close()

    run(main())


def test_the_deadline_comes_while_waiting_for_memory_too() -> None:
    bench = Bench(request_timeout_s=0.1)

    async def main() -> None:
        await bench.engine.load()
        holder = bench.engine._inspection_memory.reservation()
        assert holder.try_take(bench.settings.max_inspection_bytes)
        with pytest.raises(DeadlineExceeded):
            await bench.engine.inspect(InspectionQuery(text="hello"))
        assert bench.events.counts == Counter(dropped=1)
        await bench.until_idle()
        holder.release()
        assert bench.engine._inspection_memory.held_bytes == 0
        assert (await bench.engine.inspect(InspectionQuery(text="hello"))).tokens

    run(main())


def test_the_wait_of_an_inspection_is_told_once_that_for_memory_with_it() -> None:
    bench = Bench()

    async def main() -> None:
        await bench.engine.inspect(InspectionQuery(text="hello"))
        holder = bench.engine._inspection_memory.reservation()
        assert holder.try_take(bench.settings.max_inspection_bytes)
        task = asyncio.create_task(bench.engine.inspect(InspectionQuery(text="hello")))
        while not bench.engine._inspection_memory.waiting:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        holder.release()
        assert (await task).tokens
        await bench.engine.close()

    run(main())
    (first, _), (second, waited_s) = bench.events.waits
    assert (first, second) == ("inspection", "inspection")
    assert waited_s >= 0.05


def test_leaving_at_any_moment_leaves_no_memory_taken() -> None:
    bench = Bench()

    async def main() -> None:
        await bench.engine.load()
        gate = bench.engine._inspection_memory
        for number in range(40):
            holder = gate.reservation()
            assert holder.try_take(bench.settings.max_inspection_bytes)
            query = InspectionQuery(text="hello")
            task = asyncio.create_task(bench.engine.inspect(query))
            await asyncio.sleep(0.0003 * (number % 10))
            holder.release()
            await asyncio.sleep(0.0003 * (number % 7))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await bench.until_idle()
        assert (gate.held_bytes, gate.waiting) == (0, 0)

    run(main())


# ------------------------------------------------------------------------------------- models


def test_the_states_of_the_default_model() -> None:
    bench = Bench()
    bench.gate, bench.load_error = threading.Event(), RuntimeError("bad weights")

    async def main() -> None:
        assert bench.engine.default_status().state == "available"
        assert bench.engine.default_status().model_id == "fake/default"
        task = asyncio.create_task(bench.engine.load())
        await asyncio.sleep(0.01)
        status = bench.engine.default_status()
        assert (status.state, status.waiting) == ("loading", 1)
        assert bench.gate is not None
        bench.gate.set()
        with pytest.raises(ModelLoadFailed):
            await task
        status = bench.engine.default_status()
        assert status.state == "failed"
        assert status.error is not None
        assert status.error["code"] == "model_load_failed"
        bench.load_error = None
        await bench.engine.load()
        status = bench.engine.default_status()
        assert (status.state, status.memory_bytes, status.error) == ("loaded", 100, None)
        assert status.info is not None

    run(main())


def test_the_list_names_every_model_once() -> None:
    bench = Bench()

    async def main() -> None:
        await bench.engine.load(OTHER)
        names = [(status.model_id, status.state) for status in bench.engine.list_models()]
        assert names == [("fake/default", "available"), ("fake/other", "loaded")]
        await bench.engine.load()
        await bench.engine.load(ModelRef(model_id="fake/default", revision="c0ffee"))
        assert [status.is_default for status in bench.engine.list_models()] == [True, False]

    run(main())


def test_the_default_model_by_its_name_is_the_default_model() -> None:
    bench = Bench(allow_other_models=False)

    async def main() -> None:
        for ref in (None, ModelRef(model_id="fake/default")):
            await bench.engine.embed(EmbeddingQuery(inputs=["a"], model=ref))
        by_commit = ModelRef(model_id="fake/default", revision="c0ffee")
        await bench.engine.embed(EmbeddingQuery(inputs=["a"], model=by_commit))
        with pytest.raises(Forbidden, match="fake/default only"):
            await bench.engine.load(OTHER)
        with pytest.raises(Forbidden):
            await bench.engine.estimate(OTHER)

    run(main())
    assert len(bench.made) == 1


def test_unload() -> None:
    bench = Bench()

    async def main() -> None:
        with pytest.raises(ModelNotLoaded):
            await bench.engine.unload(OTHER)
        await bench.engine.load(OTHER)
        await bench.engine.embed(ONE)
        await bench.engine.unload(OTHER)
        assert await bench.engine.unload() == 100
        assert bench.engine.default_status().state == "available"
        assert (await bench.engine.embed(ONE)).vectors.shape == (1, 12)  # and loads it again

    run(main())
    assert [backend.closed for backend in bench.made] == [True, True, False]


def test_unload_right_after_the_answer_succeeds() -> None:
    bench = Bench()

    async def main() -> None:
        for _ in range(30):
            await bench.engine.embed(ONE)
            assert await bench.engine.unload(ModelRef(model_id="fake/default")) == 100

    run(main())


def test_workers_of_unloaded_models_end() -> None:
    bench = Bench()

    async def main() -> None:
        before = set(threading.enumerate())
        await bench.engine.embed(ONE)
        workers = [
            thread
            for thread in set(threading.enumerate()) - before
            if thread.name == "for fake/default"
        ]
        assert [worker.is_alive() for worker in workers] == [True]
        await bench.engine.unload()
        assert not workers[0].is_alive()

    run(main())


def test_out_of_memory_has_the_figures() -> None:
    bench = Bench(budget=150, faults=Faults(hang=threading.Event()))

    async def main() -> None:
        await bench.engine.load()
        task = asyncio.create_task(bench.engine.embed(ONE))
        while not bench.in_use():
            await asyncio.sleep(0.001)
        with pytest.raises(OutOfMemory, match="needs 100 bytes, 50 bytes can be freed of 150"):
            await bench.engine.load(OTHER)
        assert bench.faults.hang is not None
        bench.faults.hang.set()
        await task

    run(main())


def test_estimate() -> None:
    bench = Bench(max_model_bytes=500)
    bench.locator.sizes = {"fake/big": 600, "fake/other": 400}
    other = run(bench.engine.estimate(OTHER))
    assert (other.memory_bytes, other.fits, other.limit_bytes) == (400, True, 500)
    assert not run(bench.engine.estimate(ModelRef(model_id="fake/big"))).fits


def test_close_drains_and_then_refuses() -> None:
    bench = Bench(faults=Faults(delay_s=0.05))

    async def main() -> None:
        await bench.engine.load()
        task = asyncio.create_task(bench.engine.embed(ONE))
        while not bench.in_use():
            await asyncio.sleep(0.001)
        await bench.engine.close()
        assert (await task).vectors.shape == (1, 12)
        with pytest.raises(NotReady, match="shutting down"):
            await bench.engine.embed(ONE)

    run(main())
    assert bench.made[0].closed


def test_models_that_make_room_are_told_of_and_those_that_were_unloaded_are_not() -> None:
    bench = Bench(budget=100)

    async def main() -> None:
        await bench.engine.load()
        await bench.engine.unload()
        await bench.engine.load()
        assert bench.events.counts["evicted"] == 0
        await bench.engine.load(OTHER)
        assert bench.events.counts["evicted"] == 1

    run(main())


def test_what_waits_is_told_by_lane() -> None:
    bench = Bench(faults=Faults(delay_s=0.2))

    async def main() -> None:
        bulk = replace(ONE, priority="bulk", inputs=["hello world", "hello"])
        first = asyncio.create_task(bench.engine.embed(ONE))
        while not bench.in_use():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(bench.engine.embed(query)) for query in (ONE, bulk, bulk)]
        await asyncio.sleep(0.05)
        waiting = bench.engine.default_status().waiting_by_lane
        assert {lane: found.requests for lane, found in waiting.items()} == {
            "interactive": 1,
            "bulk": 2,
            "inspection": 0,
        }
        assert waiting["bulk"].tokens > waiting["interactive"].tokens > 0
        await asyncio.gather(first, *others)
        idle = bench.engine.default_status().waiting_by_lane
        assert all((lane.requests, lane.tokens) == (0, 0) for lane in idle.values())

    run(main())
