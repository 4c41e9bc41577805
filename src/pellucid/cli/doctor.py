"""``pellucid doctor``: the pre-flight."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from pellucid.cli.options import AsJson, DataDir, Device, Host, Model, Port, settings_from
from pellucid.stdout import reserve_stdout

_STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


def doctor(
    *,
    host: Host = None,
    port: Port = None,
    model: Model = None,
    data_dir: DataDir = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine: what is wrong, and what mends it."""
    settings = settings_from(host=host, port=port, model=model, data_dir=data_dir, device=device)
    stdout = reserve_stdout()
    from rich.console import Console
    from rich.text import Text

    from pellucid.doctor import examine

    console = Console(file=stdout, highlight=False, soft_wrap=True)
    findings = []
    for finding in examine(settings):
        findings.append(finding)
        if as_json:
            continue
        line = Text(f"{finding.level:<8}", style=_STYLES[finding.level])
        line.append(f"{finding.check}: {finding.detail}", style="default")
        console.print(line)
        if finding.remedy:
            console.print(Text(f"        {finding.remedy}"))
    if as_json:
        stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    stdout.flush()
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)
