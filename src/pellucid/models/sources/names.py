"""Names of models and revisions: what may be asked for, checked before any path or URL is made."""

from __future__ import annotations

import re

from pellucid.errors import InvalidModelId

_MAX_PART = 96
_MAX_REVISION = 128
_PART = re.compile(r"[A-Za-z0-9._-]+")
_REVISION = re.compile(r"[A-Za-z0-9._/+-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a full commit, which never changes its meaning."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def check_hub_id(model_id: str) -> None:
    """Accept ``name`` and ``owner/name`` as the Hub forms them; raise InvalidModelId otherwise."""
    parts = model_id.split("/")
    if len(parts) > 2:
        raise InvalidModelId(model_id=model_id, reason=f"it has {len(parts)} parts")
    for part in parts:
        check_part(part, model_id=model_id)


def check_part(part: str, *, model_id: str) -> None:
    """Accept one piece of a name between slashes; raise InvalidModelId otherwise."""
    reason = _fault_of(part)
    if reason is not None:
        raise InvalidModelId(model_id=model_id, reason=reason)


def check_revision(revision: str | None, *, model_id: str) -> None:
    """Accept branch, tag and commit names without path tricks; raise InvalidModelId otherwise."""
    if revision is None:
        return
    pieces = revision.split("/")
    if (
        len(revision) > _MAX_REVISION
        or _REVISION.fullmatch(revision) is None
        or ".." in revision
        or any(not piece or piece[0] in ".-" or piece[-1] in "." for piece in pieces)
    ):
        reason = f"{revision[:_MAX_REVISION]!r} is not the name of a branch, tag or commit"
        raise InvalidModelId(model_id=model_id, reason=reason)


def _fault_of(part: str) -> str | None:
    if not part:
        return "a part of it is empty"
    if len(part) > _MAX_PART:
        return f"a part of it has {len(part)} characters, the limit is {_MAX_PART}"
    if _PART.fullmatch(part) is None:
        return "letters, digits, dots, dashes and underscores are allowed"
    if ".." in part or "--" in part:  # "--" separates owner and name in the cache's folder names
        return "`..` and `--` are not allowed"
    if part[0] in ".-" or part[-1] in ".-":
        return "a part of it starts or ends with a dot or a dash"
    return None
