"""Tiny models, loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pellucid.models.sources.source import ModelSource
from pellucid.models.transformers_backend import TransformersBackend

TinyFolder = Callable[[str], Path]
TinyBackend = Callable[[str], TransformersBackend]


def source_of(folder: Path) -> ModelSource:
    return ModelSource(
        folder=folder, model_id=f"tiny/{folder.name}", revision="local-0", origin="local"
    )


def load_tiny(folder: Path, **options: Any) -> TransformersBackend:
    """Loaded on the CPU in float32, unless told otherwise."""
    return TransformersBackend.load(
        source_of(folder), **{"device": "cpu", "dtype": "float32", "num_threads": 1, **options}
    )
