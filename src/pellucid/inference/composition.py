"""The engine that the settings describe: where models come from, what they may take."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from pellucid.inference.local_engine import LocalEngine
from pellucid.models.backend import Backend
from pellucid.models.pool import Loader, ModelPool, PoolLimits
from pellucid.models.sources.source import ModelSource, SourceSize
from pellucid.progress import ProgressListener, ignore_progress
from pellucid.settings import Settings

_BUDGET_SHARE = 0.6  # of the device's memory, where no budget is set


def build_engine(settings: Settings, progress: ProgressListener = ignore_progress) -> LocalEngine:
    """The engine that the settings describe. torch is imported when the first model is loaded."""
    from pellucid.models.sources.locator import Locator

    limits = PoolLimits(
        memory_budget=_memory_budget(settings),
        max_loaded_models=settings.max_loaded_models,
        max_waiting=settings.max_waiting,
    )
    pool = ModelPool(
        Locator.of(settings),
        _loader(settings),
        limits=limits,
        memory_of=lambda size: _memory_of(size, settings),
        progress=progress,
    )
    return LocalEngine(pool, settings)


def _loader(settings: Settings) -> Loader:
    def load(source: ModelSource) -> Backend:
        from pellucid.models.transformers_backend import TransformersBackend

        return TransformersBackend.load(
            source,
            device=settings.device,
            dtype=settings.dtype,
            trust_remote_code=settings.trust_remote_code,
            num_threads=settings.num_threads,
        )

    return load


def _memory_budget(settings: Settings) -> Callable[[], int]:
    @cache
    def budget() -> int:
        if settings.memory_budget_bytes is not None:
            return settings.memory_budget_bytes
        from pellucid.models.device import device_memory_bytes

        return int(device_memory_bytes(settings.device) * _BUDGET_SHARE)

    return budget


def _memory_of(size: SourceSize, settings: Settings) -> int:
    """Bytes once loaded: weights may be stored in another dtype than they are used in."""
    if size.num_parameters is None:
        return size.weights_bytes
    from pellucid.models.device import bytes_per_parameter

    return size.num_parameters * bytes_per_parameter(settings.dtype, settings.device)
