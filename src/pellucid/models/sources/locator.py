"""Any model by name: the default encoder, folders of this machine, the Hub's cache, the Hub."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from pellucid.errors import ModelNotFound, ModelTooLarge
from pellucid.models.backend import ModelRef
from pellucid.models.sources import default_encoder
from pellucid.models.sources.default_encoder import DefaultEncoder
from pellucid.models.sources.hub import Hub
from pellucid.models.sources.hub_client import HubClient
from pellucid.models.sources.local_folder import (
    files_of,
    looks_like_path,
    operators_folder,
    permitted_folder,
    reading,
    revision_of,
)
from pellucid.models.sources.names import check_revision
from pellucid.models.sources.remote_code import read_json, refuse_remote_code
from pellucid.models.sources.repository import Selection, check_index, select_files
from pellucid.models.sources.source import ModelSource, Origin, SourceSize
from pellucid.models.sources.weights_header import count_parameters
from pellucid.progress import ProgressEvent, ProgressListener, ignore_progress

if TYPE_CHECKING:
    from pellucid.settings import Settings

_PUBLIC_HUB = "https://huggingface.co"
_logger = logging.getLogger(__name__)


class Locator:
    """The ``ModelLocator`` of a server: asks each place in turn, the nearest first.

    ``default`` is the operator's own model: it alone may be a folder anywhere on this machine.
    Names in requests mean the default encoder, a folder under ``local_models_dir``, or the Hub.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        default: ModelRef,
        default_encoder: DefaultEncoder,
        local_models_dir: Path | None = None,
        max_model_bytes: int,
        trust_remote_code: bool = False,
    ) -> None:
        self._hub = hub
        self._default = default
        self._default_encoder = default_encoder
        self._local_models_dir = local_models_dir
        self._max_model_bytes = max_model_bytes
        self._trust_remote_code = trust_remote_code

    @classmethod
    def of(cls, settings: Settings) -> Locator:
        """The locator that the settings describe."""
        token = settings.hf_token
        client = HubClient(
            endpoint=settings.hub_endpoint,
            token=token.get_secret_value() if token is not None else None,
            timeout_s=settings.hub_timeout_s,
        )
        hub = Hub(
            client,
            cache_dir=settings.hub_cache_dir,
            offline=settings.offline,
            max_model_bytes=settings.max_model_bytes,
            trust_remote_code=settings.trust_remote_code,
        )
        return cls(
            hub,
            default=ModelRef(
                model_id=_without_address(settings.model, settings.hub_endpoint),
                revision=settings.revision,
            ),
            default_encoder=DefaultEncoder(),
            local_models_dir=settings.local_models_dir,
            max_model_bytes=settings.max_model_bytes,
            trust_remote_code=settings.trust_remote_code,
        )

    @property
    def default(self) -> ModelRef:
        """The operator's model as it is named in answers; its revision as it was asked for."""
        return self._default

    def resolve(self, ref: ModelRef | None = None) -> ModelRef:
        ref = self._checked(ref)
        if self._default_encoder.answers_to(ref):
            return ModelRef(model_id=default_encoder.MODEL_ID, revision=default_encoder.REVISION)
        folder = self._folder(ref)
        if folder is not None:
            return ModelRef(model_id=ref.model_id, revision=_revision(ref, folder))
        return self._hub.resolve(ref)

    def locate(
        self, ref: ModelRef | None = None, *, progress: ProgressListener = ignore_progress
    ) -> ModelSource:
        ref = self._checked(ref)
        if self._default_encoder.answers_to(ref):
            source = ModelSource(
                folder=self._default_encoder.checked_folder(),
                model_id=default_encoder.MODEL_ID,
                revision=default_encoder.REVISION,
                origin="default",
            )
            self._refuse(source)
        else:
            folder = self._folder(ref)
            if folder is None:
                return self._hub.fetch(ref, progress=progress)
            source = ModelSource(
                folder=folder,
                model_id=ref.model_id,
                revision=_revision(ref, folder),
                origin="local",
            )
            self._refuse(source)
        progress(ProgressEvent("model_cached", {"model": source.model_id}))
        return source

    def estimate(self, ref: ModelRef | None = None) -> SourceSize:
        ref = self._checked(ref)
        if self._default_encoder.answers_to(ref):
            return _size(
                self._default_encoder.checked_folder(),
                ModelRef(model_id=default_encoder.MODEL_ID, revision=default_encoder.REVISION),
                origin="default",
            )
        folder = self._folder(ref)
        if folder is None:
            return self._hub.estimate(ref)
        at_revision = ModelRef(model_id=ref.model_id, revision=_revision(ref, folder))
        return _size(folder, at_revision, origin="local")

    def _checked(self, ref: ModelRef | None) -> ModelRef:
        ref = self._default if ref is None else ref
        check_revision(ref.revision, model_id=ref.model_id)
        return ref

    def _folder(self, ref: ModelRef) -> Path | None:
        if ref.model_id == self._default.model_id:
            folder = operators_folder(ref.model_id)
            if folder is not None:
                return folder
            if looks_like_path(ref.model_id):
                raise ModelNotFound(model_id=ref.model_id, revision=ref.revision or "(any)")
        return permitted_folder(ref.model_id, self._local_models_dir)

    def _refuse(self, source: ModelSource) -> None:
        """What holds for the Hub holds for folders: weights there, not too large, no code run."""
        size_bytes = _select(source.folder, source.model_id).weights_bytes
        if size_bytes > self._max_model_bytes:
            raise ModelTooLarge(
                model_id=source.model_id, size_bytes=size_bytes, limit_bytes=self._max_model_bytes
            )
        if not self._trust_remote_code:
            refuse_remote_code(source.folder, model_id=source.model_id)


def _without_address(model: str, endpoint: str) -> str:
    """``MODEL_REPO_URL`` of an earlier system holds an address: only the name in it is meant."""
    for address in (endpoint.rstrip("/"), _PUBLIC_HUB):
        if model.startswith(f"{address}/"):
            return model.removeprefix(f"{address}/").rstrip("/")
    return model


def _revision(ref: ModelRef, folder: Path) -> str:
    """The folder's revision; another one that was asked for by name is not there."""
    with reading(folder, model_id=ref.model_id):
        revision = revision_of(folder)
    if ref.revision not in (None, revision):
        raise ModelNotFound(model_id=ref.model_id, revision=ref.revision)
    return revision


def _select(folder: Path, model_id: str) -> Selection:
    with reading(folder, model_id=model_id):
        selection = select_files(files_of(folder), model_id=model_id, with_code=False)
        indexes = {
            path: read_json(folder / path, model_id=model_id) for path in selection.index_paths
        }
    return check_index(selection, indexes, model_id=model_id)


def _size(folder: Path, ref: ModelRef, *, origin: Origin) -> SourceSize:
    selection = _select(folder, ref.model_id)
    with reading(folder, model_id=ref.model_id):
        num_parameters = count_parameters(folder / file.path for file in selection.weights)
    return SourceSize(
        model_id=ref.model_id,
        revision=ref.revision or "",
        weights_bytes=selection.weights_bytes,
        download_bytes=0,
        num_parameters=num_parameters,
        origin=origin,
    )
