from __future__ import annotations

import json
import os
import threading
import time

from pellucid.progress import ProgressEvent, ProgressLines, progress_line


def read_all(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as stream:
        return stream.read()


def test_a_line_is_the_contract_s() -> None:
    event = ProgressEvent("model_loaded", {"model": "M", "dimensions": 384})
    assert (
        progress_line(event)
        == b'PROGRESS:{"type":"model_loaded","data":{"model":"M","dimensions":384}}\n'
    )


def test_a_line_is_ascii_and_one_line_whatever_the_data() -> None:
    line = progress_line(ProgressEvent("error", {"message": "a\nb\u2028ü\ud800"}))
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert json.loads(line.removeprefix(b"PROGRESS:"))["data"]["message"] == "a\nb\u2028ü\ud800"


def test_events_of_many_threads_are_whole_lines() -> None:
    read_fd, write_fd = os.pipe()
    lines = ProgressLines(write_fd)
    threads = [
        threading.Thread(
            target=lambda name=name: [
                lines(ProgressEvent("error", {"code": name, "message": "x" * 200}))
                for _ in range(30)
            ]
        )
        for name in ("a", "b", "c", "d")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines.close()
    os.close(write_fd)
    written = read_all(read_fd).splitlines()
    codes = [json.loads(line.removeprefix(b"PROGRESS:"))["data"]["code"] for line in written]
    assert sorted(codes) == sorted("abcd" * 30)


def test_a_parent_that_does_not_read_stops_nobody() -> None:
    read_fd, write_fd = os.pipe()
    lines = ProgressLines(write_fd)
    begin = time.monotonic()
    for number in range(3_000):  # more than any pipe holds
        lines(ProgressEvent("download_progress", {"model": "m" * 100, "bytes": number}))
    assert time.monotonic() - begin < 2
    lines.close(timeout_s=0.05)
    os.close(read_fd)  # the writer ends with EPIPE instead of waiting for ever
    os.close(write_fd)


def test_a_parent_that_is_gone_is_no_error() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    lines = ProgressLines(write_fd)
    for _ in range(3):
        lines(ProgressEvent("model_cached", {"model": "m"}))
    lines.close()
    os.close(write_fd)


def test_a_non_blocking_pipe_gets_everything() -> None:
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    lines = ProgressLines(write_fd)
    for number in range(900):
        lines(ProgressEvent("error", {"code": str(number), "message": "x" * 200}))
    received = b""
    while received.count(b"\n") < 900:
        received += os.read(read_fd, 1 << 16)
    lines.close()
    os.close(read_fd)
    os.close(write_fd)
    assert b'"code":"899"' in received
