"""One file of the Hub onto this disk: resumed where it broke off, checked before it is used."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from pellucid.errors import DownloadFailed, HubUnreachable, WeightsCorrupt
from pellucid.models.sources.hub_client import HubClient, StreamBroken, TooSlow
from pellucid.models.sources.repository import RepoFile
from pellucid.progress import ProgressEvent, ProgressListener

_ATTEMPTS = 3  # in a row without one new byte; each waits up to the Hub's timeout
_PAUSE_S = 0.5
_EVENTS_INTERVAL_S = 0.25
_SMALL_BYTES = 20_000_000  # above: weights, which may take as long as there is progress
_SLOWEST_BYTES_PER_S = 20_000  # that a small file may come with
_logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class DownloadMeter:
    """Counts the bytes of all files of one model and tells the listener a few times a second."""

    model_id: str
    total_bytes: int
    progress: ProgressListener
    clock: Callable[[], float] = time.monotonic
    _received_bytes: int = 0
    _resumed_bytes: int = 0
    _started_s: float | None = None
    _told_s: float = field(default=-1.0)

    def start(self) -> None:
        self._started_s = self.clock()
        self.progress(ProgressEvent("download_started", {"model": self.model_id}))

    def resume(self, num_bytes: int) -> None:
        """Bytes that were on disk already (negative: those that had to be thrown away)."""
        self._received_bytes += num_bytes
        self._resumed_bytes += num_bytes

    def add(self, num_bytes: int) -> None:
        """Bytes that just came."""
        now = self.clock()
        if self._started_s is None:
            self._started_s = now
        self._received_bytes += num_bytes
        is_done = self._received_bytes >= self.total_bytes
        if is_done or self._told_s < 0 or now - self._told_s >= _EVENTS_INTERVAL_S:
            self._told_s = now
            self.progress(ProgressEvent("download_progress", self._figures(now - self._started_s)))

    def _figures(self, elapsed_s: float) -> dict[str, object]:
        fetched = self._received_bytes - self._resumed_bytes
        remaining = max(self.total_bytes - self._received_bytes, 0)
        eta_s = round(remaining * elapsed_s / fetched, 1) if fetched > 0 and elapsed_s > 0 else None
        return {
            "model": self.model_id,
            "bytes": self._received_bytes,
            "total": self.total_bytes,
            "eta": 0.0 if remaining == 0 else eta_s,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """One content that has to come to ``blob``. Bytes gather in ``<blob>.partial``, which outlives
    a failure and the process; ``blob`` appears only when size and hash are right."""

    client: HubClient
    model_id: str
    commit: str
    file: RepoFile
    blob: Path
    lock: Path

    @property
    def partial(self) -> Path:
        return self.blob.with_name(self.blob.name + ".partial")

    def run(self, meter: DownloadMeter) -> None:
        """Fetch what is missing and check the whole.

        Raises DownloadFailed (ask again, it goes on from there), WeightsCorrupt (thrown away), and
        the errors of ``HubClient.list_files``.
        """
        self.blob.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(self.lock):
            if self._is_finished():  # by another process meanwhile
                meter.resume(self.file.size)
                return
            was_resumed = self._start_with_partial(meter)
            try:
                self._fetch_checked(meter, may_start_over=was_resumed)
            except OSError as error:  # the disk: full, or failing
                raise self._failed(error.strerror or str(error)) from error

    def _is_finished(self) -> bool:
        return self.blob.is_file() and self.blob.stat().st_size == self.file.size

    def _start_with_partial(self, meter: DownloadMeter) -> bool:
        size = self._partial_bytes()
        if size > self.file.size:
            self.partial.unlink()
            return False
        meter.resume(size)
        return size > 0

    def _fetch_checked(self, meter: DownloadMeter, *, may_start_over: bool) -> None:
        self._fetch(meter)
        expected = self.file.blob_name
        actual = self._hash()
        if actual == expected:
            self.partial.replace(self.blob)
            return
        self.partial.unlink()  # never the start of a later attempt
        if may_start_over:
            _logger.warning(
                "%s of %s was damaged on disk: once more", self.file.path, self.model_id
            )
            meter.resume(-self.file.size)
            self._fetch_checked(meter, may_start_over=False)
            return
        raise WeightsCorrupt(
            model_id=self.model_id, file=self.file.path, actual=actual, expected=expected
        )

    def _fetch(self, meter: DownloadMeter) -> None:
        """Ask for the rest until all is there; give up after some attempts without a new byte."""
        failures = 0
        while (received := self._partial_bytes()) < self.file.size:
            try:
                self._fetch_once(received, meter)
                reason = "the connection ended early"
            except (StreamBroken, HubUnreachable) as error:
                reason = error.facts["reason"] if isinstance(error, HubUnreachable) else str(error)
            except TooSlow as error:
                raise self._failed(str(error)) from error
            if (now_received := self._partial_bytes()) == self.file.size:
                break
            failures = failures + 1 if now_received <= received else 0
            if failures >= _ATTEMPTS:
                raise self._failed(reason)
            _logger.info("%s of %s broke off: %s", self.file.path, self.model_id, reason)
            time.sleep(_PAUSE_S)
        self.partial.touch()  # a file of no bytes

    def _fetch_once(self, start: int, meter: DownloadMeter) -> None:
        size = self.file.size
        limit_s = size / _SLOWEST_BYTES_PER_S if size <= _SMALL_BYTES else None
        stream = self.client.stream(
            self.model_id, self.commit, self.file.path, start=start, limit_s=limit_s
        )
        with stream as (begins_at, chunks), self.partial.open("ab") as partial:
            if begins_at < start:  # the server ignored the range
                partial.truncate(begins_at)
                meter.resume(begins_at - start)
            room = self.file.size - begins_at
            for chunk in chunks:
                kept = chunk[:room]
                partial.write(kept)
                room -= len(kept)
                meter.add(len(kept))
                if len(kept) < len(chunk):
                    break  # more than was announced: the hash will tell whether this is it

    def _partial_bytes(self) -> int:
        return self.partial.stat().st_size if self.partial.is_file() else 0

    def _hash(self) -> str:
        """sha-256 of files in LFS; git's blob id (sha-1 with a header) of the others."""
        with self.partial.open("rb") as partial:
            if self.file.sha256 is not None:
                return hashlib.file_digest(partial, "sha256").hexdigest()
            # git names contents by SHA-1; here it finds damage, it guards against nobody.
            digest = hashlib.sha1(f"blob {self.file.size}\0".encode(), usedforsecurity=False)
            while piece := partial.read(1 << 20):
                digest.update(piece)
            return digest.hexdigest()

    def _failed(self, reason: str) -> DownloadFailed:
        return DownloadFailed(
            model_id=self.model_id,
            file=self.file.path,
            received_bytes=self._partial_bytes(),
            size_bytes=self.file.size,
            reason=reason,
        )
