"""Every link inside the repository leads somewhere, and what the pages name is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def _links(page: Path) -> Iterator[str]:
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if not re.match(r"[a-z]+:", target):  # the network is not asked
            yield target


def _anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target), link


def test_there_are_links_to_follow() -> None:
    assert len(list(_links(ROOT / "README.md"))) > 5


def test_the_map_of_the_code_is_of_this_code() -> None:
    """Each path in the table of CONTRIBUTING.md exists, and no part of the package is missing."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?) \|", page, re.MULTILINE)
    named = [path for row in rows for path in re.findall(r"`([^`]+)`", row)]
    missing = [
        p for p in named if not any((ROOT / base / p).exists() for base in ("", "src/pellucid"))
    ]
    assert missing == []
    folders = {path.parent.name for path in (ROOT / "src" / "pellucid").glob("*/__init__.py")}
    assert folders - {Path(path).name for path in named} == set()


def test_every_command_is_described() -> None:
    from pellucid.cli.app import app

    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    names = [command.name for command in app.registered_commands]
    names += [group.name for group in app.registered_groups]
    assert [name for name in names if f"| `pellucid {name}" not in page] == []
