"""Writes what is made from the code: docs/settings.md, docs/errors.md, contract/openapi.json.

Run by ``make contract``; ``tests/unit/test_generated_documents.py`` fails when one is stale.
"""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pellucid.api.error_handlers import status_of
from pellucid.api.openapi import openapi_text
from pellucid.errors import PellucidError
from pellucid.settings import Settings, variables_of

ROOT = Path(__file__).resolve().parent.parent


def settings_page() -> str:
    """A table per section of settings.py, in its order."""
    lines = [
        "# Settings",
        "",
        "Made from `src/pellucid/settings.py` by `make contract`. Each setting is read from its",
        "environment variable, then from `.env` in the working directory. Where several variables",
        "are named, the first that is set wins.",
    ]
    for section, names in _sections():
        lines += ["", f"## {section[0].upper() + section[1:]}", ""]
        lines += ["| variable | default | meaning |", "| --- | --- | --- |"]
        lines += [_setting_row(name, Settings.model_fields[name]) for name in names]
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """A section per code, in the order of the tree."""
    lines = [
        "# Errors",
        "",
        "Made from `src/pellucid/errors.py` by `make contract`. Every error is an RFC 9457 problem",
        "document (`application/problem+json`) with a stable `code`, a `detail` with the numbers",
        "and the way out, the facts as fields of their own, and an `error` in OpenAI's form.",
    ]
    for kind in PellucidError.tree():
        lines += ["", f"## {kind.code}", "", f"{kind.title}. Status {status_of(kind)}.", ""]
        lines += [f"> {kind.template} {kind.way_out}".rstrip()]
        if facts := _facts(kind):
            lines += ["", "Facts: " + ", ".join(f"`{fact}`" for fact in facts) + "."]
    return "\n".join(lines) + "\n"


def documents() -> dict[Path, str]:
    """Every generated file with the text that it should have."""
    return {
        ROOT / "docs" / "settings.md": settings_page(),
        ROOT / "docs" / "errors.md": errors_page(),
        ROOT / "contract" / "openapi.json": openapi_text(),
    }


def _sections() -> list[tuple[str, list[str]]]:
    """The headings `# --- name` of settings.py with the fields below each."""
    sections: list[tuple[str, list[str]]] = []
    for line in inspect.getsource(Settings).splitlines():
        if heading := re.match(r"    # --- (.+)", line):
            sections.append((heading[1], []))
        elif (field := re.match(r"    (\w+):", line)) and field[1] in Settings.model_fields:
            sections[-1][1].append(field[1])
    return sections


def _setting_row(name: str, field: FieldInfo) -> str:
    variables = [f"`{variable}`" for variable in variables_of(name)]
    return f"| {', '.join(variables)} | {_default(field)} | {field.description}{_choices(field)} |"


def _default(field: FieldInfo) -> str:
    value = field.get_default()
    if value is PydanticUndefined or value is None or value == ():
        return "unset"
    if isinstance(value, SecretStr):
        return "secret"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"`{value}`" if value < 10_000 else f"`{value:_}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _choices(field: FieldInfo) -> str:
    if typing.get_origin(field.annotation) is not typing.Literal:
        return ""
    return (
        " One of " + ", ".join(f"`{choice}`" for choice in typing.get_args(field.annotation)) + "."
    )


def _facts(kind: type[PellucidError]) -> list[str]:
    found = re.findall(r"{(\w+)", kind.template + kind.way_out)
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    for path, text in documents().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
