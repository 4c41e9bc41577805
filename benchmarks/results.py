"""Results on disk: one JSON file for each run, told apart by day, commit and CPU."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import cpu_name, facts
from benchmarks.targets import Row

RESULTS_DIR = Path(__file__).resolve().parent / "results"


def write_results(
    suite: str, size: str, rows: Sequence[Row], *, directory: Path = RESULTS_DIR, **more: Any
) -> Path:
    """Everything that was found, and on what."""
    made = datetime.now(UTC)
    machine = facts()
    cpu = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{made:%Y-%m-%d}-{machine['commit']}-{cpu}-{suite}-{size}.json"
    content = {
        "suite": suite,
        "size": size,
        "made": made.isoformat(timespec="seconds"),
        "machine": machine,
        **more,
        "rows": [row.as_json() for row in rows],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def newest_results(suite: str, directory: Path = RESULTS_DIR) -> dict[str, Any] | None:
    """The latest of one suite that was not quick; None if there is none."""
    runs: list[dict[str, Any]] = [
        json.loads(path.read_text()) for path in directory.glob(f"*-{suite}-*.json")
    ]
    long_enough = [run for run in runs if run["size"] != "quick"]
    return max(long_enough, key=lambda run: str(run["made"]), default=None)
