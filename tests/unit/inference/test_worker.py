"""The thread that owns a model: it answers everyone and outlives every failure."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from pellucid.errors import EmptyText, InternalError, NotReady, Overloaded
from pellucid.inference.worker import Abandoned, StillWanted, Ticket, Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("fake/tiny", max_waiting=2)
    yield worker
    assert worker.stop()


def nothing() -> None:
    pass


def quick(still_wanted: StillWanted) -> str:
    return "quick"


def blocking(gate: threading.Event) -> Callable[[StillWanted], str]:
    def work(still_wanted: StillWanted) -> str:
        assert gate.wait(10)
        still_wanted()
        return "done"

    return work


def test_work_is_done_in_order_and_given_back(worker: Worker) -> None:
    done: list[str] = []
    gate = threading.Event()
    first = worker.submit(blocking(gate), on_done=lambda: done.append("first"))
    second = worker.submit(quick, on_done=lambda: done.append("second"))
    gate.set()
    assert (first.future.result(5), second.future.result(5)) == ("done", "quick")
    assert done == ["first", "second"]
    assert second.queue_ms > 0


@pytest.mark.parametrize("error", [EmptyText(field="text"), RuntimeError("no"), SystemExit(1)])
def test_a_failure_is_answered_and_the_next_request_succeeds(
    worker: Worker, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []

    def fail(still_wanted: StillWanted) -> None:
        raise error

    expected = EmptyText if isinstance(error, EmptyText) else InternalError
    with caplog.at_level(logging.ERROR):
        failed = worker.submit(fail, on_done=lambda: done.append("done"))
        with pytest.raises(expected):
            failed.future.result(5)
    assert done == ["done"]
    assert bool(caplog.records) == (expected is InternalError)  # the original is in the log
    if expected is InternalError:
        assert caplog.records[0].exc_info is not None
        assert caplog.records[0].exc_info[1] is error
    assert worker.submit(quick, on_done=nothing).future.result(5) == "quick"


def test_waiting_is_bounded(worker: Worker) -> None:
    gate, begun = threading.Event(), threading.Event()

    def begin(still_wanted: StillWanted) -> str:
        begun.set()
        return blocking(gate)(still_wanted)

    tickets = [worker.submit(begin, on_done=nothing)]
    assert begun.wait(5)
    tickets += [worker.submit(blocking(gate), on_done=nothing) for _ in range(2)]
    assert worker.waiting == 2
    with pytest.raises(Overloaded) as caught:
        worker.submit(quick, on_done=lambda: pytest.fail("a refused request holds nothing"))
    facts = caught.value.facts
    assert (facts["waiting"], facts["max_waiting"]) == (2, 2)
    assert 1 <= facts["retry_after_s"] <= 60
    tickets[1].abandon()  # who has left takes no place
    tickets.append(worker.submit(blocking(gate), on_done=nothing))
    gate.set()
    assert [ticket.future.result(5) for ticket in (tickets[0], *tickets[2:])] == ["done"] * 3


def test_an_abandoned_request_is_never_begun(worker: Worker) -> None:
    gate, done = threading.Event(), threading.Event()
    first = worker.submit(blocking(gate), on_done=nothing)

    def never(still_wanted: StillWanted) -> None:
        raise AssertionError("begun although nobody waits")

    second = worker.submit(never, on_done=done.set)
    second.abandon()
    assert done.is_set()  # what it holds is given back at once, not when its turn comes
    gate.set()
    first.future.result(5)


def test_a_request_given_up_in_the_moment_it_begins_hurts_nobody() -> None:
    done: list[bool] = []
    ticket = Ticket(lambda still_wanted: "done", lambda: done.append(True))
    giving_up = threading.Thread(target=ticket.give_up, args=(InternalError(),))
    begin = ticket.future.set_running_or_notify_cancel

    def begin_late() -> bool:
        giving_up.start()
        giving_up.join(0.02)
        return begin()

    ticket.future.set_running_or_notify_cancel = begin_late  # type: ignore[method-assign]
    ticket.run("a model")
    giving_up.join(5)
    assert isinstance(ticket.future.exception(0), InternalError) or ticket.future.result(0)
    assert done == [True]


def test_a_request_abandoned_at_work_ends_where_it_looks(worker: Worker) -> None:
    gate, begun, done = threading.Event(), threading.Event(), threading.Event()

    def look(still_wanted: StillWanted) -> None:
        begun.set()
        assert gate.wait(10)
        still_wanted()
        raise AssertionError("went on although nobody waits")

    ticket = worker.submit(look, on_done=done.set)
    assert begun.wait(5)
    ticket.abandon()
    gate.set()
    assert done.wait(5)
    with pytest.raises(Abandoned):
        ticket.future.result(5)


def test_stopping_lets_the_line_run_empty() -> None:
    worker = Worker("fake/tiny", max_waiting=5)
    gate = threading.Event()
    tickets = [worker.submit(blocking(gate), on_done=nothing) for _ in range(3)]
    threading.Timer(0.02, gate.set).start()
    assert worker.stop()
    assert [ticket.future.result(0) for ticket in tickets] == ["done"] * 3
    with pytest.raises(NotReady):
        worker.submit(quick, on_done=nothing)


def test_a_worker_that_hangs_is_reported_not_waited_for() -> None:
    worker = Worker("fake/tiny", max_waiting=5)
    gate = threading.Event()
    worker.submit(blocking(gate), on_done=nothing)
    assert not worker.stop(timeout_s=0.01)
    gate.set()


def test_an_idle_worker_keeps_no_answer_alive(worker: Worker) -> None:
    class Answer:
        values = np.zeros(10)

    ticket = worker.submit(lambda still_wanted: Answer(), on_done=nothing)
    trace = weakref.ref(ticket.future.result(5))
    del ticket
    for _ in range(100):
        gc.collect()
        if trace() is None:
            break
        time.sleep(0.01)
    assert trace() is None
