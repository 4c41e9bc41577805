"""The Hub's cache of one repository on disk, in huggingface_hub's own layout.

    models--owner--name/
        refs/main                    the commit that a branch meant last
        blobs/<hash>                 contents, named by their hash; <hash>.partial while they come
        snapshots/<commit>/<path>    links to blobs
        trees/<commit>.json          which files the commit has, with sizes

Other tools on this machine share it. A snapshot counts as complete only when every file that
loading needs is there in its full size.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from pellucid.errors import ModelLoadFailed, NoLoadableWeights
from pellucid.models.sources.local_folder import files_of
from pellucid.models.sources.names import is_commit
from pellucid.models.sources.remote_code import read_json
from pellucid.models.sources.repository import RepoFile, Selection, check_index, select_files

_TREE_FORMAT = 1  # huggingface_hub's number for this form of trees/<commit>.json
_logger = logging.getLogger(__name__)


def cache_root(configured: Path | None) -> Path:
    """The folder of all repositories; None: where the Hub's own tools cache."""
    return Path(configured or HF_HUB_CACHE).expanduser()


class HubCache:
    """One repository in the cache folder ``root``."""

    def __init__(self, root: Path, model_id: str) -> None:
        self._model_id = model_id
        name = repo_folder_name(repo_id=model_id, repo_type="model")
        self._folder = root / name
        self._locks = root / ".locks" / name

    def commit_of(self, revision: str | None) -> str | None:
        """The commit that a revision is, or meant when the Hub was last asked."""
        if revision is not None and is_commit(revision):
            return revision
        path = self._folder / "refs" / (revision or "main")
        commit = path.read_text(encoding="utf-8").strip() if path.is_file() else None
        return commit if is_commit(commit) else None

    def snapshot(self, commit: str) -> Path:
        return self._folder / "snapshots" / commit

    def blob(self, file: RepoFile) -> Path:
        """Where its content lies, for every commit that has the same content."""
        if file.blob_name is None:
            raise ValueError(f"{file.path} has no hash")
        return self._folder / "blobs" / file.blob_name

    def lock(self, file: RepoFile) -> Path:
        """The lock that huggingface_hub takes as well while it downloads this content."""
        path = self._locks / f"{self.blob(file).name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def has(self, commit: str, file: RepoFile) -> bool:
        """Whether the file is in the snapshot, in full."""
        path = self.snapshot(commit) / file.path
        return path.is_file() and path.stat().st_size == file.size

    def place(self, commit: str, file: RepoFile) -> None:
        """Let the snapshot's file be the finished blob; what stood there before gives way."""
        path = self.snapshot(commit) / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        blob = self.blob(file)
        staged = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            staged.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:  # a file system without links
            blob.replace(staged)
        staged.replace(path)

    def remember(self, *, revision: str | None, commit: str, files: Iterable[RepoFile]) -> None:
        """Note what the revision means and which files the commit has, before any is fetched.

        A cache that may only be read is good enough for a model that is in it.
        """
        tree = self._folder / "trees" / f"{commit}.json"
        try:
            if not is_commit(revision) and self.commit_of(revision) != commit:
                _write(self._folder / "refs" / (revision or "main"), commit)
            if not tree.is_file():
                entries = {file.path: _entry_of(file) for file in files}
                _write(tree, json.dumps({"format_version": _TREE_FORMAT, "files": entries}))
        except OSError as error:
            _logger.warning("The cache %s cannot be written: %s", self._folder, error)

    def selection(self, commit: str, *, with_code: bool) -> Selection | None:
        """What of a snapshot is to be loaded; None unless all of it is there.

        What has to be there is known from ``trees/``. Caches that older tools filled have none:
        then the snapshot itself has to make sense, with all shards that its index names.
        """
        folder = self.snapshot(commit)
        if not folder.is_dir():
            return None
        files = self._tree(commit)
        try:
            selection = select_files(
                files_of(folder) if files is None else files,
                model_id=self._model_id,
                with_code=with_code,
            )
            indexes = {
                path: read_json(folder / path, model_id=self._model_id)
                for path in selection.index_paths
            }
            selection = check_index(selection, indexes, model_id=self._model_id)
        except (NoLoadableWeights, ModelLoadFailed, FileNotFoundError) as error:
            _logger.info("The snapshot %s is not used: %s", folder, error)
            return None
        if files is None and not (folder / "config.json").is_file():
            return None
        return selection if all(self.has(commit, file) for file in selection.files) else None

    def _tree(self, commit: str) -> list[RepoFile] | None:
        path = self._folder / "trees" / f"{commit}.json"
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            if tree["format_version"] != _TREE_FORMAT:
                return None
            return [
                RepoFile(
                    path=name,
                    size=int(entry.get("lfs_size") or entry["size"]),
                    sha256=entry.get("lfs_sha256"),
                    git_sha1=entry.get("blob_id"),
                )
                for name, entry in tree["files"].items()
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def _entry_of(file: RepoFile) -> dict[str, object]:
    entry: dict[str, object] = {"size": file.size, "blob_id": file.git_sha1 or ""}
    if file.sha256 is not None:
        entry |= {"lfs_sha256": file.sha256, "lfs_size": file.size}
    return entry


def _write(path: Path, text: str) -> None:
    """Whole or not at all, so that nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    staged.write_text(text, encoding="utf-8")
    staged.replace(path)
