"""Logs with categories on stderr, request ids, and Prometheus metrics."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, MutableMapping
from datetime import datetime
from typing import Any, Literal, get_args

import prometheus_client
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest

from pellucid.inference.events import BatchRun, Happening, Lane

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
_RATIO_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)

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
        self._watched: dict[str, Gauge] = {}
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

        self.batch_inputs = self._sizes("inputs", "Inputs in a batch of embeddings.", 12)
        self.batch_tokens = self._sizes(
            "tokens", "Tokens in a batch of embeddings, padding left out.", 15
        )
        self.batch_padding = Histogram(
            "pellucid_batch_padding_ratio",
            "Share of padding in a batch of embeddings.",
            ("lane",),
            buckets=_RATIO_BUCKETS,
            registry=self.registry,
        )
        self.compute_seconds = self._times(
            "compute", "Time of one forward pass of embeddings, by lane."
        )
        self.queue_seconds = self._times(
            "queue", "Time that a request waited until a model began with it, by lane."
        )
        self.happenings = Counter(
            "pellucid_inference_events",
            "What happened on the way: refusals, truncations, splits, restarts, evictions ...",
            ("what",),
            registry=self.registry,
        )
        for what in get_args(Happening):  # each is there from the start, at 0
            self.happenings.labels(what)

    def _sizes(self, what: str, help: str, num_buckets: int) -> Histogram:
        return Histogram(
            f"pellucid_batch_{what}",
            help,
            ("lane",),
            buckets=[2**step for step in range(num_buckets)],
            registry=self.registry,
        )

    def _times(self, what: str, help: str) -> Histogram:
        return Histogram(
            f"pellucid_{what}_seconds",
            help,
            ("lane",),
            buckets=_SECONDS_BUCKETS,
            registry=self.registry,
        )

    # What an engine tells (``InferenceEvents``), from its own threads.

    def batch_ran(self, run: BatchRun) -> None:
        self.batch_inputs.labels(run.lane).observe(run.inputs)
        self.batch_tokens.labels(run.lane).observe(run.tokens)
        self.batch_padding.labels(run.lane).observe(1 - run.tokens / run.padded_tokens)
        self.compute_seconds.labels(run.lane).observe(run.compute_s)

    def waited(self, *, model_id: str, lane: Lane, queue_s: float) -> None:
        self.queue_seconds.labels(lane).observe(queue_s)

    def happened(self, what: Happening, *, model_id: str, count: int = 1) -> None:
        self.happenings.labels(what).inc(count)

    def observe_stages(self, work: str, timing: Any) -> None:
        """Count ``timing`` (``<stage>_ms`` -> milliseconds) of one piece of work."""
        for name, value_ms in timing.items():
            self.stage_seconds.labels(work, name.removesuffix("_ms")).observe(value_ms / 1000)

    def watch(self, name: str, help: str, read: Callable[[], float], **labels: str) -> None:
        """A gauge that is read when it is asked for."""
        gauge = self._watched.get(name)
        if gauge is None:
            gauge = Gauge(name, help, tuple(labels), registry=self.registry)
            self._watched[name] = gauge
        (gauge.labels(**labels) if labels else gauge).set_function(read)

    def exposition(self) -> bytes:
        """All metrics in the OpenMetrics text format."""
        text: bytes = generate_latest(self.registry)  # type: ignore[no-untyped-call]
        return text


EXPOSITION_TYPE = CONTENT_TYPE_LATEST
