"""Log lines: where they go, and which ones."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from pellucid.inference.events import BatchRun
from pellucid.telemetry import Metrics, category_of, configure_logs, get_logger, is_debugged


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    names = [name for name in logging.root.manager.loggerDict if name.startswith("pellucid")]
    names += ["pellucid.api", "pellucid.sidecar", "uvicorn", "uvicorn.error", "uvicorn.access"]
    loggers = [logging.root, *(logging.getLogger(name) for name in names)]
    before = [(log, log.handlers[:], log.level, log.propagate) for log in loggers]
    yield
    for log, handlers, level, propagate in before:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_lines_are_json_on_stderr_and_nothing_is_on_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs(format="json")
    get_logger("MODELS").warning("slow", model_id="m")
    logging.getLogger("pellucid.models.sources.hub").warning("from %s", "the standard library")
    logging.getLogger("another.library").warning("from elsewhere")
    lines = _lines(capsys)
    assert [(line["category"], line["event"]) for line in lines] == [
        ("MODELS", "slow"),
        ("HUB", "from the standard library"),
        ("ANOTHER", "from elsewhere"),
    ]
    assert lines[0]["model_id"] == "m"


def test_a_category_that_is_switched_on_shows_its_debug_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs(format="json", categories=("sidecar-service", "HUB"))
    get_logger("SIDECAR-SERVICE").debug("embedded")
    get_logger("API").debug("request")
    logging.getLogger("pellucid.models.sources.hub").debug("asked")
    logging.getLogger("pellucid.models.pool").debug("evicted")
    assert [line["event"] for line in _lines(capsys)] == ["embedded", "asked"]


def test_the_level_holds_for_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(format="json", level="error")
    get_logger("API").warning("hidden")
    get_logger("API").error("shown")
    assert [line["event"] for line in _lines(capsys)] == ["shown"]


def test_a_traceback_is_part_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(format="json")
    try:
        raise ValueError("inside")
    except ValueError:
        get_logger("API").exception("failed")
    (line,) = _lines(capsys)
    assert "ValueError: inside" in line["exception"]


def test_text_lines_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(format="text")
    get_logger("API").info("listening", port=1)
    captured = capsys.readouterr()
    assert "listening" in captured.err
    assert "port=1" in captured.err
    assert re.match(r"\S*\d\d:\d\d:\d\d ", captured.err)  # the time of day is enough
    assert len(captured.err) < 60


@pytest.mark.parametrize(
    ("asked", "shown"),
    [({}, False), ({"level": "debug"}, True), ({"categories": ("server",)}, True)],
    ids=str,
)
def test_the_http_server_speaks_of_itself_when_asked(
    capsys: pytest.CaptureFixture[str], asked: dict[str, Any], shown: bool
) -> None:
    configure_logs(format="json", **asked)
    logging.getLogger("uvicorn.error").info("Waiting for application startup.")
    logging.getLogger("uvicorn.error").error("failed")
    assert [line["event"] for line in _lines(capsys)][:-1] == (
        ["Waiting for application startup."] if shown else []
    )


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("pellucid.models.pool", "MODELS"),
        ("pellucid.models.sources.hub", "HUB"),
        ("pellucid.models.sourcesque", "MODELS"),
        ("pellucid.cli.server", "PELLUCID"),
        ("uvicorn.error", "SERVER"),
        ("httpx", "HTTPX"),
    ],
)
def test_the_category_of_a_logger(name: str, category: str) -> None:
    assert category_of(name) == category


def test_two_servers_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.requests.labels("/health", "GET", "200").inc()
    assert b"/health" in first.exposition()
    assert b"/health" not in second.exposition()


def test_what_an_engine_tells_is_counted_by_lane() -> None:
    metrics = Metrics()
    metrics.batch_ran(
        BatchRun(model_id="m", lane="bulk", inputs=4, tokens=75, padded_tokens=100, compute_s=0.01)
    )
    metrics.waited(model_id="m", lane="interactive", queue_s=0.002)
    metrics.happened("truncated", model_id="m", count=3)
    metrics.happened("restarted", model_id="m")
    text = metrics.exposition().decode()
    for line in (
        'pellucid_batch_inputs_sum{lane="bulk"} 4.0',
        'pellucid_batch_tokens_sum{lane="bulk"} 75.0',
        'pellucid_batch_padding_ratio_sum{lane="bulk"} 0.25',
        'pellucid_compute_seconds_count{lane="bulk"} 1.0',
        'pellucid_queue_seconds_count{lane="interactive"} 1.0',
        'pellucid_inference_events_total{what="truncated"} 3.0',
        'pellucid_inference_events_total{what="restarted"} 1.0',
        'pellucid_inference_events_total{what="evicted"} 0.0',
    ):
        assert line in text.splitlines()


def test_debug_lines_are_made_only_where_they_are_shown() -> None:
    configure_logs(format="json", categories=("HUB",))
    assert is_debugged("HUB")
    assert not is_debugged("API")
    configure_logs(format="json", level="debug")
    assert is_debugged("API")
