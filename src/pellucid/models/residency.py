"""The models in memory: who is at work, who may go, and what still fits."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pellucid.errors import NoFreeModelSlot, NotReady, OutOfMemory, PellucidError
from pellucid.models.backend import Backend, ModelRef, Runtime

logger = logging.getLogger("pellucid.models")

_CLOSING_S = 10.0  # a model that ends at all has ended by then

Place = tuple[ModelRef, Runtime]  # a model is loaded once in each runtime that was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """What all loaded models together may take."""

    memory_budget: Callable[[], int]  # bytes; asked late: the device must be known for it
    max_loaded_models: int = 8  # a model loaded in two runtimes counts once
    max_waiting: int = 256  # requests that wait for models to be loaded
    room_timeout_s: float = 5.0  # how long a load waits for models at work to become idle


@dataclass(slots=True, eq=False)
class LoadedModel:
    """One entry of the pool. ``in_use`` counts the leases; only idle models are closed."""

    key: ModelRef
    backend: Backend
    memory_bytes: int
    in_use: int = 0
    runtime: Runtime = "torch"

    @property
    def place(self) -> Place:
        return self.key, self.runtime


class Residency:
    """Loaded models under the names they were asked for, within ``PoolLimits``.

    ``state`` guards everything and is notified of every change; methods that say so expect it held.
    """

    def __init__(self, limits: PoolLimits) -> None:
        self.limits = limits
        self.state = threading.Condition()
        self.models: OrderedDict[Place, LoadedModel] = OrderedDict()  # least recently used first
        self.keys: dict[ModelRef | None, ModelRef] = {}  # as asked for -> as resolved
        self.before_close: list[Callable[[Backend], None]] = []
        self.on_evicted: list[Callable[[Backend], None]] = []
        self.closed = False
        self._closing_bytes = 0

    def find(self, ref: ModelRef | None, runtime: Runtime = "torch") -> LoadedModel | None:
        """The loaded model of that name, if its key is known. Expects ``state`` held."""
        key = self.keys.get(ref) or ref
        return self.models.get((key, runtime)) if key is not None else None

    def named(self, ref: ModelRef) -> list[LoadedModel]:
        """Every loaded model that the name means, in every runtime; without a revision any will
        do. Expects ``state`` held."""
        key = self.keys.get(ref) or ref
        if found := [model for model in self.models.values() if model.key == key]:
            return found
        if ref.revision is not None:
            return []
        return [model for model in self.models.values() if model.key.model_id == ref.model_id]

    def hold(self, model: LoadedModel) -> None:
        """Keep the model from being closed. Expects ``state`` held."""
        model.in_use += 1
        if model.place in self.models:  # a condemned one is no longer
            self.models.move_to_end(model.place)

    def give_back(self, model: LoadedModel) -> None:
        with self.state:
            model.in_use -= 1
            self.state.notify_all()

    def publish(self, model: LoadedModel) -> None:
        """Take a loaded model in. Raises NotReady once closed."""
        with self.state:
            if self.closed:
                raise NotReady(phase="shutting down", retry_after_s=5)
            self.models[model.place] = model

    def refuse_if_hopeless(self, key: ModelRef, needed: int) -> None:
        """Raises OutOfMemory if the model would not fit even alone."""
        budget = self.limits.memory_budget()
        if needed > budget:  # said before the download, not after it
            raise OutOfMemory(
                model_id=key.model_id,
                needed_bytes=needed,
                available_bytes=budget,
                budget_bytes=budget,
            )

    def make_room(self, key: ModelRef, needed: int, *, wait_s: float) -> None:
        """Close idle models, least recently used first, until ``needed`` bytes and a place are
        free. Models at work are waited for, then reported; so are those that were given up, whose
        memory may never come back."""
        self.refuse_if_hopeless(key, needed)
        deadline = time.monotonic() + max(wait_s, _CLOSING_S)
        while True:
            with self.state:
                if not self.state.wait_for(
                    lambda: self.closed or self._can_fit(key, needed), wait_s
                ):
                    raise self._no_room(key, needed)
                if self.closed:
                    raise NotReady(phase="shutting down", retry_after_s=5)
                if self._fits(key, needed):
                    return
                idle = next((model for model in self.models.values() if not model.in_use), None)
                if idle is None:  # all that is in the way is being closed by another thread
                    if time.monotonic() >= deadline:
                        raise self._no_room(key, needed)
                    self.state.wait(deadline - time.monotonic())
                    continue
                self.forget(idle)
            for callback in self.on_evicted:
                callback(idle.backend)
            self._close(idle)

    def _fits(self, key: ModelRef, needed: int) -> bool:
        loaded = sum(model.memory_bytes for model in self.models.values())
        used = loaded + self._closing_bytes
        has_place = self._has_place(key, self.models.values())
        return has_place and used + needed <= self.limits.memory_budget()

    def _can_fit(self, key: ModelRef, needed: int) -> bool:
        busy = [model for model in self.models.values() if model.in_use]
        used = sum(model.memory_bytes for model in busy)
        has_place = self._has_place(key, busy)
        return has_place and used + needed <= self.limits.memory_budget()

    def _has_place(self, key: ModelRef, models: Iterable[LoadedModel]) -> bool:
        others = {model.key for model in models} - {key}
        return len(others) < self.limits.max_loaded_models

    def _no_room(self, key: ModelRef, needed: int) -> PellucidError:
        busy = [model for model in self.models.values() if model.in_use]
        if not self._has_place(key, busy):
            return NoFreeModelSlot(
                model_id=key.model_id,
                busy=len({model.key for model in busy}),
                max_loaded_models=self.limits.max_loaded_models,
            )
        budget = self.limits.memory_budget()
        return OutOfMemory(
            model_id=key.model_id,
            needed_bytes=needed,
            available_bytes=max(
                0, budget - self._closing_bytes - sum(model.memory_bytes for model in busy)
            ),
            budget_bytes=budget,
        )

    def forget(self, model: LoadedModel) -> LoadedModel:
        """No longer to be found; its memory counts until it is closed. Expects ``state`` held."""
        del self.models[model.place]
        if not any(other.key == model.key for other in self.models.values()):
            self.keys = {ref: key for ref, key in self.keys.items() if key != model.key}
        self._closing_bytes += model.memory_bytes
        return model

    def _close(self, model: LoadedModel) -> int:
        try:
            for callback in self.before_close:
                callback(model.backend)
            model.backend.close()
            logger.info("unloaded %s", model.key.model_id)
        except Exception:  # the request that needs the room must not fail for it
            logger.exception("unloading %s failed", model.key.model_id)
        with self.state:
            self._closing_bytes -= model.memory_bytes
            self.state.notify_all()
        return model.memory_bytes

    def evict(self, models: list[LoadedModel]) -> int:
        """Close these, which are idle and forgotten; returns their bytes."""
        return sum(self._close(model) for model in models)
