"""How a model repository is laid out on disk: where the transformer lies, what follows it.

Two layouts exist: a plain transformers folder, and a sentence-transformers repository whose
``modules.json`` names a transformer and the modules after it. Names of classes are read as words
from a fixed list; no class that a repository names is ever imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pellucid.errors import ModelLoadFailed, RemoteCodeRequired

_LIBRARY_PREFIX = "sentence_transformers."
# The transformer's settings file was once named after the family.
_TRANSFORMER_SETTINGS_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineModule:
    """One module behind the transformer, by the last word of its class name."""

    kind: str  # "Pooling", "Dense", "Normalize", ...
    class_name: str  # as the repository writes it
    is_library: bool  # a class of sentence-transformers itself
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryLayout:
    """What the JSON files of a model folder say about embedding text with it."""

    transformer_folder: Path
    modules: tuple[PipelineModule, ...] | None = None  # None = no modules.json, a plain model
    max_seq_length: int | None = None
    lowercase: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    truncate_dim: int | None = None
    transformer_task: str = "feature-extraction"
    reads_messages: bool | None = None  # texts go through the chat template; None = not said
    structured_messages: bool = False  # message content as a list of parts
    processing: Mapping[str, Any] = field(default_factory=dict)  # further tokenizer settings

    @classmethod
    def read(cls, folder: Path, *, model_id: str) -> RepositoryLayout:
        """The layout of ``folder``.

        Raises ModelLoadFailed for files that cannot be understood, RemoteCodeRequired where the
        transformer itself is a class of the repository's own.
        """
        if not (folder / "modules.json").is_file():
            return cls(transformer_folder=folder)
        modules = _read_modules(folder, model_id=model_id)
        if not modules or modules[0].kind != "Transformer":
            first = modules[0].class_name if modules else "nothing"
            raise ModelLoadFailed(
                model_id=model_id, reason=f"modules.json begins with {first}, not a transformer"
            )
        transformer = modules[0]
        if not transformer.is_library:
            raise RemoteCodeRequired(model_id=model_id)
        settings = read_object(folder / "config_sentence_transformers.json", model_id=model_id)
        return cls(
            transformer_folder=transformer.folder,
            modules=modules[1:],
            prompts=_prompts(settings.get("prompts"), model_id=model_id),
            default_prompt_name=settings.get("default_prompt_name"),
            truncate_dim=settings.get("truncate_dim"),
            **_transformer_settings(transformer.folder, model_id=model_id),
        )


def _transformer_settings(folder: Path, *, model_id: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in _TRANSFORMER_SETTINGS_FILES:
        if settings := read_object(folder / name, model_id=model_id):
            break
    # Repositories from before version 6 say nothing of modalities: they read plain text.
    modalities = settings.get("modality_config") or {"text": {}}
    message = modalities.get("message")
    loading = settings.get("processor_kwargs") or settings.get("tokenizer_args") or {}
    return {
        "max_seq_length": loading.get("model_max_length", settings.get("max_seq_length")),
        "processing": settings.get("processing_kwargs") or {},
        "lowercase": bool(settings.get("do_lower_case", False)),
        "transformer_task": settings.get("transformer_task", "feature-extraction"),
        "reads_messages": message is not None,
        "structured_messages": (message or {}).get("format") == "structured",
    }


def _read_modules(folder: Path, *, model_id: str) -> tuple[PipelineModule, ...]:
    entries = _read_json(folder / "modules.json", model_id=model_id)
    if not isinstance(entries, list):
        raise ModelLoadFailed(model_id=model_id, reason="modules.json is not a list")
    return tuple(_module(entry, folder=folder, model_id=model_id) for entry in entries)


def _module(entry: Any, *, folder: Path, model_id: str) -> PipelineModule:
    try:
        class_name, path = str(entry["type"]), PurePosixPath(str(entry["path"]))
    except (KeyError, TypeError) as error:
        raise ModelLoadFailed(
            model_id=model_id, reason="an entry of modules.json lacks type or path"
        ) from error
    if path.is_absolute() or ".." in path.parts:
        raise ModelLoadFailed(
            model_id=model_id, reason=f"modules.json points outside the repository: {path}"
        )
    return PipelineModule(
        kind=class_name.rsplit(".", 1)[-1],
        class_name=class_name,
        is_library=class_name.startswith(_LIBRARY_PREFIX),
        folder=folder / path,
    )


def _prompts(prompts: Any, *, model_id: str) -> dict[str, str]:
    if prompts is None:
        return {}
    if not isinstance(prompts, dict):
        raise ModelLoadFailed(model_id=model_id, reason="its prompts are not names with texts")
    return {str(name): str(prompt or "") for name, prompt in prompts.items()}


def read_object(path: Path, *, model_id: str) -> dict[str, Any]:
    """A JSON object, empty where the file does not exist."""
    if not path.is_file():
        return {}
    value = _read_json(path, model_id=model_id)
    if not isinstance(value, dict):
        raise ModelLoadFailed(model_id=model_id, reason=f"{path.name} is not a JSON object")
    return value


def _read_json(path: Path, *, model_id: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadFailed(
            model_id=model_id, reason=f"{path.name} cannot be read: {error}"
        ) from error
