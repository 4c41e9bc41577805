"""``LocalEngine``: models in this process, one worker thread each."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Set
from concurrent.futures import Future
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Literal, TypeVar

from pellucid.errors import (
    DeadlineExceeded,
    Forbidden,
    GraphUnavailable,
    InternalError,
    ModelNotLoaded,
    NotReady,
    PellucidError,
    WorkerReplaced,
)
from pellucid.inference.admission import check_embedding_inputs, check_inspection_text
from pellucid.inference.embedding import Tokenized, answer, tokenize
from pellucid.inference.engine import (
    EmbeddingQuery,
    Embeddings,
    Inspection,
    InspectionQuery,
    ModelStatus,
    Priority,
    SizeEstimate,
    Waiting,
)
from pellucid.inference.events import IGNORED, Happening, InferenceEvents
from pellucid.inference.inspection import Prepared, Seen, prepare
from pellucid.inference.inspection import run as run_inspection
from pellucid.inference.memory_gate import MemoryGate, Reservation
from pellucid.inference.model_line import ModelLine
from pellucid.inference.tokenizer_threads import TokenizerThreads
from pellucid.inference.umap_line import UmapLine
from pellucid.inference.watchdog import Watchdog
from pellucid.inference.worker import StillWanted, Work, as_failure
from pellucid.models.backend import Backend, EmbeddingRuntime, ModelInfo, ModelRef, Runtime
from pellucid.models.pool import Lease, LoadedModel, ModelPool, PoolView
from pellucid.settings import Settings
from pellucid.units import rounded_ms

logger = logging.getLogger("pellucid.inference")

T = TypeVar("T")

_DRAIN_LOOK_S = 0.01
_MAX_REMEMBERED = 256  # models without a graph, and why


class LocalEngine:
    """Implements ``Engine``: asynchronous outside; inside, each model is called by one thread."""

    def __init__(
        self,
        pool: ModelPool,
        settings: Settings,
        *,
        embeds_with: Runtime = "torch",
        events: InferenceEvents = IGNORED,
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._embeds_with = embeds_with
        self._graphless: OrderedDict[ModelRef | None, GraphUnavailable] = OrderedDict()
        self._events = events
        self._lines: dict[int, ModelLine] = {}  # by identity of the backend
        self._given_up: weakref.WeakSet[Backend] = weakref.WeakSet()
        self._lock = threading.Lock()  # guards the lines
        self._watchdog: Watchdog | None = None  # no thread before the first model
        self._tokenizers = TokenizerThreads(settings.tokenizer_threads)
        self._inspection_memory = MemoryGate(settings.max_inspection_bytes)
        self._timeouts: set[asyncio.Timeout] = set()  # of every request that is not answered
        self._gave_up = False
        self._umap = UmapLine(max_waiting=settings.max_waiting)
        self._closing = False
        pool.before_close(self._retire)
        pool.on_evicted(self._tell_evicted)

    # ------------------------------------------------------------------------------------- work

    async def embed(self, query: EmbeddingQuery) -> Embeddings:
        started = time.perf_counter()
        refused = check_embedding_inputs(query, settings=self._settings)
        async with self._deadline(self._settings.request_timeout_s):
            lease = await self._embedding_lease(query.model)
            load_s = time.perf_counter() - started
            timeout_s = self._settings.request_timeout_s - load_s
            embeddings = await self._embed(lease, query, refused=refused, timeout_s=timeout_s)
        if num_truncated := sum(embeddings.truncated):
            self._happened("truncated", lease.backend, count=num_truncated)
        total_ms = (time.perf_counter() - started) * 1000
        timing = {"load_ms": load_s * 1000, **embeddings.timing, "total_ms": total_ms}
        return replace(embeddings, timing=rounded_ms(timing))

    async def _embed(
        self,
        lease: Lease,
        query: EmbeddingQuery,
        *,
        refused: dict[int, PellucidError],
        timeout_s: float,
    ) -> Embeddings:
        backend, started = lease.backend, time.perf_counter()
        is_small = len(query.inputs) <= self._settings.interactive_inputs
        lane: Priority = query.priority or ("interactive" if is_small else "bulk")
        try:
            line = self._line(backend)
            job = line.open(lane, on_done=lease.release, stops_at_error=query.on_error == "fail")
        except BaseException:
            lease.release()
            raise
        try:
            tokenized = await self._tokenizers.run(
                lambda: _tokenize(backend, query, refused=refused), inputs=query.inputs
            )
            left_s = timeout_s - (time.perf_counter() - started)
            line.submit(job, tokenized.pieces, timeout_s=left_s)
            encoded = await job.future
        except BaseException as error:
            if line.abandon(job) and isinstance(error, asyncio.CancelledError):
                self._happened("dropped", backend)
            is_fault = isinstance(error, InternalError | ModelNotLoaded)
            if is_fault and job.error is not None and error is not job.error:
                raise job.error from error  # it was given up, and closed under its tokeniser
            raise
        return answer(tokenized, encoded, query=query, model=backend.info, lane=lane)

    async def inspect(self, query: InspectionQuery) -> Inspection:
        started = time.perf_counter()
        check_inspection_text(query, settings=self._settings)
        has_umap = "projection" in query.include and query.projection.method == "umap"
        async with (
            self._deadline(self._settings.request_timeout_s),
            self._umap.place() if has_umap else nullcontext(),
        ):
            lease = await self._lease(query.model)
            load_ms = (time.perf_counter() - started) * 1000
            deadline = time.monotonic() + self._settings.request_timeout_s - load_ms / 1000
            seen, queue_ms = await self._inspect(lease, query, deadline=deadline)
            inspection = seen.inspection
            if seen.umap is not None:
                inspection, umap_queue_ms = await self._umap.complete(seen)
                queue_ms += umap_queue_ms
        total_ms = (time.perf_counter() - started) * 1000
        timing = {
            "load_ms": load_ms,
            "queue_ms": queue_ms,
            **inspection.timing,
            "total_ms": total_ms,
        }
        return replace(inspection, timing=rounded_ms(timing))

    async def _inspect(
        self, lease: Lease, query: InspectionQuery, *, deadline: float
    ) -> tuple[Seen, float]:
        """What was seen, and the milliseconds that it waited for its turns.

        One turn in the model's thread, if there is memory for it; else one to find out how much it
        needs, and another when it has come.
        """
        backend, memory = lease.backend, self._inspection_memory.reservation()
        waits_from = time.perf_counter()

        def run_now(prepared: Prepared, still_wanted: StillWanted) -> Seen:
            queue_s = time.perf_counter() - waits_from - prepared.tokenize_ms / 1000
            name = backend.info.model_id
            self._events.waited(model_id=name, lane="inspection", queue_s=max(0.0, queue_s))
            return run_inspection(backend, prepared, still_wanted=still_wanted)

        def begin(still_wanted: StillWanted) -> Seen | Prepared:
            prepared = prepare(backend, query, settings=self._settings)
            if not memory.try_take(prepared.working_bytes):
                return prepared
            return run_now(prepared, still_wanted)

        with _Held(lease, memory) as held:
            first, queue_ms = await self._turn(backend, begin, held=held, deadline=deadline)
            if isinstance(first, Seen):
                return first, queue_ms
            waits_since = time.perf_counter()
            try:
                await memory.take(first.working_bytes)
            except asyncio.CancelledError:
                self._happened("dropped", backend)
                raise
            memory_ms = (time.perf_counter() - waits_since) * 1000
            seen, second_ms = await self._turn(
                backend,
                lambda still_wanted: run_now(first, still_wanted),
                held=held,
                deadline=deadline,
            )
        return seen, queue_ms + memory_ms + second_ms

    async def _turn(
        self, backend: Backend, work: Work[T], *, held: _Held, deadline: float
    ) -> tuple[T, float]:
        """The result of ``work`` in the model's thread, and the milliseconds until it began."""
        held.by_thread()
        try:
            ticket = self._line(backend).run(work, on_done=held.not_by_thread, deadline=deadline)
        except BaseException:
            held.not_by_thread()
            raise
        try:
            return await asyncio.wrap_future(ticket.future), ticket.queue_ms
        except asyncio.CancelledError:
            ticket.abandon()
            self._happened("dropped", backend)
            raise

    @asynccontextmanager
    async def _deadline(self, timeout_s: float | None) -> AsyncIterator[None]:
        """Raises DeadlineExceeded in time even when the model does not come back, and NotReady
        when the engine ends before."""
        try:
            async with asyncio.timeout(timeout_s) as timeout:
                self._timeouts.add(timeout)
                try:
                    yield
                finally:
                    self._timeouts.discard(timeout)
        except TimeoutError as error:
            if self._gave_up:
                raise NotReady(phase="shutting down", retry_after_s=5) from error
            raise DeadlineExceeded(timeout_s=timeout_s) from error

    async def _embedding_lease(self, ref: ModelRef | None) -> Lease:
        """The model in the runtime that embeds it: torch for those that have no graph."""
        if self._embeds_with == "openvino" and self._without_graph(ref) is None:
            try:
                return await self._lease(ref, "openvino")
            except GraphUnavailable as error:
                if self._settings.embedding_runtime == "openvino":
                    raise
                logger.warning(
                    "PyTorch embeds %s, not OpenVINO: %s",
                    *(error.facts["model_id"], error.facts["reason"]),
                )
                self._graphless[self._permitted(ref)] = error
                if len(self._graphless) > _MAX_REMEMBERED:
                    self._graphless.popitem(last=False)
        return await self._lease(ref)

    def _without_graph(self, ref: ModelRef | None) -> GraphUnavailable | None:
        """Why the model has no graph, once that is known."""
        return self._graphless.get(self._permitted(ref))

    async def _lease(self, ref: ModelRef | None, runtime: Runtime = "torch") -> Lease:
        if self._closing:
            raise NotReady(phase="shutting down", retry_after_s=5)
        future = self._pool.request(self._permitted(ref), runtime)
        if future.done():  # it is loaded: no hop through the loop
            return future.result()
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(_release_late)
            raise

    # ----------------------------------------------------------------------------------- lines

    def _line(self, backend: Backend) -> ModelLine:
        """Raises WorkerReplaced for a model that was given up and closed meanwhile."""
        with self._lock:
            line = self._lines.get(id(backend))
            if line is None:
                if backend in self._given_up:
                    raise WorkerReplaced(
                        model_id=backend.info.model_id, what="was given up", retry_after_s=1
                    )
                if self._watchdog is None:  # first: a line that nobody watches could hang for ever
                    self._watchdog = Watchdog(
                        self._all_lines,
                        stall_timeout_s=self._settings.stall_timeout_s,
                        canary_interval_s=self._settings.canary_interval_s,
                    )
                line = self._lines[id(backend)] = ModelLine(
                    backend,
                    self._settings,
                    events=self._events,
                    on_condemned=self._give_up,
                )
            return line

    def _all_lines(self) -> list[ModelLine]:
        with self._lock:
            return list(self._lines.values())

    def _give_up(self, backend: Backend) -> Callable[[], None]:
        """Take a model that no longer answers out of the pool; the default one comes back by
        itself, since nobody asks a server that is not ready. Returns what closes it."""
        view = self._pool.view()
        model = next((model for model in view.loaded if model.backend is backend), None)
        self._given_up.add(backend)
        bury = self._pool.condemn(backend)
        if model is not None and model.key == view.default_key and not self._closing:
            try:
                self._pool.request(None, model.runtime).add_done_callback(_release_late)
            except PellucidError as error:
                logger.warning("the default model is not loaded again: %s", error.detail)
        return bury

    def _tell_evicted(self, backend: Backend) -> None:
        self._events.happened("evicted", model_id=backend.info.model_id)

    def _retire(self, backend: Backend) -> None:
        with self._lock:
            line = self._lines.pop(id(backend), None)
        if line is not None and not line.stop():
            logger.error("the worker of %s does not end", backend.info.model_id)

    def _happened(self, what: Happening, backend: Backend, *, count: int = 1) -> None:
        self._events.happened(what, model_id=backend.info.model_id, count=count)

    # ----------------------------------------------------------------------------------- models

    async def load(self, ref: ModelRef | None = None) -> ModelInfo:
        async with self._deadline(None):  # a download may take longer than any request
            lease = await self._embedding_lease(ref)
        with lease as backend:
            return backend.info

    async def unload(self, ref: ModelRef | None = None) -> int:
        # None means all here, so that the default model has to be named by its name.
        if ref is not None and self._is_default(ref):
            ref = self._pool.view().default_key or ref
        self._graphless.clear()  # what stood in the way may be gone: a full disk, say
        return await asyncio.to_thread(self._pool.unload, ref)

    async def estimate(self, ref: ModelRef) -> SizeEstimate:
        permitted = self._permitted(ref)
        return await asyncio.to_thread(self._estimate, permitted)

    def _estimate(self, ref: ModelRef | None) -> SizeEstimate:
        size = self._pool.locator.estimate(ref)
        memory_bytes = self._pool.memory_of(size, self._embeds_with)
        limit_bytes = self._settings.max_model_bytes
        budget_bytes = self._pool.limits.memory_budget()
        return SizeEstimate(
            model_id=size.model_id,
            revision=size.revision,
            weights_bytes=size.weights_bytes,
            download_bytes=size.download_bytes,
            memory_bytes=memory_bytes,
            num_parameters=size.num_parameters,
            source=size.origin,
            fits=size.weights_bytes <= limit_bytes and memory_bytes <= budget_bytes,
            limit_bytes=limit_bytes,
        )

    async def memory_budget_bytes(self) -> int:
        return await asyncio.to_thread(self._pool.limits.memory_budget)

    def list_models(self) -> list[ModelStatus]:
        """Each model once, in whichever runtimes it is loaded or loading."""
        view = self._pool.view()
        by_key: dict[ModelRef, list[LoadedModel]] = {}
        for model in reversed(view.loaded):
            by_key.setdefault(model.key, []).append(model)
        statuses, told = [], set[ModelRef | None]()
        for key, models in by_key.items():
            is_default = key == view.default_key
            names = {None} if is_default else {key, replace(key, revision=None)}
            told |= names
            statuses.append(self._loaded_status(models, view, names, is_default=is_default))
        statuses += [
            self._status(ref, "loading", waiting=waiting)
            for ref, waiting in view.loading.items()
            if ref not in told
        ]
        statuses += [
            self._status(ref, "failed", error=error)
            for ref, error in view.failures.items()
            if ref not in view.loading and ref not in told
        ]
        if not any(status.is_default for status in statuses):
            statuses.append(self._status(None, "available"))
        return sorted(statuses, key=lambda status: not status.is_default)

    def _loaded_status(
        self,
        models: list[LoadedModel],
        view: PoolView,
        names: Set[ModelRef | None],
        *,
        is_default: bool,
    ) -> ModelStatus:
        """One model, which requests call by ``names``, in whichever runtimes it is loaded."""
        info = min(models, key=lambda model: model.runtime == "torch").backend.info
        loading = names & view.loading.keys()
        embedding: EmbeddingRuntime | None = info.embedding
        if info.embedding.runtime != self._embeds_with:
            missing = next((self._graphless[each] for each in names & self._graphless.keys()), None)
            # Unless the graph is known to be missing, torch was loaded to inspect, not to embed.
            embedding = None
            if missing is not None:
                embedding = replace(info.embedding, reason=str(missing.facts["reason"]))
        failure = next((view.failures[each] for each in names & view.failures.keys()), None)
        key = models[0].key
        return ModelStatus(
            model_id=key.model_id,
            revision=key.revision,
            state="loading" if embedding is None and loading else "loaded",
            is_default=is_default,
            in_use=sum(model.in_use for model in models),
            waiting=sum(self._waiting(model.backend) for model in models)
            + sum(view.loading[each] for each in loading),
            waiting_by_lane=self._waiting_by_lane(models),
            memory_bytes=sum(model.memory_bytes for model in models),
            info=info,
            embedding=embedding,
            error=_told(failure),
            healthy=all(self._is_healthy(model.backend) for model in models),
        )

    def default_status(self) -> ModelStatus:
        return next(status for status in self.list_models() if status.is_default)

    def _waiting(self, backend: Backend) -> int:
        with self._lock:
            line = self._lines.get(id(backend))
        return line.waiting if line is not None else 0

    def _waiting_by_lane(self, models: list[LoadedModel]) -> dict[str, Waiting]:
        with self._lock:
            found = [self._lines.get(id(model.backend)) for model in models]
        lanes: dict[str, Waiting] = {}
        for line in found:
            for lane, waiting in (line.waiting_by_lane if line is not None else {}).items():
                lanes[lane] = lanes.get(lane, Waiting()) + waiting
        return lanes

    def _is_healthy(self, backend: Backend) -> bool:
        with self._lock:
            line = self._lines.get(id(backend))
        return line is None or line.is_healthy

    def _status(
        self,
        ref: ModelRef | None,
        state: Literal["available", "loading", "failed"],
        *,
        waiting: int = 0,
        error: PellucidError | None = None,
    ) -> ModelStatus:
        named = ref or ModelRef(model_id=self._settings.model, revision=self._settings.revision)
        return ModelStatus(
            model_id=named.model_id,
            revision=named.revision,
            state=state,
            is_default=ref is None,
            waiting=waiting,
            error=_told(error),
        )

    def _permitted(self, ref: ModelRef | None) -> ModelRef | None:
        """None for the default model however it is called. Raises Forbidden."""
        if ref is None or self._is_default(ref):
            return None
        if not self._settings.allow_other_models:
            raise Forbidden(reason=f"This server answers with {self._settings.model} only")
        return ref

    def _is_default(self, ref: ModelRef) -> bool:
        """Whether the name is the one in the settings, or that of the model it turned out to be."""
        settings, default = self._settings, self._pool.view().default_key
        if ref.model_id == settings.model and ref.revision in (None, settings.revision):
            return True
        if default is None or ref.model_id != default.model_id:
            return False
        return ref.revision in (None, default.revision)

    async def drain(self, *, timeout_s: float) -> None:
        """Refuse new requests and let those at work end; answer NotReady to those that have not
        ended in time."""
        self._closing = True
        deadline = time.monotonic() + timeout_s
        while self._timeouts or any(model.in_use for model in self._pool.view().loaded):
            if time.monotonic() > deadline:
                logger.warning("%d requests are still at work: given up", len(self._timeouts))
                break
            await asyncio.sleep(_DRAIN_LOOK_S)
        self._gave_up = True
        for timeout in list(self._timeouts):
            if not timeout.expired():
                timeout.reschedule(asyncio.get_running_loop().time())
        while self._timeouts:  # each ends as soon as its task runs
            await asyncio.sleep(_DRAIN_LOOK_S)

    async def close(self) -> None:
        """Refuse new requests, let those at work end, free every model."""
        await self.drain(timeout_s=0.0 if self._gave_up else self._settings.shutdown_timeout_s)
        if self._watchdog is not None:
            self._watchdog.stop()
        self._umap.close()
        self._tokenizers.close()
        await asyncio.to_thread(self._pool.close)


