"""Shorter widths that a model was trained to give (Kusupati et al. 2022, Matryoshka
representation learning)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

# The model card's training section, as the library writes it.
_CARD_ENTRY = re.compile(r'"matryoshka_dims":\s*(\[[\d,\s]*\])')


def matryoshka_dimensions(folder: Path, *, config: Any) -> tuple[int, ...]:
    """Widths named by config.json or by the model card, smallest first; empty if none are."""
    named = getattr(config, "matryoshka_dimensions", None)
    if not named:
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        match = _CARD_ENTRY.search(text)
        named = json.loads(match[1]) if match else []
    return tuple(sorted({int(width) for width in named}))
