"""Which models are worth a graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pellucid.errors import GraphUnavailable
from pellucid.models.graph.eligibility import require_encoder
from pellucid.models.sources.source import ModelSource


def source(folder: Path, config: dict[str, Any]) -> ModelSource:
    (folder / "config.json").write_text(json.dumps(config))
    return ModelSource(folder=folder, model_id="a/model", revision="c0ffee", origin="cache")


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["GPT2LMHeadModel"]},
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": ["BartModel"], "is_encoder_decoder": True},
        {"architectures": ["T5ForConditionalGeneration"]},
    ],
    ids=lambda config: str(config["architectures"][0]),
)
def test_models_that_generate_have_none(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(GraphUnavailable) as refused:
        require_encoder(source(tmp_path, config))
    assert config["architectures"][0] in refused.value.detail


@pytest.mark.parametrize(
    "config", [{"architectures": ["BertModel"]}, {"architectures": ["T5EncoderModel"]}, {}], ids=str
)
def test_encoders_have_one(config: dict[str, Any], tmp_path: Path) -> None:
    require_encoder(source(tmp_path, config))


def test_what_is_made_for_embedding_has_one_whatever_it_is_made_of(tmp_path: Path) -> None:
    modules = [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    require_encoder(source(tmp_path, {"architectures": ["Qwen3ForCausalLM"]}))