class _Held:
    """What an inspection holds: given back when neither its task nor a thread needs it."""

    def __init__(self, lease: Lease, memory: Reservation) -> None:
        self._lease = lease
        self._memory = memory
        self._lock = threading.Lock()
        self._num_holders = 0

    def by_thread(self) -> None:
        with self._lock:
            self._num_holders += 1

    def not_by_thread(self) -> None:
        with self._lock:
            self._num_holders -= 1
            is_free = not self._num_holders
        if is_free:
            self._memory.release()
            self._lease.release()

    def __enter__(self) -> _Held:
        self.by_thread()
        return self

    def __exit__(self, *error: object) -> None:
        self.not_by_thread()


def _tokenize(
    backend: Backend, query: EmbeddingQuery, *, refused: dict[int, PellucidError]
) -> Tokenized:
    try:
        return tokenize(backend, query, refused=refused)
    except BaseException as error:  # Rust libraries panic with a BaseException
        raise as_failure(error, backend.info.model_id) from error


def _told(error: PellucidError | None) -> dict[str, str] | None:
    return None if error is None else {"code": error.code, "detail": error.detail}


def _release_late(future: Future[Lease]) -> None:
    """The lease came after its client had left."""
    if not future.cancelled() and future.exception() is None:
        future.result().release()
