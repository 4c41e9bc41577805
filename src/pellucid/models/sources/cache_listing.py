"""Which models of the Hub lie on this machine, complete or in part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pellucid.models.sources.hub_cache import HubCache, cache_root

_PREFIX = "models--"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """One repository in the cache. ``revisions`` are the commits that could be loaded now."""

    model_id: str
    revisions: tuple[str, ...]
    size_bytes: int  # on disk, parts of downloads counted


def cached_models(cache_dir: Path | None = None) -> list[CachedModel]:
    """All repositories of the cache by name (None: where the Hub's own tools cache)."""
    root = cache_root(cache_dir)
    if not root.is_dir():
        return []
    folders = sorted(path for path in root.glob(f"{_PREFIX}*") if path.is_dir())
    return [_cached_model(root, folder) for folder in folders]


def _cached_model(root: Path, folder: Path) -> CachedModel:
    model_id = folder.name.removeprefix(_PREFIX).replace("--", "/", 1)
    cache = HubCache(root, model_id)
    snapshots = folder / "snapshots"
    commits = sorted(path.name for path in snapshots.iterdir()) if snapshots.is_dir() else []
    loadable = (commit for commit in commits if cache.selection(commit, with_code=False))
    return CachedModel(
        model_id=model_id,
        revisions=tuple(loadable),
        size_bytes=sum(
            path.stat().st_size
            for path in folder.rglob("*")
            if path.is_file() and not path.is_symlink()
        ),
    )
