"""The wall clock jumps a day ahead and back while requests run: no deadline moves."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from faults.conftest import assert_problem, assert_vectors, faulty

REQUEST_TIMEOUT_S = 1.0
# Every other tenth of a second it is tomorrow.
JUMPING = """
import pathlib
import time

_true_ns = time.time_ns
_DAY_NS = 86_400 * 10**9
_told = pathlib.Path("jumped")


def time_ns():
    now = _true_ns()
    if now // 10**8 % 2:
        _told.touch()
        return now + _DAY_NS
    return now


time.time_ns = time_ns
time.time = lambda: time_ns() / 1e9
"""


def test_deadlines_and_durations_do_not_follow_the_wall_clock(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(JUMPING)
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(path)}
    with faulty(
        tmp_path,
        environment=environment,
        request_timeout_s=REQUEST_TIMEOUT_S,
        stall_timeout_s=3,
        canary_interval_s=0.1,
    ) as server:
        for number in range(40):
            # some are quicker than the clock, some see it jump in the middle
            server.faults.set(delay_s=0.15 if number % 5 == 0 else 0.0)
            text = f"at any time, {number}"
            answer = server.embed([text])
            assert_vectors(answer, [text])
            durations = [
                float(ms) for ms in re.findall(r"dur=([^,;]+)", answer.headers["server-timing"])
            ]
            assert durations
            assert all(0 <= duration < 1_000 * REQUEST_TIMEOUT_S for duration in durations)
        server.faults.set(hangs=True)
        begin = time.monotonic()
        assert_problem(server.embed(["a text"]), 504, "deadline_exceeded")
        assert REQUEST_TIMEOUT_S - 0.1 < time.monotonic() - begin < REQUEST_TIMEOUT_S + 1
        server.faults.clear()
        server.require_sound()
        seconds = re.findall(
            r"^pellucid_\w+_seconds_sum\S* (\S+)", server.client.get("/metrics").text, re.M
        )
        assert seconds
        assert all(0 <= float(value) < 60 for value in seconds)
        assert (tmp_path / "jumped").exists(), "nobody looked at the clock, so nothing was shown"
        server.server.process.terminate()
        begin = time.monotonic()
        assert server.server.end() == 0
        assert time.monotonic() - begin < 3
