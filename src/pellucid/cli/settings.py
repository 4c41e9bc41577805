"""``pellucid settings``: every setting, its value, and where that comes from."""

from __future__ import annotations

import json
from typing import Any

from pellucid.cli.options import AsJson, settings_from
from pellucid.settings import Settings, source_of, variables_of
from pellucid.stdout import reserve_stdout


def settings(*, as_json: AsJson = False) -> None:
    """Show every setting with its value and where it comes from."""
    values = settings_from()
    stdout = reserve_stdout()
    rows = [_row(values, name) for name in Settings.model_fields]
    if as_json:
        stdout.write(json.dumps(rows, indent=2) + "\n")
        stdout.flush()
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("setting", "value", "from", "variable"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("setting", "variable"))
    for row in rows:
        value = "unset" if row["value"] in (None, "()") else str(row["value"])
        table.add_row(row["setting"], value, row["source"], row["variables"][0])
    Console(file=stdout, highlight=False).print(table)


def _row(values: Settings, name: str) -> dict[str, Any]:
    value = getattr(values, name)
    return {
        "setting": name,
        "value": value if isinstance(value, (int, float, str, type(None))) else str(value),
        "source": source_of(name),
        "variables": list(variables_of(name)),
    }
