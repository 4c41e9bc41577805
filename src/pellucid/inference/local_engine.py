"""``LocalEngine``: models in this process, one worker thread each."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Literal, TypeVar

from pellucid.errors import (
    DeadlineExceeded,
    Forbidden,
    GraphUnavailable,
    NotReady,
    PellucidError,
)
from pellucid.inference.admission import check_embedding_inputs, check_inspection_text
from pellucid.inference.embedding import embed
from pellucid.inference.engine import (
    EmbeddingQuery,
    Embeddings,
    Inspection,
    InspectionQuery,
    ModelStatus,
    SizeEstimate,
)
from pellucid.inference.inspection import inspect
from pellucid.inference.umap_line import UmapLine
from pellucid.inference.worker import StillWanted, Worker
from pellucid.models.backend import Backend, ModelInfo, ModelRef, Runtime
from pellucid.models.pool import Lease, LoadedModel, ModelPool
from pellucid.settings import Settings
from pellucid.units import rounded_ms

logger = logging.getLogger("pellucid.inference")

T = TypeVar("T")

ModelWork = Callable[[Backend, StillWanted], T]

_DRAIN_S = 10.0  # how long close() waits for requests at work
_MAX_REMEMBERED = 256  # models without a graph, and why


class LocalEngine:
    """Implements ``Engine``: asynchronous outside; inside, each model is called by one thread."""

    def __init__(
        self, pool: ModelPool, settings: Settings, *, embeds_with: Runtime = "torch"
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._embeds_with = embeds_with
        self._graphless: OrderedDict[ModelRef | None, GraphUnavailable] = OrderedDict()
        self._workers: dict[int, Worker] = {}  # by identity of the backend
        self._lock = threading.Lock()
        self._umap = UmapLine(max_waiting=settings.max_waiting)
        self._closing = False
        pool.before_close(self._retire)

    # ------------------------------------------------------------------------------------- work

    async def embed(self, query: EmbeddingQuery) -> Embeddings:
        started = time.perf_counter()
        check_embedding_inputs(query, settings=self._settings)
        async with self._deadline():
            embeddings, waited = await self._run(
                self._embedding_lease(query.model),
                lambda backend, still_wanted: embed(
                    backend, query, settings=self._settings, still_wanted=still_wanted
                ),
            )
        total_ms = (time.perf_counter() - started) * 1000
        timing = {**waited, **embeddings.timing, "total_ms": total_ms}
        return replace(embeddings, timing=rounded_ms(timing))

    async def inspect(self, query: InspectionQuery) -> Inspection:
        started = time.perf_counter()
        check_inspection_text(query, settings=self._settings)
        has_umap = "projection" in query.include and query.projection.method == "umap"
        async with self._deadline(), self._umap.place() if has_umap else nullcontext():
            seen, waited = await self._run(
                self._lease(query.model),
                lambda backend, still_wanted: inspect(
                    backend, query, settings=self._settings, still_wanted=still_wanted
                ),
            )
            inspection = seen.inspection
            if seen.umap is not None:
                inspection, umap_queue_ms = await self._umap.complete(seen)
                waited["queue_ms"] += umap_queue_ms
        total_ms = (time.perf_counter() - started) * 1000
        timing = {**waited, **inspection.timing, "total_ms": total_ms}
        return replace(inspection, timing=rounded_ms(timing))

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        """Raises DeadlineExceeded in time even when the model does not come back."""
        timeout_s = self._settings.request_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError as error:
            raise DeadlineExceeded(timeout_s=timeout_s) from error

    async def _run(
        self, leasing: Awaitable[Lease], work: ModelWork[T]
    ) -> tuple[T, dict[str, float]]:
        """The result of ``work`` on the model, and how long it waited for it."""
        started = time.perf_counter()
        lease = await leasing
        load_ms = (time.perf_counter() - started) * 1000
        result, queue_ms = await self._work(lease, work)
        return result, {"load_ms": load_ms, "queue_ms": queue_ms}

    async def _embedding_lease(self, ref: ModelRef | None) -> Lease:
        """The model in the runtime that embeds it: torch for those that have no graph."""
        if self._embeds_with == "openvino" and self._without_graph(ref) is None:
            try:
                return await self._lease(ref, "openvino")
            except GraphUnavailable as error:
                if self._settings.embedding_runtime == "openvino":
                    raise
                logger.warning("%s", error.detail)
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
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(_release_late)
            raise

    async def _work(self, lease: Lease, work: ModelWork[T]) -> tuple[T, float]:
        backend = lease.backend
        try:
            worker = self._worker(backend)
            ticket = worker.submit(
                lambda still_wanted: work(backend, still_wanted), on_done=lease.release
            )
        except BaseException:
            lease.release()
            raise
        try:
            return await asyncio.wrap_future(ticket.future), ticket.queue_ms
        except asyncio.CancelledError:
            ticket.abandon()
            raise

    def _worker(self, backend: Backend) -> Worker:
        with self._lock:
            worker = self._workers.get(id(backend))
            if worker is None:
                worker = Worker(backend.info.model_id, max_waiting=self._settings.max_waiting)
                self._workers[id(backend)] = worker
            return worker

    def _retire(self, backend: Backend) -> None:
        with self._lock:
            worker = self._workers.pop(id(backend), None)
        if worker is not None and not worker.stop():
            logger.error("the worker of %s does not end", backend.info.model_id)

    # ----------------------------------------------------------------------------------- models

    async def load(self, ref: ModelRef | None = None) -> ModelInfo:
        # No deadline: a download may take longer than any request.
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
        view = self._pool.view()
        by_key: dict[ModelRef, list[LoadedModel]] = {}
        for model in reversed(view.loaded):
            by_key.setdefault(model.key, []).append(model)
        statuses = [
            self._loaded_status(models, is_default=key == view.default_key)
            for key, models in by_key.items()
        ]
        statuses += [
            self._status(ref, "loading", waiting=waiting) for ref, waiting in view.loading.items()
        ]
        statuses += [
            self._status(ref, "failed", error=error)
            for ref, error in view.failures.items()
            if ref not in view.loading
        ]
        if not any(status.is_default for status in statuses):
            statuses.append(self._status(None, "available"))
        return sorted(statuses, key=lambda status: not status.is_default)

    def _loaded_status(self, models: list[LoadedModel], *, is_default: bool) -> ModelStatus:
        """One model, in whichever runtimes it is loaded."""
        info = min(models, key=lambda model: model.runtime == "torch").backend.info
        key = models[0].key
        names = (None if is_default else key, replace(key, revision=None))
        missing = next((self._graphless[name] for name in names if name in self._graphless), None)
        if missing is not None and info.embedding.runtime == "torch":
            embedding = replace(info.embedding, reason=str(missing.facts["reason"]))
            info = replace(info, embedding=embedding)
        return ModelStatus(
            model_id=key.model_id,
            revision=key.revision,
            state="loaded",
            is_default=is_default,
            in_use=sum(model.in_use for model in models),
            waiting=sum(self._waiting(model.backend) for model in models),
            memory_bytes=sum(model.memory_bytes for model in models),
            info=info,
        )

    def default_status(self) -> ModelStatus:
        return next(status for status in self.list_models() if status.is_default)

    def _waiting(self, backend: Backend) -> int:
        with self._lock:
            worker = self._workers.get(id(backend))
        return worker.waiting if worker is not None else 0

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
            error=None if error is None else {"code": error.code, "detail": error.detail},
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
        """Refuse new requests and let those at work end."""
        self._closing = True
        deadline = time.monotonic() + timeout_s
        while any(model.in_use for model in self._pool.view().loaded):
            if time.monotonic() > deadline:
                logger.warning("closing while requests are still at work")
                break
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Refuse new requests, let those at work end, free every model."""
        await self.drain(timeout_s=_DRAIN_S)
        self._umap.close()
        await asyncio.to_thread(self._pool.close)


def _release_late(future: Future[Lease]) -> None:
    """The lease came after its client had left."""
    if not future.cancelled() and future.exception() is None:
        future.result().release()
