"""The layout is the architecture: imports go one way, and each heavy library has one home."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"

# Lowest first. A part may import itself and the parts below it.
FLOORS = (
    {"units", "progress", "introspection", "stdout", "__init__"},
    {"errors"},
    {"settings", "listening"},
    {"models"},
    {"inference"},
    {"telemetry"},
    {"services", "bulk", "doctor"},
    {"api"},
    {"cli"},
    {"__main__"},
)
HOMES = {
    "torch": {"models"},
    "transformers": {"models"},
    "tokenizers": {"models"},
    "huggingface_hub": {"models"},
    "openvino": {"models"},
    "nncf": {"models"},
    "sklearn": {"introspection"},
    "umap": {"introspection"},
    "fastapi": {"api"},
    "starlette": {"api"},
    "typer": {"cli"},
    "prometheus_client": {"telemetry"},
}


def _part(path: Path) -> str:
    inside = path.relative_to(SOURCE / "pellucid")
    return inside.parts[0].removesuffix(".py")


def _imports() -> Iterator[tuple[Path, str]]:
    """(file, module) of every import of every file, those inside functions too."""
    for path in sorted((SOURCE / "pellucid").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                if node.module == "pellucid":
                    yield from ((path, f"pellucid.{alias.name}") for alias in node.names)
                else:
                    yield path, node.module


def _floor(part: str) -> int:
    return next(number for number, parts in enumerate(FLOORS) if part in parts)


def test_imports_go_one_way() -> None:
    wrong = []
    for path, module in _imports():
        root, _, rest = module.partition(".")
        importer, imported = _part(path), rest.partition(".")[0]
        if root != "pellucid" or not rest or imported in {importer, "__version__"}:
            continue
        if _floor(imported) >= _floor(importer):
            wrong.append(f"{path.relative_to(SOURCE)} imports {module}")
    assert wrong == []


def test_introspection_imports_nothing_of_ours() -> None:
    wrong = [
        f"{path.name} imports {module}"
        for path, module in _imports()
        if _part(path) == "introspection"
        and module.startswith("pellucid")
        and not module.startswith("pellucid.introspection")
    ]
    assert wrong == []


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_heavy_library_has_one_home(library: str) -> None:
    users = {_part(path) for path, module in _imports() if module.partition(".")[0] == library}
    assert users <= HOMES[library]


def test_the_command_line_and_the_api_start_without_torch() -> None:
    program = (
        "import sys, pellucid.cli, pellucid.api.app, pellucid.services; "
        "print([name for name in ('torch', 'transformers', 'sklearn', 'umap') "
        "if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
