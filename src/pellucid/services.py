"""The composition root: builds everything once, starts it, closes it."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from pellucid.errors import PellucidError
from pellucid.inference.composition import build_engine
from pellucid.inference.engine import Engine
from pellucid.inference.events import Lane
from pellucid.progress import ProgressEvent, ProgressListener, ignore_progress
from pellucid.settings import Settings
from pellucid.telemetry import Metrics, get_logger

_TOKEN_BYTES = 24  # 192 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """How far the server is: ``phase`` starting, downloading, converting, loading, ready,
    recovering or failed."""

    ready: bool
    phase: str
    received_bytes: int | None = None
    total_bytes: int | None = None
    eta_s: float | None = None
    error: dict[str, Any] | None = None


class ProgressRecord:
    """Passes progress on and remembers the last step, for those who ask later."""

    def __init__(self, listener: ProgressListener) -> None:
        self._listener = listener
        self.last: ProgressEvent | None = None

    def __call__(self, event: ProgressEvent) -> None:
        self.last = event
        self._listener(event)


class Services:
    """Everything that the API and the command line stand on."""

    def __init__(
        self,
        *,
        settings: Settings,
        engine: Engine,
        progress: ProgressRecord,
        auth_token: str | None,
        auth_token_generated: bool,
        metrics: Metrics | None = None,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.progress = progress
        self.auth_token = auth_token
        """What requests must bring; None: no sign-in."""
        self.auth_token_generated = auth_token_generated
        """Made at start, so the operator must be told it."""
        self.metrics = metrics or Metrics()
        self.startup_error: PellucidError | None = None
        self._was_ready = False
        self._loading: asyncio.Task[None] | None = None
        self._watch_engine()

    async def start(self) -> None:
        """Begin to load the default model, and return at once."""
        self._loading = asyncio.create_task(self._load_default(), name="load-default-model")

    async def aclose(self) -> None:
        """Stop what is under way and give everything back."""
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
            await asyncio.wait({self._loading})
        await self.engine.close()

    def readiness(self) -> Readiness:
        """Whether requests for the default model would be answered now; cheap."""
        status = self.engine.default_status()
        if status.state == "loaded" and not status.healthy:
            return Readiness(ready=False, phase="recovering")
        if status.state == "loaded":  # perhaps by a later request, after a start that failed
            self._was_ready, self.startup_error = True, None
        if status.state == "loaded" or (self._was_ready and status.state == "available"):
            return Readiness(ready=True, phase="ready")
        if status.state == "failed" or self.startup_error is not None:
            return Readiness(ready=False, phase="failed", error=self._failure(status.error))
        last = self.progress.last
        if last is not None and last.type in ("download_started", "download_progress"):
            return Readiness(
                ready=False,
                phase="downloading",
                received_bytes=last.data.get("bytes"),
                total_bytes=last.data.get("total"),
                eta_s=last.data.get("eta"),
            )
        if last is not None and last.type == "model_converting":
            return Readiness(ready=False, phase="converting")
        return Readiness(ready=False, phase="loading" if self._loading else "starting")

    async def _load_default(self) -> None:
        log = get_logger("MODELS")
        try:
            await self.engine.load()
        except PellucidError as error:
            self.startup_error = error
            log.error("default model failed", code=error.code, detail=error.detail)
            self.progress(ProgressEvent("error", {"code": error.code, "message": error.detail}))
        except Exception as error:
            # The server keeps answering /health and /ready, which say what happened.
            self.startup_error = PellucidError()
            log.exception("default model failed")
            message = f"{type(error).__name__}: {error}"
            self.progress(ProgressEvent("error", {"code": "internal_error", "message": message}))
        else:
            self._was_ready = True
            self.startup_error = None

    def _failure(self, reported: Any) -> dict[str, Any]:
        if self.startup_error is not None:
            return {"code": self.startup_error.code, "detail": self.startup_error.detail}
        return dict(reported or {"code": "internal_error", "detail": PellucidError().detail})

    def _watch_engine(self) -> None:
        def loaded() -> list[Any]:
            # one runtime of a model may be loading beside another
            return [each for each in self.engine.list_models() if each.memory_bytes is not None]

        self.metrics.watch(
            "pellucid_models_loaded", "Models in memory.", lambda: float(len(loaded()))
        )
        self.metrics.watch(
            "pellucid_model_memory_bytes",
            "Memory of the loaded models.",
            lambda: float(sum(model.memory_bytes or 0 for model in loaded())),
        )
        self.metrics.watch(
            "pellucid_requests_waiting",
            "Requests that wait for a model.",
            lambda: float(sum(model.waiting for model in self.engine.list_models())),
        )
        for lane in get_args(Lane):
            self.metrics.watch(
                "pellucid_lane_requests_waiting",
                "Requests that wait in a lane.",
                partial(self._waiting_in, lane, "requests"),
                lane=lane,
            )
            self.metrics.watch(
                "pellucid_lane_tokens_waiting",
                "Tokens of embedding requests that wait in a lane.",
                partial(self._waiting_in, lane, "tokens"),
                lane=lane,
            )

    def _waiting_in(self, lane: str, what: Literal["requests", "tokens"]) -> float:
        lanes = (model.waiting_by_lane.get(lane) for model in self.engine.list_models())
        return float(sum(getattr(waiting, what) for waiting in lanes if waiting is not None))


def build_services(
    settings: Settings,
    *,
    engine: Engine | None = None,
    progress: ProgressListener = ignore_progress,
) -> Services:
    """Everything, built but not started. ``engine`` replaces the one that the settings mean."""
    record = ProgressRecord(progress)
    token = settings.auth_token.get_secret_value() if settings.auth_token else None
    metrics = Metrics()
    generated = token is None and not is_loopback(settings.host)
    if generated:
        token = secrets.token_urlsafe(_TOKEN_BYTES)
    return Services(
        settings=settings,
        engine=engine or build_engine(settings, record, events=metrics),
        progress=record,
        auth_token=token,
        auth_token_generated=generated,
        metrics=metrics,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``: localhost, 127.x.x.x, ::1."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
