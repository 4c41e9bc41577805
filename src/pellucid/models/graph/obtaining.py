"""The graph of a model: from the disk, or converted now and kept."""

from __future__ import annotations

import logging
from pathlib import Path

from pellucid.errors import GraphUnavailable
from pellucid.models.backend import Quantization
from pellucid.models.graph.child import TIMEOUT_S, convert_in_child
from pellucid.models.graph.entry import GraphEntry
from pellucid.models.graph.store import EntryBroken, GraphKey, GraphStore
from pellucid.models.sources.source import ModelSource
from pellucid.progress import ProgressEvent, ProgressListener, ignore_progress

_logger = logging.getLogger(__name__)


def is_kept(source: ModelSource, *, graphs_dir: Path, quantization: Quantization) -> bool:
    """Whether a model's graph lies on the disk, sound or not. Raises OSError."""
    key = GraphKey.of(source.model_id, source.revision, quantization)
    return GraphStore(graphs_dir).path(key).is_dir()


def obtain(
    source: ModelSource,
    *,
    graphs_dir: Path,
    quantization: Quantization,
    trust_remote_code: bool,
    num_threads: int | None,
    progress: ProgressListener = ignore_progress,
) -> tuple[GraphEntry, Path]:
    """A model's graph and its folder; tells ``progress`` when it begins to make one.

    Raises GraphUnavailable: the model has no graph, or none could be made now.
    """
    store = GraphStore(graphs_dir)
    key = GraphKey.of(source.model_id, source.revision, quantization)
    try:
        found = _find(store, key)
        if found is not None:
            return found
        if (reason := store.refusal(key)) is not None:
            raise GraphUnavailable(model_id=source.model_id, reason=reason)
        with store.writing(key, timeout_s=TIMEOUT_S) as partial:
            # another process may have made it while this one waited
            found = _find(store, key)
            if found is not None:
                return found
            _logger.info("%s is converted for OpenVINO, once.", source.model_id)
            progress(ProgressEvent("model_converting", {"model": source.model_id}))
            refusal = convert_in_child(
                source,
                partial,
                quantization=quantization,
                trust_remote_code=trust_remote_code,
                num_threads=num_threads,
            )
            if refusal is not None:
                store.refuse(key, refusal)
                raise GraphUnavailable(model_id=source.model_id, reason=refusal)
            folder = store.publish(key, partial)
            return GraphEntry.read(folder), folder
    except (OSError, EntryBroken) as error:
        reason = f"its graph could not be kept in {graphs_dir} ({error})"
        raise GraphUnavailable(model_id=source.model_id, reason=reason) from error


def _find(store: GraphStore, key: GraphKey) -> tuple[GraphEntry, Path] | None:
    folder = store.find(key)
    if folder is None:
        return None
    try:
        return GraphEntry.read(folder), folder
    except EntryBroken as broken:
        _logger.warning("The cached graph of %s is made again: %s.", key.model_id, broken)
        return None
