"""Options shared by commands. They are settings: a flag given wins over the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from pellucid.errors import InvalidSettings
from pellucid.settings import Settings


def setting_option(name: str, *flags: str) -> Any:
    """The option of one setting, described by the setting itself."""
    field = Settings.model_fields[name]
    default = field.get_default()
    shown = f" Default: {default}." if default is not None else ""
    return typer.Option(
        *(flags or (f"--{name.replace('_', '-')}",)),
        help=f"{field.description}{shown}",
        show_default=False,
    )


Host = Annotated[str | None, setting_option("host")]
Port = Annotated[int | None, setting_option("port")]
Model = Annotated[str | None, setting_option("model", "--model", "-m")]
Revision = Annotated[str | None, setting_option("revision")]
DataDir = Annotated[Path | None, setting_option("data_dir")]
Device = Annotated[str | None, setting_option("device")]
LogLevel = Annotated[str | None, setting_option("log_level")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def settings_from(**flags: Any) -> Settings:
    """Settings with the flags that were given. Raises InvalidSettings."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])} is {problem['input']!r}: "
            f"{problem['msg']}"
            for problem in error.errors()
        )
        raise InvalidSettings(problems=problems) from error


def export_flags(**flags: Any) -> None:
    """Flags as environment variables, for the processes that ``--reload`` starts."""
    for name, value in flags.items():
        if value is not None:
            os.environ[f"PELLUCID_{name.upper()}"] = str(value)
