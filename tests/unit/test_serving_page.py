"""``docs/serving.md`` names what is there: every metric, event, setting and error, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from conftest import plain_settings
from pellucid.api.error_handlers import STATUS_OF
from pellucid.inference.events import Happening
from pellucid.services import build_services
from pellucid.settings import Settings
from stub_engine import StubEngine

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)


def test_every_metric_is_on_the_page_and_no_other() -> None:
    told = {name for name in _ROW.findall(PAGE) if name.startswith("pellucid_")}
    metrics = build_services(plain_settings(), engine=StubEngine()).metrics
    assert told == {
        metric.name + ("_total" if metric.type == "counter" else "")
        for metric in metrics.registry.collect()
    }


def test_every_event_is_on_the_page_and_no_other() -> None:
    events = PAGE[PAGE.index("| what | |") :]
    assert set(_ROW.findall(events)) == set(get_args(Happening))


def test_limits_name_settings_and_errors_that_exist() -> None:
    section = PAGE[PAGE.index("## Limits") : PAGE.index("## Health")]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "`" in line]
    assert rows
    for row in rows:
        _, _, settings, answer, _ = row.split("|")
        assert set(re.findall(r"`(\w+)`", settings)) <= set(Settings.model_fields)
        for status, code in re.findall(r"(\d{3}) `(\w+)`", answer):
            assert STATUS_OF[code] == int(status)
