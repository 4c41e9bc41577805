"""Where a model's files lie: what is handed to the loader, and what is known before that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pellucid.models.backend import ModelRef
from pellucid.progress import ProgressListener, ignore_progress

Origin = Literal["default", "local", "cache", "hub"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A complete model on disk, checked, ready to be loaded with the network off."""

    folder: Path
    model_id: str  # as asked for
    revision: str  # commit; "local-<12 hex>" for a folder without one
    origin: Origin  # "hub": downloaded just now; "cache": it was there


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSize:
    """What a model weighs, known before its weights are downloaded."""

    model_id: str
    revision: str
    weights_bytes: int  # of the one format that is loaded, Dense modules included
    download_bytes: int  # still to fetch, all files; 0 = complete on this machine
    num_parameters: int | None  # where safetensors headers tell it
    origin: Origin  # where it would come from


class ModelLocator(Protocol):
    """The seam between the pool and wherever models come from. Every method blocks: call it in a
    thread. Methods may be called from many threads at once."""

    def resolve(self, ref: ModelRef | None = None) -> ModelRef:
        """The same model with its revision resolved (None = the default model).

        Cheap for folders, the default encoder and full commits; one request otherwise. The key of
        a pool: equal results mean equal files.
        """
        ...

    def locate(
        self, ref: ModelRef | None = None, *, progress: ProgressListener = ignore_progress
    ) -> ModelSource:
        """The model's files, downloaded first where need be (None = the default model).

        Tells ``progress`` either ``model_cached`` or ``download_started`` and
        ``download_progress``. Raises InvalidModelId and the errors under ModelUnavailable.
        """
        ...

    def estimate(self, ref: ModelRef | None = None) -> SourceSize:
        """What the model weighs; downloads nothing. Does not refuse for size.

        Raises InvalidModelId and the errors under ModelUnavailable.
        """
        ...
