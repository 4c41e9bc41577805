"""The engine that the settings describe: where models come from, what they may take."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

from pellucid.errors import GraphUnavailable
from pellucid.inference.events import IGNORED, InferenceEvents
from pellucid.inference.local_engine import LocalEngine
from pellucid.models import machine
from pellucid.models.backend import Backend, Runtime
from pellucid.models.machine import runs_on_cpu
from pellucid.models.pool import Loader, ModelPool, PoolLimits
from pellucid.models.sources.source import ModelSource, SourceSize
from pellucid.progress import ProgressListener, ignore_progress
from pellucid.settings import Settings

_BUDGET_SHARE = 0.6  # of the device's memory, where no budget is set
_GRAPH_BYTES_PER_PARAMETER = 6  # float32 as stored, and bfloat16 as computed with


def build_engine(
    settings: Settings,
    progress: ProgressListener = ignore_progress,
    *,
    events: InferenceEvents = IGNORED,
) -> LocalEngine:
    """The engine that the settings describe. torch is imported when the first model is loaded."""
    from pellucid.models.sources.locator import Locator

    limits = PoolLimits(
        memory_budget=_memory_budget(settings),
        max_loaded_models=settings.max_loaded_models,
        max_waiting=settings.max_waiting,
    )
    pool = ModelPool(
        Locator.of(settings),
        _loader(settings, progress),
        limits=limits,
        memory_of=lambda size, runtime: _memory_of(size, runtime, settings),
        progress=progress,
        prepare=_converter(settings, progress),
    )
    return LocalEngine(pool, settings, embeds_with=_embedding_runtime(settings), events=events)


def _embedding_runtime(settings: Settings) -> Runtime:
    """What embeddings are tried with first."""
    if settings.embedding_runtime == "auto":
        return "openvino" if runs_on_cpu(settings.device) else "torch"
    return settings.embedding_runtime


def _converter(
    settings: Settings, progress: ProgressListener
) -> Callable[[ModelSource, Runtime], None]:
    """Makes the graph that a model lacks, which may take minutes; one at a time."""
    converting = threading.Lock()

    def convert(source: ModelSource, runtime: Runtime) -> None:
        from pellucid.models.graph.eligibility import require_encoder
        from pellucid.models.graph.obtaining import is_kept, obtain

        if runtime == "torch":
            return
        _require_openvino(source)
        require_encoder(source)
        graphs_dir, quantization = _graphs_dir(settings), settings.quantization
        if is_kept(source, graphs_dir=graphs_dir, quantization=quantization):
            return
        with converting:
            obtain(
                source,
                graphs_dir=graphs_dir,
                quantization=quantization,
                trust_remote_code=settings.trust_remote_code,
                num_threads=settings.num_threads,
                progress=progress,
            )

    return convert


def _require_openvino(source: ModelSource) -> None:
    """Raises GraphUnavailable."""
    try:
        import pellucid.models.openvino_backend  # noqa: F401
    except ImportError as error:  # a library that this machine lacks, say
        reason = f"OpenVINO cannot be imported ({error})"
        raise GraphUnavailable(model_id=source.model_id, reason=reason) from error


def _graphs_dir(settings: Settings) -> Path:
    return settings.data_dir.expanduser() / "graphs"


def _loader(settings: Settings, progress: ProgressListener) -> Loader:
    def load(source: ModelSource, runtime: Runtime) -> Backend:
        return load_graph(source) if runtime == "openvino" else load_transformer(source)

    def load_graph(source: ModelSource) -> Backend:
        from pellucid.models.openvino_backend import OpenVinoBackend

        return OpenVinoBackend.load(
            source,
            graphs_dir=_graphs_dir(settings),
            quantization=settings.quantization,
            precision=settings.embedding_precision,
            min_parity=settings.min_parity,
            num_threads=settings.num_threads,
            trust_remote_code=settings.trust_remote_code,
            progress=progress,
        )

    def load_transformer(source: ModelSource) -> Backend:
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
        if runs_on_cpu(settings.device):
            return int(machine.memory_bytes() * _BUDGET_SHARE)
        from pellucid.models.device import device_memory_bytes

        return int(device_memory_bytes(settings.device) * _BUDGET_SHARE)

    return budget


def _memory_of(size: SourceSize, runtime: Runtime, settings: Settings) -> int:
    """Bytes once loaded: weights may be stored in another dtype than they are used in."""
    if size.num_parameters is None:
        return size.weights_bytes
    if runtime == "openvino":
        return size.num_parameters * _GRAPH_BYTES_PER_PARAMETER
    from pellucid.models.device import bytes_per_parameter

    return size.num_parameters * bytes_per_parameter(settings.dtype, settings.device)
