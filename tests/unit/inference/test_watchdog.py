"""The thread that looks after every model."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pellucid.inference import watchdog
from pellucid.inference.watchdog import Watchdog


class Line:
    """Implements ``Watched``."""

    def __init__(self, *, error: Exception | None = None) -> None:
        self.trouble_told: str | None = None
        self.error = error
        self.condemned: list[str] = []
        self.trials = 0
        self.allowed_s = 0.0

    def trouble(self) -> str | None:
        if self.error is not None:
            raise self.error
        told, self.trouble_told = self.trouble_told, None
        return told

    def condemn(self, what: str) -> None:
        self.condemned.append(what)

    def try_out(self) -> None:
        self.trials += 1

    def allow(self, seconds: float) -> None:
        self.allowed_s += seconds


@contextmanager
def watching(*lines: Line) -> Iterator[None]:
    before = set(threading.enumerate())
    dog = Watchdog(lambda: lines, stall_timeout_s=0.05, canary_interval_s=60)
    (thread,) = set(threading.enumerate()) - before
    try:
        yield
    finally:
        dog.stop()
        thread.join(5)
        assert not thread.is_alive()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_line_in_trouble_is_given_up_and_the_others_are_tried_out() -> None:
    sick, sound = Line(), Line()
    sick.trouble_told = "died"
    with watching(sick, sound):
        until(lambda: sick.condemned and sound.trials > 1)
    assert (sick.condemned, sound.condemned) == (["died"], [])


def test_one_lines_failure_leaves_no_other_unwatched(caplog: pytest.LogCaptureFixture) -> None:
    broken, sound = Line(error=RuntimeError("no")), Line()
    with caplog.at_level(logging.ERROR), watching(broken, sound):
        until(lambda: sound.trials > 1)
    assert "could not look after" in caplog.text


def test_a_process_that_stood_still_blames_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line()
    monkeypatch.setattr(watchdog, "_STANDSTILL_S", 0.05)
    with watching(line):
        until(lambda: line.trials)
        line.try_out = lambda: time.sleep(0.2)  # type: ignore[method-assign]  # as long as one look
        until(lambda: line.allowed_s)
    assert line.allowed_s > 0.1
