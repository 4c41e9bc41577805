"""Models in folders of this machine: which may be named, what they hold, what identifies them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pellucid.errors import InvalidModelId, ModelLoadFailed
from pellucid.models.sources.names import check_part, is_commit
from pellucid.models.sources.repository import RepoFile
from pellucid.models.sources.weights_header import HeaderUnreadable, read_header

_SMALL_BYTES = 20_000_000  # tokenizer.json of large vocabularies is below; weights are above
_FINGERPRINT = "local-"
_FINGERPRINT_DIGITS = 12
_MAX_DEPTH = 2  # files of a model lie in its folder and in its modules' folders
_LOOKS_LIKE_PATH = re.compile(r"[/\\~]|\.{1,2}([/\\]|$)|[A-Za-z]:[/\\]")


def looks_like_path(name: str) -> bool:
    """Whether a name can only mean a folder: absolute, ``./x``, ``../x``, ``~/x``, ``C:\\x``."""
    return _LOOKS_LIKE_PATH.match(name) is not None


def operators_folder(name: str) -> Path | None:
    """The folder that the operator's own setting means; None if there is none.

    It may lie anywhere: whoever configures the server may read its disk already. A relative name
    such as ``gpt2`` means a folder only if a model lies in it, else the Hub.
    """
    folder = Path(name).expanduser()
    holds_model = any((folder / file).is_file() for file in ("config.json", "modules.json"))
    return folder.resolve() if holds_model or (looks_like_path(name) and folder.is_dir()) else None


def permitted_folder(name: str, local_models_dir: Path | None) -> Path | None:
    """The folder that a request's model name means; None if it may still be a name on the Hub.

    Raises InvalidModelId for every path that does not end inside ``local_models_dir``, without
    telling whether it exists.
    """
    is_absolute = name.startswith("/")
    if "\0" in name or "\\" in name or name.startswith("~"):
        raise InvalidModelId(model_id=name, reason="it holds characters of paths")
    if is_absolute and {".", ".."} & set(name.split("/")):
        raise InvalidModelId(model_id=name, reason="`.` and `..` are not allowed")
    for part in () if is_absolute else name.split("/"):
        check_part(part, model_id=name)
    if local_models_dir is None:
        if is_absolute:
            raise InvalidModelId(model_id=name, reason="this server has no folder for models")
        return None
    root = local_models_dir.expanduser().resolve()
    folder = (root / name).resolve()  # follows links, so that one that leads out is seen
    if not folder.is_relative_to(root) or folder == root:
        raise InvalidModelId(model_id=name, reason="it leads out of the folder for models")
    if folder.is_dir():
        return folder
    if is_absolute:
        raise InvalidModelId(model_id=name, reason="there is no such folder")
    return None


@contextmanager
def reading(folder: Path, *, model_id: str) -> Iterator[None]:
    """What goes wrong with a file of the folder as ModelLoadFailed that names it."""
    try:
        yield
    except OSError as error:
        path = Path(error.filename or folder)
        name = path.relative_to(folder) if path.is_relative_to(folder) else path.name
        reason = f"{name} cannot be read: {error.strerror or error}"
        if path.is_symlink() and not path.exists():
            reason = f"{name} is a link to a file that is not there"
        raise ModelLoadFailed(model_id=model_id, reason=reason) from error


def files_of(folder: Path) -> Iterator[RepoFile]:
    """The files of a model's folder and of its modules' folders, in order."""
    for directory, subfolders, names in os.walk(folder):
        relative = Path(directory).relative_to(folder)
        depth = len(relative.parts)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if depth + 1 > _MAX_DEPTH:
            subfolders.clear()
        for name in sorted(names):
            path = relative / name
            yield RepoFile(path=path.as_posix(), size=(folder / path).stat().st_size)


def revision_of(folder: Path) -> str:
    """What identifies the folder's content: its commit if it is a snapshot of the Hub cache, else
    ``local-`` and 12 hex digits that change whenever a file may have changed.

    Small files are hashed whole; of larger ones the name, the size, the time of the last change
    and the safetensors header (reading gigabytes at every start would cost more than it tells).
    """
    if is_commit(folder.name) and folder.parent.name == "snapshots":
        return folder.name
    digest = hashlib.sha256()
    for file in files_of(folder):
        content = _fingerprint(folder / file.path, size=file.size)
        for piece in (file.path.encode(), str(file.size).encode(), content):
            digest.update(len(piece).to_bytes(8, "big"))  # no two lists of pieces look the same
            digest.update(piece)
    return f"{_FINGERPRINT}{digest.hexdigest()[:_FINGERPRINT_DIGITS]}"


def is_fingerprint(revision: str) -> bool:
    """Whether a revision tells what a folder held, not which commit a model is."""
    return revision.startswith(_FINGERPRINT)


def _fingerprint(path: Path, *, size: int) -> bytes:
    if size <= _SMALL_BYTES:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    changed_ns = str(path.stat().st_mtime_ns).encode()
    if path.suffix != ".safetensors":
        return changed_ns
    try:
        return changed_ns + hashlib.sha256(read_header(path)).digest()
    except HeaderUnreadable:
        return changed_ns  # loading will say what is wrong with it
