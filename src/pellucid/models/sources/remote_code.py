"""Whether a model can only be loaded by running Python code that its repository brings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pellucid.errors import ModelLoadFailed, RemoteCodeRequired


def refuse_remote_code(folder: Path, *, model_id: str) -> None:
    """Raise RemoteCodeRequired if loading ``folder`` would run code of its own.

    That is so when config.json has an ``auto_map`` for a ``model_type`` that transformers does not
    know itself. Pipeline steps that sentence-transformers does not know stop embeddings only: the
    transformer before them can still be inspected.
    """
    config = read_json(folder / "config.json", model_id=model_id)
    if isinstance(config, dict) and config.get("auto_map"):
        model_type = config.get("model_type")
        if not isinstance(model_type, str) or not _is_known(model_type):
            raise RemoteCodeRequired(model_id=model_id, model_type=model_type)


def read_json(path: Path, *, model_id: str) -> Any:
    """The file's content, None if there is no such file. Raises ModelLoadFailed if unreadable."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = f"{path.name} is not JSON ({error})"
        raise ModelLoadFailed(model_id=model_id, reason=reason) from error


def _is_known(model_type: str) -> bool:
    # This module lists the names only: unlike configuration_auto it does not bring torch along.
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES or model_type == "gpt-sw3"
