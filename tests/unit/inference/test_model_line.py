"""The thread of one model and those who wait for it: order, fairness, refusals, survival."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from conftest import plain_settings
from pellucid.errors import (
    EmbeddingUnavailable,
    InternalError,
    NotReady,
    Overloaded,
    TakesTooLong,
    WorkerReplaced,
)
from pellucid.inference.embedding_job import EmbeddingJob, Encoded
from pellucid.inference.engine import Priority
from pellucid.inference.events import BatchRun
from pellucid.inference.model_line import ModelLine
from pellucid.inference.worker import StillWanted
from pellucid.models.backend import Backend, Batch
from pellucid.models.fake.backend import FakeBackend, FakeModel, Faults
from recorded_events import RecordedEvents

MODEL = FakeModel(vocab_size=10_000)


class Bench:
    """A line on a fake backend, and what it tells."""

    def __init__(self, *, faults: Faults | None = None, **settings: Any) -> None:
        self.backend = FakeBackend(MODEL, faults=faults or Faults())
        self.faults = self.backend.faults
        self.events = RecordedEvents()
        self.condemned: list[Backend] = []
        self.buried = threading.Event()
        self.released = 0
        self.line = ModelLine(
            self.backend,
            plain_settings(**settings),
            events=self.events,
            on_condemned=self._condemn,
        )

    def _condemn(self, backend: Backend) -> Callable[[], None]:
        self.condemned.append(backend)
        return self.buried.set

    def _release(self) -> None:
        self.released += 1

    def submit(
        self,
        *texts: str,
        lane: Priority = "bulk",
        stops_at_error: bool = True,
        timeout_s: float = 60.0,
    ) -> EmbeddingJob:
        job = self.line.open(lane, on_done=self._release, stops_at_error=stops_at_error)
        try:
            inputs = self.backend.tokenize_for_embedding(texts)
            self.line.submit(job, inputs, timeout_s=timeout_s)
        except BaseException:
            self.line.abandon(job)
            raise
        return job

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """The thread is busy with an inspection; what comes meanwhile waits."""
        gate, begun = threading.Event(), threading.Event()

        def hold(still_wanted: StillWanted) -> None:
            begun.set()
            assert gate.wait(10)

        self.line.run(hold, on_done=lambda: None)
        assert begun.wait(5)
        try:
            yield
        finally:
            gate.set()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    assert bench.line.stop()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def words(count: int) -> str:
    return " ".join(["word"] * count)


def same_as_alone(text: str, encoded: Encoded) -> bool:
    backend = FakeBackend(MODEL)
    alone = backend.encode(Batch.of(backend.tokenize_for_embedding([text])))
    return np.allclose(encoded.vectors, alone, atol=1e-6)


# ---------------------------------------------------------------------------------------- order


def test_requests_share_a_batch_and_each_gets_its_own(bench: Bench) -> None:
    texts = [f"text number {number}" for number in range(30)]

    async def main() -> None:
        with bench.held_up():
            jobs = [bench.submit(text) for text in texts]
        for text, job in zip(texts, jobs, strict=True):
            assert same_as_alone(text, await job.future)

    run(main())
    assert bench.line.stop()
    assert list(bench.backend.batches) == [(30, 6)]
    assert bench.released == 30
    (batch,) = bench.events.batches
    assert (batch.lane, batch.inputs, batch.padded_tokens) == ("bulk", 30, 180)
    assert Counter(lane for lane, _ in bench.events.waits) == Counter(bulk=30)
    assert all(queue_s >= 0 for _, queue_s in bench.events.waits)


def test_interactive_requests_overtake_at_the_next_batch() -> None:
    bench = Bench(max_batch_tokens=8)  # one short text each
    done: list[str] = []

    async def main() -> None:
        with bench.held_up():
            bulk = bench.submit(*["bulk"] * 20)
            bulk.future.add_done_callback(lambda _: done.append("bulk"))
            quick = bench.submit("quick", lane="interactive")
            quick.future.add_done_callback(lambda _: done.append("quick"))
        await asyncio.gather(bulk.future, quick.future)

    run(main())
    assert bench.line.stop()
    assert done == ["quick", "bulk"]
    assert [batch.lane for batch in bench.events.batches] == ["interactive", *["bulk"] * 20]


def test_bulk_and_inspections_get_their_turns_whatever_overtakes_them() -> None:
    bench = Bench(max_batch_tokens=8)
    names = {(1, 3): "interactive", (1, 4): "bulk", (0, 0): "inspection"}

    def inspect(still_wanted: StillWanted) -> None:
        bench.backend.batches.append((0, 0))

    async def main() -> None:
        with bench.held_up():
            jobs = [bench.submit("quick", lane="interactive") for _ in range(24)]
            jobs.append(bench.submit(*["bulk text"] * 3))
            for _ in range(3):
                bench.line.run(inspect, on_done=lambda: None)
        await asyncio.gather(*(job.future for job in jobs))

    run(main())
    assert bench.line.stop()
    order = [names[shape] for shape in bench.backend.batches]
    expected = []
    for other in ["bulk", "inspection"] * 3:
        expected += ["interactive"] * 4 + [other]
    assert order == expected


def test_turns_are_counted_only_while_somebody_waits_behind() -> None:
    bench = Bench(max_batch_tokens=8)

    async def main() -> None:
        for _ in range(6):
            await bench.submit("quick", lane="interactive").future
        bench.faults.hang = hang = threading.Event()
        jobs = [bench.submit("quick", lane="interactive")]
        await until(lambda: bench.backend.num_forwards == 7)
        jobs += [bench.submit("quick", lane="interactive") for _ in range(4)]
        jobs.append(bench.submit("bulk"))
        bench.faults.hang = None
        hang.set()
        await asyncio.gather(*(job.future for job in jobs))

    run(main())
    assert bench.line.stop()
    lanes = [batch.lane for batch in bench.events.batches]
    assert lanes == ["interactive"] * 11 + ["bulk"]


def test_bulk_batches_are_short_while_interactive_requests_are_about() -> None:
    bench = Bench(faults=Faults(delay_s_per_token=1 / 25_000), max_batch_tokens=4_096)

    async def main() -> None:
        await bench.submit("quick", lane="interactive").future
        await bench.submit(*[words(20)] * 200).future

    run(main())
    assert bench.line.stop()
    bulk = [batch for batch in bench.events.batches if batch.lane == "bulk"]
    assert len(bulk) > 5
    assert max(batch.padded_tokens for batch in bulk[3:]) < 600  # 10 ms' worth is 250


# ------------------------------------------------------------------------------------ refusals


def test_requests_beyond_the_limit_are_refused_until_one_has_gone() -> None:
    bench = Bench(max_waiting=2)

    async def main() -> None:
        with bench.held_up():
            first = bench.submit("a")
            opened = bench.line.open("bulk", on_done=lambda: None, stops_at_error=True)
            bench.line.run(lambda still_wanted: None, on_done=lambda: None)
            assert bench.line.waiting == 3
            with pytest.raises(Overloaded, match="2 requests wait for fake/tiny, the limit is 2"):
                bench.submit("b")
            assert bench.line.abandon(opened)  # still being tokenised: its place is free at once
            second = bench.submit("c")
            assert bench.line.abandon(first)
            assert not bench.line.abandon(first)
            third = bench.submit("d")
        await asyncio.gather(second.future, third.future)
        assert not first.future.done()

    run(main())
    assert bench.line.stop()
    assert bench.events.counts == Counter(refused=1)
    assert bench.released == 3  # those that were let in, whatever became of them


def test_a_full_lane_keeps_nobody_out_of_the_others() -> None:
    bench = Bench(max_waiting=2, max_waiting_tokens=20)

    async def main() -> None:
        with bench.held_up():
            bulk = [bench.submit(words(6)), bench.submit(words(6))]
            with pytest.raises(Overloaded):
                bench.submit("late")
            overtakes = [bench.submit(words(6), lane="interactive") for _ in range(2)]
            with pytest.raises(Overloaded):
                bench.submit("late", lane="interactive")
            ticket = bench.line.run(lambda still_wanted: "seen", on_done=lambda: None)
        await asyncio.gather(*(job.future for job in (*bulk, *overtakes)))
        assert await asyncio.wrap_future(ticket.future) == "seen"

    run(main())
    assert bench.line.stop()


def test_tokens_beyond_the_limit_are_refused() -> None:
    bench = Bench(max_waiting_tokens=20)

    async def main() -> None:
        with bench.held_up():
            big = bench.submit(words(18), words(18))  # nobody waits: it would never be let in
            with pytest.raises(Overloaded, match="40 tokens wait for fake/tiny, the limit is 20"):
                bench.submit("more")
        await big.future
        await bench.submit("more").future

    run(main())
    assert bench.line.stop()


def test_what_cannot_be_done_in_time_is_refused_once_the_speed_is_known() -> None:
    slow = Faults(delay_s_per_token=0.0005)  # 2,000 tokens a second at most
    bench = Bench(faults=slow, max_batch_tokens=40, request_timeout_s=0.1)

    async def main() -> None:
        unknown = bench.submit(*[words(30)] * 50)
        assert bench.line.abandon(unknown)
        for _ in range(3):
            await bench.submit(words(30)).future
        await until(lambda: len(bench.events.batches) >= 3)
        with pytest.raises(TakesTooLong) as caught:
            bench.submit(*[words(30)] * 50)
        facts = caught.value.facts
        assert (facts["tokens"], facts["timeout_s"]) == (1_600, 0.1)
        assert facts["estimated_s"] >= 0.8
        assert 20 < facts["max_tokens"] <= 200
        with bench.held_up():
            ahead = bench.submit(*[words(30)] * 3)
            with pytest.raises(Overloaded, match="96 tokens wait for fake/tiny"):
                bench.submit(words(30), timeout_s=0.05)  # alone it could be done
            quick = bench.submit(words(30), lane="interactive", timeout_s=0.05)  # it overtakes
            patient = bench.submit(words(4), timeout_s=math.inf)
        await asyncio.gather(ahead.future, quick.future, patient.future)

    run(main())
    assert bench.line.stop()
    assert bench.events.counts == Counter(refused=2)


# ---------------------------------------------------------------------------------- going away


def test_a_request_that_was_given_up_is_dropped_before_its_next_batch() -> None:
    bench = Bench(faults=Faults(hang=threading.Event()), max_batch_tokens=8)

    async def main() -> None:
        gone = bench.submit(*["gone"] * 50)
        stays = bench.submit("stays")
        while not bench.backend.num_forwards:
            await asyncio.sleep(0.001)
        assert bench.line.abandon(gone)
        assert bench.released == 0  # its batch runs: the model must stay
        hang, bench.faults.hang = bench.faults.hang, None
        assert hang is not None
        hang.set()
        await stays.future
        assert bench.released == 2

    run(main())
    assert bench.line.stop()
    assert bench.backend.num_forwards == 2


def test_a_request_that_failed_runs_no_further() -> None:
    bench = Bench(max_batch_tokens=8)
    bench.faults.error = RuntimeError("no")
    bench.faults.only_with = bench.backend.token_id_of("evil")

    async def main() -> None:
        with bench.held_up():
            job = bench.submit("evil text", *["good"] * 50)
            other = bench.submit("good")
        assert set((await job.future).errors) == {0}
        assert not (await other.future).errors

    run(main())
    assert bench.line.stop()
    assert bench.backend.num_forwards < 10


def test_a_request_that_reports_errors_gets_all_the_rest() -> None:
    bench = Bench()
    bench.faults.error = RuntimeError("no")
    bench.faults.only_with = bench.backend.token_id_of("evil")

    async def main() -> None:
        job = bench.submit("good", "evil", "fine", stops_at_error=False)
        encoded = await job.future
        assert {index: type(error) for index, error in encoded.errors.items()} == {1: InternalError}
        assert encoded.vectors.any(axis=1).tolist() == [True, False, True]

    run(main())
    assert bench.line.stop()


def test_an_answer_for_a_loop_that_has_ended_hurts_nobody(bench: Bench) -> None:
    async def leave() -> None:
        with bench.held_up():
            bench.submit("nobody reads this")
            # The loop ends with the request in the line.

    async def main() -> None:
        assert same_as_alone("next", await bench.submit("next").future)

    asyncio.run(leave())
    run(main())
    assert bench.released == 2


def test_an_idle_line_keeps_no_answer_alive(bench: Bench) -> None:
    async def main() -> weakref.ref[Any]:
        encoded = await bench.submit("text").future
        return weakref.ref(encoded.vectors)

    trace = asyncio.run(main())
    for _ in range(100):
        gc.collect()
        if trace() is None:
            break
        time.sleep(0.01)
    assert trace() is None


def test_stopping_lets_the_line_run_empty() -> None:
    bench = Bench(max_batch_tokens=8)

    async def main() -> None:
        with bench.held_up():
            job = bench.submit(*["text"] * 5)
            ticket = bench.line.run(lambda still_wanted: "seen", on_done=lambda: None)
            assert not bench.line.stop(timeout_s=0.0)
            with pytest.raises(NotReady):
                bench.submit("late")
        assert len((await job.future).vectors) == 5
        assert ticket.future.result(5) == "seen"

    run(main())
    assert bench.line.stop()


# ------------------------------------------------------------------------------------- memory


def test_memory_that_ran_short_makes_the_next_batches_smaller() -> None:
    bench = Bench(faults=Faults(max_tokens=100))

    async def main() -> None:
        encoded = await bench.submit(*["one two three"] * 60).future
        assert not encoded.errors
        splits = bench.events.counts["split_for_memory"]
        assert splits > 0
        await bench.submit(*["one two three"] * 60).future
        # It tries a little more each time, and is told again at the limit.
        assert bench.events.counts["split_for_memory"] <= splits + 2

    run(main())
    assert bench.line.stop()
    assert bench.condemned == []


# ------------------------------------------------------------------------------------ survival


def is_replaced(error: BaseException | None, what: str) -> bool:
    return isinstance(error, WorkerReplaced) and what in error.detail


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_giving_up_answers_everyone_at_once() -> None:
    bench = Bench(faults=Faults(hang=threading.Event()), stall_timeout_s=0.05)
    held: list[int] = []
    unheard: list[object] = []  # errors that nobody asked for

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, found: unheard.append(found))
        running, waiting = bench.submit("a"), bench.submit("b")
        await until(lambda: bench.backend.num_forwards)
        opened = bench.line.open("bulk", on_done=lambda: None, stops_at_error=True)
        ticket = bench.line.run(lambda still_wanted: None, on_done=lambda: held.append(1))
        assert bench.line.is_healthy
        await until(lambda: bench.line.trouble())
        assert not bench.line.is_healthy
        bench.line.condemn(bench.line.trouble() or "")
        for job in (running, waiting):
            with pytest.raises(WorkerReplaced, match=r"did not come back within 0\.05 s"):
                await job.future
        with pytest.raises(WorkerReplaced):
            bench.line.submit(opened, bench.backend.tokenize_for_embedding(["c"]))
        with pytest.raises(WorkerReplaced):
            bench.submit("d")
        assert is_replaced(ticket.future.exception(0), "did not come back")
        bench.line.condemn("again")
        await asyncio.sleep(0)
        del opened
        gc.collect()
        assert unheard == []

    run(main())
    assert (bench.condemned, bench.released, held) == ([bench.backend], 2, [1])
    assert bench.events.counts["restarted"] == 1
    assert bench.line.stop(timeout_s=0.0)  # nobody waits for what hangs
    assert not bench.buried.is_set()  # it may not be closed while it runs
    assert bench.faults.hang is not None
    bench.faults.hang.set()
    assert bench.buried.wait(5)
    assert bench.backend.num_forwards == 1


def test_a_thread_that_comes_back_while_it_is_given_up_is_buried_too() -> None:
    buried, hang = threading.Event(), threading.Event()

    def condemn(backend: Backend) -> Callable[[], None]:
        hang.set()
        time.sleep(0.02)  # it comes back meanwhile
        return buried.set

    backend = FakeBackend(faults=Faults(hang=hang))
    line = ModelLine(backend, plain_settings(), on_condemned=condemn)

    async def main() -> None:
        job = line.open("bulk", on_done=lambda: None, stops_at_error=True)
        line.submit(job, backend.tokenize_for_embedding(["a"]))
        await until(lambda: backend.num_forwards)
        line.condemn("hung")
        with pytest.raises(WorkerReplaced):
            await job.future

    run(main())
    assert buried.wait(5)


def test_a_thread_that_dies_after_it_was_given_up_is_buried_once() -> None:
    bench = Bench(faults=Faults(hang=threading.Event()))
    bench.line._events = BrokenListener()
    num_buried: list[Backend] = []
    bench.line._on_condemned = lambda backend: lambda: num_buried.append(backend)

    async def main() -> None:
        job = bench.submit("a")
        await until(lambda: bench.backend.num_forwards)
        bench.line.condemn("hung")
        with pytest.raises(WorkerReplaced):
            await job.future
        assert not num_buried  # it still runs
        assert bench.faults.hang is not None
        bench.faults.hang.set()
        await until(lambda: num_buried)

    run(main())
    bench.line._thread.join(5)
    assert len(num_buried) == 1


def test_a_text_longer_than_a_batch_may_take_longer() -> None:
    hang = threading.Event()
    bench = Bench(faults=Faults(hang=hang), stall_timeout_s=0.02, max_batch_tokens=2)

    async def main() -> None:
        job = bench.submit(words(62))
        await until(lambda: bench.backend.num_forwards)
        await asyncio.sleep(0.1)
        assert bench.line.trouble() is None
        await until(lambda: bench.line.trouble())
        assert "within 0.32 s" in (bench.line.trouble() or "")  # all 32 that it reads
        hang.set()
        await job.future

    run(main())
    assert bench.line.stop()


def test_a_late_inspection_is_no_stall_before_its_deadline() -> None:
    bench = Bench(stall_timeout_s=0.05)
    gate = threading.Event()

    def hold(still_wanted: StillWanted) -> None:
        assert gate.wait(10)

    ticket = bench.line.run(hold, on_done=lambda: None, deadline=time.monotonic() + 0.2)
    time.sleep(0.1)
    assert bench.line.trouble() is None
    time.sleep(0.2)
    assert bench.line.trouble() is not None
    bench.line.condemn(bench.line.trouble() or "")
    assert is_replaced(ticket.future.exception(0), "did not come back")
    gate.set()
    assert bench.buried.wait(5)


def test_time_in_which_the_process_stood_still_does_not_count() -> None:
    bench = Bench(faults=Faults(hang=threading.Event()), stall_timeout_s=0.05)

    async def main() -> None:
        job = bench.submit("a")
        await until(lambda: bench.line.trouble())
        bench.line.allow(10.0)
        assert bench.line.trouble() is None
        assert bench.faults.hang is not None
        bench.faults.hang.set()
        await job.future

    run(main())
    assert bench.line.stop()


class BrokenListener(RecordedEvents):
    def batch_ran(self, run: BatchRun) -> None:
        raise SystemExit


def test_a_thread_that_died_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.line._events = BrokenListener()

    async def main() -> None:
        await bench.submit("a").future
        await until(lambda: bench.line.trouble())
        late = bench.submit("b")
        with caplog.at_level(logging.ERROR):
            bench.line.condemn(bench.line.trouble() or "")
        with pytest.raises(WorkerReplaced, match="died"):
            await late.future

    run(main())
    assert bench.buried.is_set()  # nothing runs in it any more
    assert "died" in caplog.text


def test_a_model_that_fails_on_everything_is_given_up_by_its_own_thread() -> None:
    bench = Bench()

    async def main() -> None:
        for turn in range(3):
            inputs = bench.backend.tokenize_for_embedding([f"text {turn}"])
            bench.faults.error = RuntimeError("no")
            job = bench.line.open("bulk", on_done=lambda: None, stops_at_error=True)
            bench.line.submit(job, inputs)
            assert isinstance((await job.future).errors[0], InternalError)
            bench.faults.error = None if turn < 2 else bench.faults.error
        await until(lambda: bench.condemned)

    run(main())
    assert bench.buried.wait(5)
    assert not bench.line.is_healthy


@pytest.mark.parametrize(
    "faults", [Faults(error=RuntimeError("no")), Faults(nan=True)], ids=["raises", "nan"]
)
def test_bad_texts_do_not_have_a_good_model_given_up(faults: Faults) -> None:
    bench = Bench(faults=faults)
    bench.faults.only_with = bench.backend.token_id_of("evil")

    async def main() -> None:
        for _ in range(10):
            encoded = await bench.submit("evil").future
            assert encoded.errors
        assert same_as_alone("good", await bench.submit("good").future)

    run(main())
    assert bench.line.stop()
    assert bench.condemned == []


def test_a_batch_with_one_sound_input_raises_no_doubt_about_the_model() -> None:
    bench = Bench(faults=Faults(nan=True))
    bench.faults.only_with = bench.backend.token_id_of("evil")

    async def main() -> None:
        for _ in range(5):
            await bench.submit("evil", "good", stops_at_error=False).future

    run(main())
    assert bench.line.stop()
    assert set(bench.backend.batches) == {(2, 3), (1, 3)}  # and no trial, which is longer


def test_an_idle_model_is_tried_out_and_nobody_is_told() -> None:
    bench = Bench(canary_interval_s=0.01)
    bench.line.try_out()
    assert bench.backend.num_forwards == 0  # it has not been idle for long
    time.sleep(0.02)
    bench.line.try_out()
    assert bench.line.stop()
    assert bench.backend.num_forwards == 1
    assert bench.events == RecordedEvents()
    bench.line.try_out()  # stopped: it does nothing


def test_trials_find_a_model_that_fails_on_everything() -> None:
    bench = Bench(canary_interval_s=0.001)
    bench.line.try_out()
    bench.faults.nan = True

    async def main() -> None:
        while not bench.condemned:
            bench.line.try_out()
            await asyncio.sleep(0.001)

    run(main())
    assert bench.buried.wait(5)


def test_a_model_without_embeddings_is_not_tried_out() -> None:
    unavailable = EmbeddingUnavailable(model_id="fake/tiny", reason="it is a decoder")
    bench = Bench(faults=Faults(error=unavailable), canary_interval_s=0.001)
    time.sleep(0.01)
    bench.line.try_out()
    assert bench.line.stop()
    assert bench.line.trouble() is None
    assert bench.backend.num_forwards == 0


def test_a_tokenizer_that_fails_is_not_tried_at_every_look(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(faults=Faults(error=RuntimeError("broken")), canary_interval_s=0.05)
    time.sleep(0.1)
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            bench.line.try_out()
    assert bench.line.stop()
    assert caplog.text.count("the tokenizer of") == 1
