"""The Hub over HTTP: what a repository holds, and the bytes of its files.

The errors are sorted by huggingface_hub. Requests are made here and not by its ``HfApi``, because
that one reads the process environment at import (endpoint, stored login, offline switch), waits
without limit in places, and asks the public Hub about the caller before it builds its headers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

from pellucid import __version__
from pellucid.errors import (
    HubUnreachable,
    ModelGatedNotAccepted,
    ModelGatedNoToken,
    ModelNotFound,
    ModelPrivate,
    ModelUnavailable,
)
from pellucid.models.sources.deadline import Deadline
from pellucid.models.sources.names import is_commit
from pellucid.models.sources.repository import RepoFile

_SHA256 = re.compile(r"[0-9a-f]{64}")
# Bytes of one number, by the names that safetensors headers use.
_DTYPE_BITS = {"BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "BF16": 16, "F4": 4, "C64": 64}


_PATIENCE_S = 30.0  # for a whole answer that is small, beyond the wait for its first byte


class StreamBroken(Exception):
    """The bytes of a file stopped coming; asking for the rest may help."""


class TooSlow(Exception):
    """The bytes of a small file did come, but would have gone on coming for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A repository at one commit."""

    commit: str
    files: tuple[RepoFile, ...]
    parameters: Mapping[str, int]  # by dtype, from the safetensors headers; may be empty

    @property
    def num_parameters(self) -> int | None:
        return sum(self.parameters.values()) or None

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all numbers that the safetensors headers announce."""
        return sum(count * _bits_of(dtype) // 8 for dtype, count in self.parameters.items())


class HubClient:
    """Requests to one Hub with one token. ``token`` None: none is sent; a login that some other
    tool has stored on this machine is not used without being asked for."""

    def __init__(self, *, endpoint: str, token: str | None, timeout_s: float) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._token = token
        self._timeout_s = timeout_s

    def list_files(self, model_id: str, revision: str | None) -> Listing:
        """One request for commit, files and sizes.

        Raises ModelNotFound, ModelPrivate, ModelGatedNoToken, ModelGatedNotAccepted,
        HubUnreachable.
        """
        url = f"{self.endpoint}/api/models/{model_id}/revision/{quote(revision or 'main', safe='')}"
        deadline = self._deadline()
        with self._translated(model_id, revision, deadline), deadline, self._session() as session:
            extensions = {"trace": deadline.trace}
            response = session.get(url, params={"blobs": "true"}, extensions=extensions)
            hf_raise_for_status(response)
        try:
            return _listing_of(response.json())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._unreachable(f"what answered is not the Hub ({error!r})") from error

    @contextmanager
    def stream(
        self, model_id: str, commit: str, path: str, *, start: int, limit_s: float | None = None
    ) -> Iterator[tuple[int, Iterator[bytes]]]:
        """The bytes of a file from ``start`` on: (where they really start, chunks).

        A server that ignores ranges starts at 0. The chunks may take as long as each comes in time,
        unless ``limit_s`` bounds them (beyond the time that any answer may take). Raises the errors
        of ``list_files``; StreamBroken and TooSlow while the chunks are read.
        """
        url = f"{self.endpoint}/{model_id}/resolve/{commit}/{quote(path)}"
        headers = {"Accept-Encoding": "identity"}  # offsets count the file's own bytes
        if start:
            headers["Range"] = f"bytes={start}-"
        deadline = self._deadline(limit_s or 0.0)
        with self._translated(model_id, commit, deadline), deadline, self._session() as session:
            extensions = {"trace": deadline.trace}
            try:
                with session.stream("GET", url, headers=headers, extensions=extensions) as response:
                    if limit_s is None and response.is_success:
                        deadline.lift()
                    if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                        raise StreamBroken(f"the Hub has no bytes from {start} on")
                    if response.is_error:
                        response.read()
                    hf_raise_for_status(response)
                    is_partial = response.status_code == HTTPStatus.PARTIAL_CONTENT
                    yield start if is_partial else 0, response.iter_bytes()
            except httpx2.TimeoutException as error:
                raise StreamBroken(f"no byte came within {self._timeout_s:g} s") from error
            except (httpx2.TransportError, httpx2.DecodingError) as error:
                if deadline.passed and limit_s is not None:
                    raise TooSlow(f"it was not there after {deadline.seconds:g} s") from error
                raise StreamBroken(str(error) or type(error).__name__) from error

    def _deadline(self, more_s: float = 0.0) -> Deadline:
        return Deadline(_PATIENCE_S + self._timeout_s + more_s)

    def _session(self) -> httpx2.Client:
        # One per operation: closed with it, so that no socket outlives a download.
        headers = {"User-Agent": f"pellucid/{__version__}"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"  # dropped when redirected elsewhere
        return httpx2.Client(headers=headers, timeout=self._timeout_s, follow_redirects=True)

    @contextmanager
    def _translated(
        self, model_id: str, revision: str | None, deadline: Deadline
    ) -> Iterator[None]:
        try:
            yield
        except HfHubHTTPError as error:
            raise self._meaning(error, model_id, revision) from error
        except httpx2.TimeoutException as error:
            raise self._unreachable(f"no answer within {self._timeout_s:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            if deadline.passed:
                reason = f"no whole answer within {deadline.seconds:g} s"
                raise self._unreachable(reason) from error
            raise self._unreachable(str(error) or type(error).__name__) from error

    def _meaning(
        self, error: HfHubHTTPError, model_id: str, revision: str | None
    ) -> ModelUnavailable:
        """What an answer of the Hub means. Without a token it answers the same for repositories
        that are private and for those that do not exist, and so do we."""
        status = error.response.status_code
        if isinstance(error, GatedRepoError):
            kind = ModelGatedNoToken if self._token is None else ModelGatedNotAccepted
            return kind(model_id=model_id, url=f"{self.endpoint}/{model_id}")
        if isinstance(error, DisabledRepoError):
            return ModelUnavailable(model_id=model_id, reason="the Hub has disabled the repository")
        is_missing = isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError))
        if not is_missing and status in (401, 403) and self._token is not None:
            return ModelPrivate(model_id=model_id)
        if is_missing or status in (401, 403, 404):
            return ModelNotFound(model_id=model_id, revision=revision or "main")
        return self._unreachable(f"it answered with status {status}")

    def _unreachable(self, reason: str) -> HubUnreachable:
        return HubUnreachable(endpoint=self.endpoint, reason=reason)


def _listing_of(answer: Any) -> Listing:
    commit = answer["sha"]
    if not is_commit(commit):
        raise ValueError(f"{commit!r} is not a commit")
    files = tuple(_file_of(sibling) for sibling in answer["siblings"])
    parameters = (answer.get("safetensors") or {}).get("parameters") or {}
    return Listing(
        commit=commit,
        files=files,
        parameters={str(dtype): int(count) for dtype, count in parameters.items()},
    )


def _file_of(sibling: Mapping[str, Any]) -> RepoFile:
    lfs = sibling.get("lfs") or {}
    size = lfs.get("size", sibling["size"])
    sha256, git_sha1 = lfs.get("sha256"), sibling.get("blobId")
    file = RepoFile(
        path=sibling["rfilename"],
        size=int(size),
        sha256=sha256 if sha256 and _SHA256.fullmatch(sha256) else None,
        git_sha1=git_sha1 if is_commit(git_sha1) else None,
    )
    if file.blob_name is None:
        raise ValueError(f"{file.path} comes without a hash")
    return file


def _bits_of(dtype: str) -> int:
    if dtype in _DTYPE_BITS:
        return _DTYPE_BITS[dtype]
    digits = re.search(r"\d+", dtype)  # F32, I64, U8 ...
    return int(digits.group()) if digits else 32
