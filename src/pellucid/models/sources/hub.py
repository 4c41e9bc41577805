"""Models from the Hub: sizes before anything is fetched, files once, cached for good."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from pellucid.errors import DownloadFailed, HubUnreachable, ModelOffline, ModelTooLarge
from pellucid.models.backend import ModelRef
from pellucid.models.sources.download import Download, DownloadMeter
from pellucid.models.sources.hub_cache import HubCache, cache_root
from pellucid.models.sources.hub_client import HubClient, Listing
from pellucid.models.sources.names import check_hub_id, check_revision, is_commit
from pellucid.models.sources.remote_code import read_json, refuse_remote_code
from pellucid.models.sources.repository import RepoFile, Selection, check_index, select_files
from pellucid.models.sources.source import ModelSource, Origin, SourceSize
from pellucid.models.sources.weights_header import count_parameters
from pellucid.progress import ProgressEvent, ProgressListener, ignore_progress

_logger = logging.getLogger(__name__)


class Hub:
    """Repositories of one Hub, cached in one folder (None: where the Hub's own tools cache).

    Every method blocks. Raises InvalidModelId and the errors under ModelUnavailable: ModelOffline
    when ``offline`` forbids to ask, HubUnreachable when asking was in vain; in both cases a
    complete snapshot in the cache is used instead if there is one.
    """

    def __init__(
        self,
        client: HubClient,
        *,
        cache_dir: Path | None = None,
        offline: bool = False,
        max_model_bytes: int,
        trust_remote_code: bool = False,
    ) -> None:
        self._client = client
        self._cache_dir = cache_root(cache_dir)
        self._offline = offline
        self._max_model_bytes = max_model_bytes
        self._trust_remote_code = trust_remote_code

    def resolve(self, ref: ModelRef) -> ModelRef:
        """The same model at a commit: what the Hub says now, else what the cache remembers."""
        cache = self._cache(ref)
        if is_commit(ref.revision):
            return ref
        listing = self._ask(ref, cache)
        commit = listing.commit if listing is not None else cache.commit_of(ref.revision)
        if commit is None:
            raise ModelOffline(model_id=ref.model_id)
        return ModelRef(model_id=ref.model_id, revision=commit)

    def estimate(self, ref: ModelRef) -> SourceSize:
        """Sizes from one request (safetensors headers, else files), or from the cache."""
        cache = self._cache(ref)
        if is_commit(ref.revision) and (cached := self._cached(ref, cache)) is not None:
            return self._cached_size(ref, *cached, cache)  # a commit never changes
        listing = self._ask(ref, cache)
        if listing is None:
            return self._cached_size(ref, *self._cached_or_offline(ref, cache), cache)
        selection = self._select(ref, listing.files)
        missing = _missing(selection, listing.commit, cache)
        return SourceSize(
            model_id=ref.model_id,
            revision=listing.commit,
            weights_bytes=listing.parameter_bytes or selection.weights_bytes,
            download_bytes=sum(file.size for file in missing),
            num_parameters=listing.num_parameters,
            origin="hub" if missing else "cache",
        )

    def fetch(self, ref: ModelRef, *, progress: ProgressListener = ignore_progress) -> ModelSource:
        """All files that loading needs, on disk and checked."""
        cache = self._cache(ref)
        if is_commit(ref.revision) and (cached := self._cached(ref, cache)) is not None:
            return self._use_cached(ref, *cached, cache, progress)
        listing = self._ask(ref, cache)
        if listing is None:
            return self._use_cached(ref, *self._cached_or_offline(ref, cache), cache, progress)
        selection = self._select(ref, listing.files)
        self._refuse_size(ref, max(listing.parameter_bytes, selection.weights_bytes))
        cache.remember(revision=ref.revision, commit=listing.commit, files=listing.files)
        at_commit = ModelRef(model_id=ref.model_id, revision=listing.commit)
        if (cached := self._cached(at_commit, cache)) is not None:
            return self._use_cached(ref, *cached, cache, progress)
        try:
            self._download(ref, listing.commit, selection, cache, progress)
        except OSError as error:  # the disk: full, or not writable
            raise _disk_failed(ref, error) from error
        return self._source(ref, listing.commit, cache, origin="hub")

    def _cache(self, ref: ModelRef) -> HubCache:
        check_hub_id(ref.model_id)
        check_revision(ref.revision, model_id=ref.model_id)
        return HubCache(self._cache_dir, ref.model_id)

    def _ask(self, ref: ModelRef, cache: HubCache) -> Listing | None:
        """What the Hub says; None when it may not be asked, or did not answer but the cache has
        the model. Raises HubUnreachable otherwise."""
        if self._offline:
            return None
        try:
            return self._client.list_files(ref.model_id, ref.revision)
        except HubUnreachable as error:
            if self._cached(ref, cache) is None:
                raise
            _logger.warning("%s is taken from the cache: %s", ref.model_id, error)
            return None

    def _cached(self, ref: ModelRef, cache: HubCache) -> tuple[str, Selection] | None:
        commit = cache.commit_of(ref.revision)
        if commit is None:
            return None
        selection = cache.selection(commit, with_code=self._trust_remote_code)
        return (commit, selection) if selection is not None else None

    def _cached_or_offline(self, ref: ModelRef, cache: HubCache) -> tuple[str, Selection]:
        cached = self._cached(ref, cache)
        if cached is None:
            raise ModelOffline(model_id=ref.model_id, revision=ref.revision or "main")
        return cached

    def _cached_size(
        self, ref: ModelRef, commit: str, selection: Selection, cache: HubCache
    ) -> SourceSize:
        folder = cache.snapshot(commit)
        return SourceSize(
            model_id=ref.model_id,
            revision=commit,
            weights_bytes=selection.weights_bytes,
            download_bytes=0,
            num_parameters=count_parameters(folder / file.path for file in selection.weights),
            origin="cache",
        )

    def _use_cached(
        self,
        ref: ModelRef,
        commit: str,
        selection: Selection,
        cache: HubCache,
        progress: ProgressListener,
    ) -> ModelSource:
        self._refuse_size(ref, selection.weights_bytes)
        self._refuse_code(ref, cache.snapshot(commit))
        progress(ProgressEvent("model_cached", {"model": ref.model_id}))
        return self._source(ref, commit, cache, origin="cache")

    def _source(
        self, ref: ModelRef, commit: str, cache: HubCache, *, origin: Origin
    ) -> ModelSource:
        return ModelSource(
            folder=cache.snapshot(commit), model_id=ref.model_id, revision=commit, origin=origin
        )

    def _select(self, ref: ModelRef, files: Iterable[RepoFile]) -> Selection:
        return select_files(files, model_id=ref.model_id, with_code=self._trust_remote_code)

    def _refuse_size(self, ref: ModelRef, size_bytes: int) -> None:
        if size_bytes > self._max_model_bytes:
            raise ModelTooLarge(
                model_id=ref.model_id, size_bytes=size_bytes, limit_bytes=self._max_model_bytes
            )

    def _refuse_code(self, ref: ModelRef, folder: Path) -> None:
        if not self._trust_remote_code:
            refuse_remote_code(folder, model_id=ref.model_id)

    def _download(
        self,
        ref: ModelRef,
        commit: str,
        selection: Selection,
        cache: HubCache,
        progress: ProgressListener,
    ) -> None:
        """Small files first: they tell whether the weights could be used at all."""
        quiet = DownloadMeter(model_id=ref.model_id, total_bytes=0, progress=ignore_progress)
        self._fetch_all(ref, commit, selection.small, cache, quiet)
        folder = cache.snapshot(commit)
        self._refuse_code(ref, folder)
        indexes = {
            path: read_json(folder / path, model_id=ref.model_id) for path in selection.index_paths
        }
        selection = check_index(selection, indexes, model_id=ref.model_id)
        missing = _missing(selection, commit, cache)
        total_bytes = sum(file.size for file in missing)
        self._refuse_full_disk(ref, missing, total_bytes)
        meter = DownloadMeter(model_id=ref.model_id, total_bytes=total_bytes, progress=progress)
        meter.start()
        self._fetch_all(ref, commit, missing, cache, meter)

    def _fetch_all(
        self,
        ref: ModelRef,
        commit: str,
        files: Iterable[RepoFile],
        cache: HubCache,
        meter: DownloadMeter,
    ) -> None:
        for file in files:
            if cache.has(commit, file):
                continue
            download = Download(
                client=self._client,
                model_id=ref.model_id,
                commit=commit,
                file=file,
                blob=cache.blob(file),
                lock=cache.lock(file),
            )
            download.run(meter)
            cache.place(commit, file)

    def _refuse_full_disk(self, ref: ModelRef, missing: list[RepoFile], total_bytes: int) -> None:
        free_bytes = shutil.disk_usage(self._cache_dir).free
        if total_bytes > free_bytes:
            raise DownloadFailed(
                model_id=ref.model_id,
                file=missing[0].path,
                received_bytes=0,
                size_bytes=total_bytes,
                reason=f"the disk of {self._cache_dir} has {free_bytes} bytes free",
            )


def _missing(selection: Selection, commit: str, cache: HubCache) -> list[RepoFile]:
    return [file for file in selection.files if not cache.has(commit, file)]


def _disk_failed(ref: ModelRef, error: OSError) -> DownloadFailed:
    return DownloadFailed(
        model_id=ref.model_id,
        file=str(error.filename or "a file"),
        received_bytes=0,
        size_bytes=0,
        reason=error.strerror or str(error),
    )
