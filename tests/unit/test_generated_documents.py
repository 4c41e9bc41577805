"""Documents made from the code are as the code says now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", ["docs/settings.md", "docs/errors.md", "contract/openapi.json"])
def test_generated_document_is_fresh(path: str) -> None:
    expected = _generator().documents()[ROOT / path]
    assert (ROOT / path).read_text(encoding="utf-8") == expected, f"run `make contract` ({path})"


def test_every_setting_is_documented() -> None:
    from pellucid.settings import Settings

    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    missing = [name for name in Settings.model_fields if f"PELLUCID_{name.upper()}`" not in page]
    assert missing == []
