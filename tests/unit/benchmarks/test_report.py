"""The tables of docs/performance.md are those of the results that lie beside it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import PAGE, filled
from benchmarks.results import newest_results, write_results
from benchmarks.targets import not_measured, row_of


def test_the_page_holds_the_newest_results() -> None:
    page = PAGE.read_text()
    assert filled(page) == page, "python -m benchmarks.report"


def test_a_table_says_what_was_found_missed_and_not_measured(tmp_path: Path) -> None:
    rows = [
        row_of("short_infinity", [9.0, 8.5, 12.0], texts_per_s={"pellucid": 900, "Infinity": 100}),
        row_of("start", [4.5]),
        not_measured("int8_short", "no int8 here"),
    ]
    write_results(
        "embedding", "standard", rows, directory=tmp_path, peers={"infinity_emb": "0.0.78"}
    )
    table = filled(PAGE.read_text(), tmp_path)
    assert "at least 8 times | 9 times | 8.5 - 12 | met |" in table
    assert "pellucid 900 texts/s, Infinity 100 texts/s" in table
    assert "| at most 4 s | 4.5 s |  | **missed** |" in table
    assert "not measured: no int8 here" in table
    assert "infinity_emb 0.0.78" in table


def test_quick_results_are_not_shown(tmp_path: Path) -> None:
    write_results("embedding", "quick", [row_of("start", [1.0])], directory=tmp_path, peers={})
    assert newest_results("embedding", tmp_path) is None
