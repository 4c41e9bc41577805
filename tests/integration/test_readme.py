"""The README's requests are run, and answer what it prints.

A fenced ``sh`` or ``python`` block followed by a ``json`` or ``text`` block is an example. In the
printed answer ``...`` stands for anything left out, numbers may differ in the last digits (another
CPU), everything else must be as printed.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS = "localhost:8421"
REST = "..."
# Figures of a run, not of the answer: present, but never twice the same.
VOLATILE = {"timing", "uptime_s", "request_id"}


def _examples(page: str) -> list[tuple[str, str, str, str]]:
    """(language, source, kind of answer, answer) of every example on a page."""
    blocks = FENCE.findall((ROOT / page).read_text(encoding="utf-8"))
    return [
        (language, source, kind, answer)
        for (language, source), (kind, answer) in itertools.pairwise(blocks)
        if language in {"sh", "python"} and kind in {"json", "text"}
    ]


def _cases() -> list[Any]:
    return [
        pytest.param(*example, id=f"{page}-{number}")
        for page in ("README.md", "docs/quickstart.md")
        for number, example in enumerate(_examples(page), start=1)
    ]


def _run(language: str, source: str, url: str) -> str:
    source = source.replace(f"http://{ADDRESS}", url).replace(ADDRESS, url)
    command = ["bash", "-euo", "pipefail", "-c", source]
    if language == "python":
        command = [sys.executable, "-c", source]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "NO_COLOR": "1", "COLUMNS": "100"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _pattern(printed: str) -> Any:
    """The printed JSON with every ``...`` as a marker."""
    quoted = re.sub(r",\s*\.\.\.(?=\s*})", f', "{REST}": 0', printed)
    quoted = re.sub(r"(?<=[\[,\s])\.\.\.(?=\s*[\],])", f'"{REST}"', quoted)
    return json.loads(quoted)


def _assert_matches(actual: Any, expected: Any, where: str = "answer") -> None:
    if isinstance(expected, dict):
        assert isinstance(actual, dict), where
        partial = expected.pop(REST, None) is not None
        missing = set(expected) - set(actual)
        assert not missing, f"{where}: {missing} missing"
        assert partial or set(actual) == set(expected), f"{where}: {set(actual) - set(expected)}"
        for key, value in expected.items():
            if key not in VOLATILE:
                _assert_matches(actual[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert isinstance(actual, list), where
        partial = REST in expected
        shown = [value for value in expected if value != REST]
        assert partial or len(actual) == len(shown), f"{where}: {len(actual)} items"
        assert len(actual) >= len(shown), where
        for index, value in enumerate(shown):
            _assert_matches(actual[index], value, f"{where}[{index}]")
    elif isinstance(expected, float):
        # Embeddings are computed as the CPU does best, in bfloat16 where it can.
        abs_tol = 2e-3 if ".vectors[" in where or ".embedding[" in where else 2e-4
        assert math.isclose(actual, expected, rel_tol=2e-3, abs_tol=abs_tol), f"{where}: {actual}"
    else:
        assert actual == expected, f"{where}: {actual!r}"


@pytest.fixture(scope="module", autouse=True)
def loaded(server: str) -> None:
    """Another test may have unloaded the model; a reader's server has just loaded it."""
    httpx.post(f"{server}/embed", json={"texts": ["ready"]}, timeout=60).raise_for_status()


@pytest.mark.parametrize(("language", "source", "kind", "printed"), _cases())
def test_example_answers_as_printed(
    language: str, source: str, kind: str, printed: str, server: str
) -> None:
    answer = _run(language, source, server)
    if kind == "json":
        _assert_matches(json.loads(answer), _pattern(printed))
    else:
        assert _visible(answer) == _visible(printed)


def test_the_five_first_requests_are_in_the_readme() -> None:
    sources = "".join(source for _, source, _, _ in _examples("README.md"))
    for path in ("/health", "/embed", "/process", "/v1/embeddings", "/v1/inspections"):
        assert f"{ADDRESS}{path}" in sources


def _visible(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
