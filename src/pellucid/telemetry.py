"""Logs with categories on stderr, request ids, and Prometheus metrics."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, MutableMapping
from datetime import datetime
from typing import Any, Literal

import prometheus_client
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest

LogFormat = Literal["auto", "text", "json"]

# Which part of the program speaks, by the name of its logger; the longest prefix wins.
_CATEGORIES = {
    "pellucid.models.sources": "HUB",
    "pellucid.models": "MODELS",
    "pellucid.inference": "INFERENCE",
    "pellucid.introspection": "INTROSPECTION",
    "pellucid.api": "API",
    "pellucid.sidecar": "SIDECAR-SERVICE",
    "pellucid": "PELLUCID",
    "uvicorn": "SERVER",
}
_LOGGER_OF = {category: name for name, category in _CATEGORIES.items()}

# 1.5 ms to 5 min, each bucket about twice the last: embeddings sit low, model loads high.
_SECONDS_BUCKETS = tuple(0.0015 * 2**step for step in range(18))

API_LOG = "API"
SIDECAR_LOG = "SIDECAR-SERVICE"


def get_logger(category: str) -> Any:
    """A structured logger of one category; ``log_categories`` switches its debug lines on."""
    name = _LOGGER_OF.get(category, f"pellucid.{category.lower()}")
    return structlog.stdlib.get_logger(name).bind(category=category)


def is_debugged(category: str) -> bool:
    """Whether debug lines of ``category`` are shown; asked before a line on every request."""
    return logging.getLogger(_LOGGER_OF[category]).isEnabledFor(logging.DEBUG)


def configure_logs(
    *, level: str = "info", format: LogFormat = "auto", categories: tuple[str, ...] = ()
) -> None:
    """Send every log line of this process to stderr in one form; stdout stays untouched."""
    text = format == "text" or (format == "auto" and sys.stderr.isatty())
    renderers: list[Any] = (
        [_clock_time, _console_renderer(colors=sys.stderr.isatty())]
        if text
        else [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_CategoryFilter(level=level, categories=categories))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    shown = {category.upper() for category in categories}
    for name, category in _CATEGORIES.items():  # so that debug lines nobody sees cost nothing
        logging.getLogger(name).setLevel("DEBUG" if category in shown else level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    # That it starts and ends is told by us; who asks for its own words gets them.
    asked = level == "debug" or "SERVER" in shown
    logging.getLogger("uvicorn").setLevel(logging.DEBUG if asked else logging.WARNING)
    # One line per request is ours, with the request id; uvicorn's would be a second one.
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)


def bind_request_id(request_id: str) -> None:
    """Every log line of the current task carries the id from now on."""
    structlog.contextvars.bind_contextvars(request_id=request_id)


def unbind_request_id() -> None:
    structlog.contextvars.unbind_contextvars("request_id")


def category_of(logger_name: str) -> str:
    """The category of a logger's name: ``pellucid.models.pool`` -> ``MODELS``."""
    parts = logger_name.split(".")
    for end in range(len(parts), 0, -1):
        if category := _CATEGORIES.get(".".join(parts[:end])):
            return category
    return parts[0].upper()


class _CategoryFilter(logging.Filter):
    """Lets lines of ``level`` and above pass, and debug lines of the categories switched on."""

    def __init__(self, *, level: str, categories: tuple[str, ...]) -> None:
        super().__init__()
        self._level = logging.getLevelNamesMapping()[level.upper()]
        self._categories = frozenset(category.upper() for category in categories)

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self._level or category_of(record.name) in self._categories


def _add_category(
    logger: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    record = event.get("_record")
    if "category" not in event:
        event["category"] = category_of(record.name if record else logger.name)
    return event


def _clock_time(
    logger: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A person at a terminal needs the time of day, not the date and microseconds."""
    moment = datetime.fromisoformat(event["timestamp"])
    return {**event, "timestamp": moment.astimezone().strftime("%H:%M:%S")}


def _console_renderer(*, colors: bool) -> Any:
    return structlog.dev.ConsoleRenderer(
        colors=colors, pad_event_to=0, pad_level=False, exception_formatter=_plain
    )


def _plain(stream: Any, exc_info: Any) -> None:
    structlog.dev.plain_traceback(stream, exc_info)


# Before ``configure_logs`` (in tests, in a library's hands) lines go where Python's logging sends
# them; structlog's own default would print them on stdout, which belongs to answers.
_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    _add_category,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        *_SHARED,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=False,
)
# A second series per counter that only says when it began: half of the answer for nobody.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """What the server counts, in a registry of its own (two apps in one process do not mix)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pellucid_requests",
            "Requests answered.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "pellucid_request_seconds",
            "Time from the first byte read to the first byte of the answer.",
            ("route",),
            buckets=_SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "pellucid_requests_in_flight", "Requests being answered.", registry=self.registry
        )
        self.errors = Counter(
            "pellucid_errors", "Error answers, by code.", ("code",), registry=self.registry
        )
        self.tokens = Counter(
            "pellucid_tokens", "Tokens read by models.", ("work",), registry=self.registry
        )
        self.stage_seconds = Histogram(
            "pellucid_stage_seconds",
            "Time spent per stage of a model's work.",
            ("work", "stage"),
            buckets=_SECONDS_BUCKETS,
            registry=self.registry,
        )

    def observe_stages(self, work: str, timing: Any) -> None:
        """Count ``timing`` (``<stage>_ms`` -> milliseconds) of one piece of work."""
        for name, value_ms in timing.items():
            self.stage_seconds.labels(work, name.removesuffix("_ms")).observe(value_ms / 1000)

    def watch(self, name: str, help: str, read: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(name, help, registry=self.registry).set_function(read)

    def exposition(self) -> bytes:
        """All metrics in the OpenMetrics text format."""
        text: bytes = generate_latest(self.registry)  # type: ignore[no-untyped-call]
        return text


EXPOSITION_TYPE = CONTENT_TYPE_LATEST
