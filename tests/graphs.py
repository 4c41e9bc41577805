"""Graphs of tiny models, made in this process: a process for each would import torch each time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pellucid.errors import GraphUnavailable
from pellucid.models import openvino_backend
from pellucid.models.graph import obtaining
from pellucid.models.graph.__main__ import outcome_of
from pellucid.models.openvino_backend import OpenVinoBackend
from pellucid.models.sources.local_folder import revision_of
from pellucid.models.sources.source import ModelSource
from tiny_backends import source_of
from tiny_models import build


def convert_here(source: ModelSource, folder: Path, **options: Any) -> str | None:
    """What ``convert_in_child`` does, here."""
    request = {
        "source": {
            "folder": str(source.folder),
            "model_id": source.model_id,
            "revision": source.revision,
            "origin": source.origin,
        },
        "folder": str(folder),
        **options,
    }
    outcome = outcome_of(request)
    if "failed" in outcome:
        raise GraphUnavailable(model_id=source.model_id, reason=outcome["failed"])
    refusal: str | None = outcome.get("refused")
    return refusal


def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert here, and warm no shapes up: tiny models are not worth it."""
    monkeypatch.setattr(obtaining, "convert_in_child", convert_here)
    monkeypatch.setattr(openvino_backend, "_WARM_UP_S", 0.0)


def load_graph(folder: Path, graphs_dir: Path, **options: Any) -> OpenVinoBackend:
    """The graph of a tiny model, in float32 unless told otherwise."""
    given = {"precision": "float32", "num_threads": 1, **options}
    source = replace(source_of(folder), revision=revision_of(folder))
    return OpenVinoBackend.load(source, graphs_dir=graphs_dir, **given)


def embedding_repository(
    family: str,
    folder: Path,
    *,
    pooling: str = "mean",
    include_prompt: bool = True,
    dense_width: int | None = None,
    **settings: Any,
) -> Path:
    """A tiny model laid out as sentence-transformers does: pooling, maybe a dense layer, norm."""
    import safetensors.torch
    import torch

    build(family, folder)
    width = 32
    modules: list[tuple[str, dict[str, Any]]] = [
        ("Pooling", {"pooling_mode": pooling, "include_prompt": include_prompt})
    ]
    if dense_width is not None:
        modules.append(("Dense", {"in_features": width, "out_features": dense_width}))
    modules.append(("Normalize", {}))
    entries = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.Transformer"}]
    for number, (kind, config) in enumerate(modules, start=1):
        place = folder / f"{number}_{kind}"
        place.mkdir()
        (place / "config.json").write_text(json.dumps(config))
        if kind == "Dense":
            torch.manual_seed(0)
            linear = torch.nn.Linear(width, config["out_features"])
            weights = {f"linear.{name}": value for name, value in linear.state_dict().items()}
            safetensors.torch.save_file(weights, place / "model.safetensors")
        entries.append(
            {"idx": number, "name": str(number), "path": place.name,
             "type": f"sentence_transformers.models.{kind}"}
        )  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder
