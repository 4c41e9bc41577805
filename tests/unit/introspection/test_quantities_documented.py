from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from pellucid.introspection.attention_stats import HeadStatistics, TokenStatistics
from pellucid.introspection.change import LogitChange, TokenChanges, VectorChange
from pellucid.introspection.head_patterns import PATTERNS, HeadPatterns
from pellucid.introspection.logit_lens import LensSummary
from pellucid.introspection.projection import Projection

DOCUMENT = (Path(__file__).parents[3] / "docs" / "quantities.md").read_text(encoding="utf-8")
RESULTS = [
    HeadStatistics,
    TokenStatistics,
    HeadPatterns,
    Projection,
    LensSummary,
    LogitChange,
    TokenChanges,
    VectorChange,
]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result.__name__)
def test_every_number_has_its_meaning_in_the_documentation(result: type) -> None:
    missing = [
        field.name
        for field in fields(result)
        if field.name != "method" and f"`{field.name}`" not in DOCUMENT
    ]
    assert missing == []


def test_every_pattern_is_documented() -> None:
    assert [name for name in PATTERNS if f"| `{name}` |" not in DOCUMENT] == []
