"""Models that read texts of any length, whose memory would grow with its square."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_backends import load_tiny
from tiny_models import build


def test_a_model_without_a_limit_of_its_own_gets_one_and_says_what_it_cut(tmp_path: Path) -> None:
    folder = build("t5", tmp_path / "t5")
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": None}))
    backend = load_tiny(folder)
    short, long = backend.tokenize_for_embedding(["fox", "fox " * 5_000])
    assert backend.info.max_embedding_tokens == long.input_ids.size == 4_096
    assert (short.truncated, long.truncated) == (False, True)
