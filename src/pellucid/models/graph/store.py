"""Graphs on disk: whole or not there, verified before use, made once even by two processes.

One folder per model, in it one folder per key (model, commit, quantization, versions). What is
being written lies beside it under another name and is renamed when it is complete and on disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from pellucid.models.backend import Quantization
from pellucid.models.sources.local_folder import is_fingerprint

FORMAT = 2  # of a folder's files; another number is another key
MANIFEST = "manifest.json"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_NAME = 80
# The tokenizer is stored in its library's own form; how a graph is made is Pellucid's.
_LIBRARIES = ("pellucid", "openvino", "torch", "transformers", "tokenizers")
_BLOCK_BYTES = 1 << 20
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphKey:
    """What a graph depends on. Equal keys mean equal graphs."""

    model_id: str
    revision: str
    quantization: Quantization
    versions: tuple[tuple[str, str], ...]
    format: int = FORMAT

    @classmethod
    def of(cls, model_id: str, revision: str, quantization: Quantization) -> GraphKey:
        """With the versions that are installed."""
        libraries = (*_LIBRARIES, "nncf") if quantization == "int8" else _LIBRARIES
        versions = tuple((name, _version(name)) for name in libraries)
        return cls(
            model_id=model_id, revision=revision, quantization=quantization, versions=versions
        )

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:20]

    @property
    def folder_name(self) -> str:
        """Of the model, for people; the digest is what tells models apart."""
        return _UNSAFE.sub("--", self.model_id).strip(".-")[-_MAX_NAME:] or "model"


class EntryBroken(Exception):
    """A graph's folder is not what it was when it was written; the text says how."""


class GraphStore:
    """All graphs under one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: GraphKey) -> Path:
        return self._root / key.folder_name / key.digest

    def find(self, key: GraphKey) -> Path | None:
        """The verified folder of a graph. A broken one stays until another is published: only
        whoever may write knows that it is still the same. Raises OSError."""
        path = self.path(key)
        if not path.is_dir():
            return None
        try:
            verify(path, key)
        except EntryBroken as broken:
            _logger.warning("The cached graph of %s is made again: %s.", key.model_id, broken)
            return None
        return path

    @contextmanager
    def writing(self, key: GraphKey, *, timeout_s: float) -> Iterator[Path]:
        """Hold the right to make one graph, and an empty folder to make it in.

        Whoever waited looks first whether the graph is there by now. The folder is gone at the end,
        unless ``publish`` was called. Raises OSError, and TimeoutError after ``timeout_s``.
        """
        parent = self.path(key).parent
        parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(WeakFileLock(parent / f"{key.digest}.lock", timeout=timeout_s))
            except TimeoutError as error:
                reason = f"another process has been converting it for {timeout_s:.0f} s"
                raise TimeoutError(reason) from error
            # only the holder of the lock writes, so what lies here was left by a killed one
            for left_over in parent.glob(f".{key.digest}.*"):
                shutil.rmtree(left_over, ignore_errors=True)  # its process may not be gone yet
            partial = Path(tempfile.mkdtemp(prefix=f".{key.digest}.", dir=parent))
            held.callback(shutil.rmtree, partial, ignore_errors=True)
            yield partial

    def publish(self, key: GraphKey, partial: Path) -> Path:
        """Make a complete folder the graph of its key, and remove those that it replaces."""
        path = self.path(key)
        with tempfile.TemporaryDirectory(
            prefix=f".{key.digest}.", dir=path.parent, ignore_cleanup_errors=True
        ) as aside:
            if path.exists():  # broken, or it would have been found
                os.rename(path, Path(aside) / path.name)
            os.rename(partial, path)
        _sync(path.parent)
        for other in path.parent.iterdir():
            if other != path and _is_older(other, key):
                shutil.rmtree(other, ignore_errors=True)
        return path

    def refusal(self, key: GraphKey) -> str | None:
        """Why these versions can never convert this model, if that is known."""
        try:
            refusal = json.loads(self._refusal_path(key).read_text(encoding="utf-8"))
            return str(refusal["reason"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            self._refusal_path(key).unlink(missing_ok=True)
            return None

    def refuse(self, key: GraphKey, reason: str) -> None:
        """Remember that; raises OSError."""
        path = self._refusal_path(key)
        aside = path.with_suffix(".partial")
        aside.write_text(json.dumps({"reason": reason, "key": asdict(key)}), encoding="utf-8")
        os.replace(aside, path)

    def _refusal_path(self, key: GraphKey) -> Path:
        path = self.path(key)
        return path.with_name(f"{path.name}.refused.json")


def seal(folder: Path, key: GraphKey, **facts: Any) -> None:
    """Write the manifest of a complete folder and bring everything to disk. Raises OSError."""
    files = {path.name: _fingerprint(path) for path in sorted(folder.iterdir())}
    manifest = {"key": asdict(key), "files": files, **facts}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        _sync(path)


def verify(folder: Path, key: GraphKey) -> None:
    """Whether every file is as it was written, for this key.

    Raises EntryBroken, and OSError where that cannot be told now: too many open files, say.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, sealed_for = manifest["files"].items(), manifest["key"]
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EntryBroken(f"its manifest cannot be read ({error})") from error
    if sealed_for != json.loads(json.dumps(asdict(key))):
        raise EntryBroken("it was made for another model or other versions")
    for name, expected in files:
        try:
            found = _fingerprint(folder / name)
        except FileNotFoundError as error:
            raise EntryBroken(f"{name} is missing") from error
        if found != expected:
            raise EntryBroken(f"{name} is not as it was written ({found['bytes']} bytes)")


def _fingerprint(path: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _sync(path: Path) -> None:
    if os.name == "nt":  # which flushes neither folders nor files opened for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_older(folder: Path, key: GraphKey) -> bool:
    """Whether a folder holds the same graph as other versions made it, or one of what a folder of
    models held before: no name leads to that any more."""
    try:
        other = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if other.get("model_id") != key.model_id:
        return False
    if other.get("revision") == key.revision:
        return bool(other.get("quantization") == key.quantization)
    return is_fingerprint(str(other.get("revision"))) and is_fingerprint(key.revision)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"
