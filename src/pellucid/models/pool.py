"""The models kept loaded: each once, within a memory budget, never taken away under a request."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType

from pellucid.errors import (
    GraphUnavailable,
    InvalidInput,
    ModelInUse,
    ModelLoadFailed,
    ModelNotLoaded,
    NotReady,
    Overloaded,
    PellucidError,
)
from pellucid.models.backend import Backend, ModelRef, Runtime
from pellucid.models.residency import LoadedModel, Place, PoolLimits, Residency
from pellucid.models.sources.source import ModelLocator, ModelSource, SourceSize
from pellucid.progress import ProgressEvent, ProgressListener, ignore_progress

__all__ = ["Lease", "LoadedModel", "Loader", "ModelPool", "PoolLimits", "PoolView"]

Loader = Callable[[ModelSource, Runtime], Backend]

logger = logging.getLogger("pellucid.models")

_MAX_DOWNLOADS = 4  # models fetched side by side; loading itself goes one by one
_MAX_REMEMBERED_FAILURES = 32  # requests may name any number of models that do not exist


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """The pool at one moment. References are as asked for; None is the default model."""

    loaded: tuple[LoadedModel, ...]  # least recently used first
    loading: dict[ModelRef | None, int]  # how many wait for each
    failures: dict[ModelRef | None, PellucidError]
    default_key: ModelRef | None  # once the default model has been loaded


class Lease:
    """A model that stays loaded until ``release``; also a context manager."""

    def __init__(self, model: LoadedModel, release: Callable[[LoadedModel], None]) -> None:
        self._model = model
        self._release: Callable[[LoadedModel], None] | None = release
        self._lock = threading.Lock()

    @property
    def backend(self) -> Backend:
        return self._model.backend

    def release(self) -> None:
        """Give the model back; more than once does no harm."""
        with self._lock:
            release, self._release = self._release, None
        if release is not None:
            release(self._model)

    def __enter__(self) -> Backend:
        return self.backend

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


@dataclass(slots=True)
class _Flight:
    waiters: list[Future[Lease]] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        """Those who have not left meanwhile."""
        return sum(not waiter.done() for waiter in self.waiters)


class ModelPool:
    """``model_id@revision`` and runtime -> ``Backend``. Thread-safe; ``acquire`` blocks,
    ``request`` does not.

    The least recently used idle models are closed before a new one is loaded, when the estimate
    says that both would not fit.
    """

    def __init__(
        self,
        locator: ModelLocator,
        loader: Loader,
        *,
        limits: PoolLimits,
        memory_of: Callable[[SourceSize, Runtime], int] = lambda size, _: size.weights_bytes,
        progress: ProgressListener = ignore_progress,
        prepare: Callable[[ModelSource, Runtime], None] = lambda *_: None,
    ) -> None:
        """``prepare`` does what takes long before a model can be loaded, and no memory of this
        process; other models are loaded meanwhile."""
        self.locator = locator
        self.limits = limits
        self.memory_of = memory_of
        self._loader = loader
        self._prepare = prepare
        self._progress = progress
        self._residency = residency = Residency(limits)
        self._state = residency.state  # one lock for all: guards everything below, too
        self._flights: dict[tuple[ModelRef | None, Runtime], _Flight] = {}
        self._failures: OrderedDict[ModelRef | None, PellucidError] = OrderedDict()
        self._default_key: ModelRef | None = None  # outlives the model: its name stays the same
        self._keys_in_flight: set[Place] = set()
        self._download_slots = threading.Semaphore(_MAX_DOWNLOADS)
        self._load_lock = threading.Lock()  # one load at a time, or memory cannot be accounted for

    def before_close(self, callback: Callable[[Backend], None]) -> None:
        """Have ``callback`` called with each backend just before it is closed."""
        self._residency.before_close.append(callback)

    # ---------------------------------------------------------------------------------- leasing

    def on_evicted(self, callback: Callable[[Backend], None]) -> None:
        """Call ``callback`` with each backend that makes room for another."""
        self._residency.on_evicted.append(callback)

    def acquire(self, ref: ModelRef | None = None, runtime: Runtime = "torch") -> Lease:
        """A lease on the model, loaded first where need be (None = the default model).

        Raises Overloaded, OutOfMemory, NoFreeModelSlot, InvalidModelId and everything under
        ModelUnavailable. A failed load is told to all who wait for it, and tried again by the next.
        """
        return self.request(ref, runtime).result()

    def request(self, ref: ModelRef | None = None, runtime: Runtime = "torch") -> Future[Lease]:
        """Like ``acquire``, as a future. Whoever cancels it too late must release the lease."""
        future: Future[Lease] = Future()
        with self._state:
            if self._residency.closed:
                raise NotReady(phase="shutting down", retry_after_s=5)
            model = self._residency.find(ref, runtime)
            if model is not None:
                future.set_result(self._lease(model))
                return future
            # A load that nobody waits for any more still takes a thread.
            waiting = sum(max(1, flight.waiting) for flight in self._flights.values())
            if waiting >= self.limits.max_waiting:
                raise Overloaded(
                    model_id=ref.model_id if ref else "the default model",
                    waiting=waiting,
                    max_waiting=self.limits.max_waiting,
                    retry_after_s=5,
                )
            flight = self._flights.get((ref, runtime))
            if flight is None:
                name = f"load {ref.model_id if ref else 'default model'}"
                flying = threading.Thread(
                    target=self._fly, args=(ref, runtime), name=name, daemon=True
                )
                flying.start()  # first: a flight without a thread would never land
                flight = self._flights[ref, runtime] = _Flight()
            flight.waiters.append(future)
        return future

    def _lease(self, model: LoadedModel) -> Lease:
        self._residency.hold(model)
        return Lease(model, self._residency.give_back)

    # ---------------------------------------------------------------------------------- loading

    def _fly(self, ref: ModelRef | None, runtime: Runtime) -> None:
        """Load one model and answer everyone who waits for it under this name."""
        try:
            model = self._loaded(ref, runtime)
        except BaseException as error:  # thread boundary: a waiter without an answer waits for ever
            failure = _as_load_failure(error, ref)
            with self._state:
                self._remember(ref, failure)
                waiters = self._flights.pop((ref, runtime)).waiters
            for future in waiters:
                if future.set_running_or_notify_cancel():
                    future.set_exception(failure)
            return
        with self._state:
            self._failures.pop(ref, None)
            self._residency.keys[ref] = model.key
            if ref is None:
                self._default_key = model.key
            for future in self._flights.pop((ref, runtime)).waiters:
                if future.set_running_or_notify_cancel():
                    future.set_result(self._lease(model))
            model.in_use -= 1  # the hold that kept it alive until its waiters had their leases
            self._state.notify_all()

    def _remember(self, ref: ModelRef | None, failure: PellucidError) -> None:
        """Expects ``state`` held."""
        # What is no name at all is nobody's model: it belongs into no list of models. A model
        # without a graph has not failed: another runtime loads it.
        if isinstance(failure, GraphUnavailable) or (ref and isinstance(failure, InvalidInput)):
            return
        self._failures[ref] = failure
        self._failures.move_to_end(ref)
        if len(self._failures) > _MAX_REMEMBERED_FAILURES:
            self._failures.popitem(last=False)

    def _loaded(self, ref: ModelRef | None, runtime: Runtime) -> LoadedModel:
        """The model, held once for the caller, so that it cannot be evicted before it is used."""
        key = self.locator.resolve(ref)
        with self._only_flight_of((key, runtime)):
            with self._state:
                if (model := self._residency.find(key, runtime)) is not None:
                    self._residency.hold(model)
                    return model
            size = self.locator.estimate(ref)
            needed = self.memory_of(size, runtime)
            self._residency.refuse_if_hopeless(key, needed)
            # What lies on this machine waits for no download of others.
            with self._download_slots if size.download_bytes else nullcontext():
                source = self.locator.locate(ref, progress=self._progress)
            self._prepare(source, runtime)
            return self._load(replace(key, revision=source.revision), runtime, source, needed)

    @contextmanager
    def _only_flight_of(self, place: Place) -> Iterator[None]:
        """Two names of one model (no revision, and its commit) must not load it twice."""
        with self._state:
            self._state.wait_for(lambda: place not in self._keys_in_flight)
            self._keys_in_flight.add(place)
        try:
            yield
        finally:
            with self._state:
                self._keys_in_flight.discard(place)
                self._state.notify_all()

    def _load(
        self, key: ModelRef, runtime: Runtime, source: ModelSource, needed: int
    ) -> LoadedModel:
        with self._load_lock:
            self._residency.make_room(key, needed, wait_s=self.limits.room_timeout_s)
            started = time.perf_counter()
            backend = self._loader(source, runtime)
            memory_bytes = backend.info.memory_bytes
            model = LoadedModel(key, backend, memory_bytes, in_use=1, runtime=runtime)
            try:
                # The true size is known only now; an estimate that was too low must not overfill.
                self._residency.make_room(key, model.memory_bytes, wait_s=0)
                self._residency.publish(model)
            except PellucidError:
                backend.close()
                raise
            elapsed_s = time.perf_counter() - started
            logger.info("loaded %s with %s in %.1f s", key.model_id, runtime, elapsed_s)
        data = {"model": source.model_id, "dimensions": backend.info.dimensions}
        self._progress(ProgressEvent("model_loaded", data))
        return model

    # -------------------------------------------------------------------- looking and unloading

    def unload(self, ref: ModelRef | None = None) -> int:
        """Close one model, or all idle ones (None); returns the bytes given back.

        Raises ModelNotLoaded, ModelInUse.
        """
        with self._state:
            if ref is None:
                chosen = [model for model in self._residency.models.values() if not model.in_use]
            else:
                chosen = self._residency.named(ref)
                if not chosen:
                    raise ModelNotLoaded(model_id=ref.model_id)
                if requests := sum(model.in_use for model in chosen):
                    raise ModelInUse(model_id=ref.model_id, requests=requests)
            chosen = [self._residency.forget(model) for model in chosen]
        return self._residency.evict(chosen)

    def condemn(self, backend: Backend) -> Callable[[], None]:
        """Take a backend that no longer answers out of the pool at once, without waiting for it;
        the next request loads a fresh one.

        Returns what closes it, to be called when nothing runs in it any more, perhaps never: until
        then its memory counts as taken.
        """
        with self._state:
            models = self._residency.models.values()
            model = next((model for model in models if model.backend is backend), None)
            if model is not None:
                self._residency.forget(model)
            self._state.notify_all()
        if model is None:  # unloaded or condemned before
            return lambda: None
        return partial(self._bury, model)

    def _bury(self, model: LoadedModel) -> None:
        self._residency.evict([model])

    def view(self) -> PoolView:
        """What is loaded, loading and failed just now; cheap."""
        with self._state:
            loading: dict[ModelRef | None, int] = {}
            for (ref, _), flight in self._flights.items():
                loading[ref] = loading.get(ref, 0) + flight.waiting
            return PoolView(
                loaded=tuple(replace(model) for model in self._residency.models.values()),
                loading=loading,
                failures=dict(self._failures),
                default_key=self._default_key,
            )

    def close(self) -> None:
        """Refuse new leases and close every idle model; one at work is left to end by itself."""
        with self._state:
            self._residency.closed = True
            idle = [model for model in self._residency.models.values() if not model.in_use]
            idle = [self._residency.forget(model) for model in idle]
            self._state.notify_all()
        self._residency.evict(idle)


def _as_load_failure(error: BaseException, ref: ModelRef | None) -> PellucidError:
    if isinstance(error, PellucidError):
        return error
    model_id = ref.model_id if ref else "the default model"
    logger.error("loading %s failed", model_id, exc_info=error)
    failure = ModelLoadFailed(model_id=model_id, reason=f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
