"""Fill the tables of ``docs/performance.md`` from the newest results, so that they can't drift.

``python -m benchmarks.report`` writes them; a test compares.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS_DIR, newest_results

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
_NO_RUN = {
    "embedding": "Not measured yet.",
    "peers": "No run of its own yet: the peers took part in the run above.",
}
_MET = {True: "met", False: "**missed**", None: ""}
_VERSIONS = ("python", "pellucid", "torch", "transformers", "sentence-transformers", "openvino")


def filled(page: str, directory: Path = RESULTS_DIR) -> str:
    """The page with the tables between its marks made anew."""
    for suite in _NO_RUN:
        run = newest_results(suite, directory)
        table = _NO_RUN[suite] if run is None else _section(run)
        begin, end = f"<!-- {suite} -->\n", f"<!-- end of {suite} -->"
        before, place, rest = page.partition(begin)
        _, end_of_place, after = rest.partition(end)
        if not place or not end_of_place:
            raise ValueError(f"the page has no place for {suite!r}")
        page = f"{before}{begin}{table}\n{end}{after}"
    return page


def _section(run: Mapping[str, Any]) -> str:
    machine = run["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in _VERSIONS if name in machine)
    peers = ", ".join(f"{name} {version}" for name, version in run["peers"].items())
    head = [
        f"{run['made'][:10]}, commit `{machine['commit']}`, size `{run['size']}`: "
        f"{machine['cores']} cores of {machine['cpu']} ({', '.join(machine['cpu_flags'])}), "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; {versions}"
        + (f"; peers: {peers}." if peers else "; no peers."),
        "",
        "| figure | target | found | least - most | |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join(head + [_line(row) for row in run["rows"]])


def _line(row: Mapping[str, Any]) -> str:
    if row["found"] is None:
        return f"| {row['figure']} | {row['target']} | {row['note']} | | |"
    spread = "" if row["least"] == row["most"] else f"{row['least']:g} - {row['most']:g}"
    found = f"{row['found']:g} {row['unit']}".strip()
    return (
        f"| {row['figure']}{_sides(row['details'])} | {row['target']} | {found} | {spread} "
        f"| {_MET[row['met']]} |"
    )


def _sides(details: Mapping[str, Any]) -> str:
    """What a ratio was made of."""
    if "texts_per_s" in details:
        rates = details["texts_per_s"].items()
        return "<br>" + ", ".join(f"{name} {rate:g} texts/s" for name, rate in rates)
    if "latency" in details:
        sides = details["latency"].items()
        return "<br>p50 / p95 / p99: " + ", ".join(
            f"{name} {each['p50_ms']:g} / {each['p95_ms']:g} / {each['p99_ms']:g} ms"
            for name, each in sides
        )
    if "summary" in details:
        summary = details["summary"]
        return (
            f"<br>{summary['requests']} requests, {summary['requests_per_s']:g} per second, "
            f"{summary['refused']} refused, {summary['left_by_the_client']} left by the client"
        )
    if "requests" in details:
        return f"<br>{details['requests']} requests"
    return ""


def main() -> int:
    PAGE.write_text(filled(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
