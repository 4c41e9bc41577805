"""The process that converts may end in any way: the reason is told, and nothing half is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pellucid.errors import GraphUnavailable
from pellucid.models.graph import child
from pellucid.models.graph.child import convert_in_child
from pellucid.models.graph.obtaining import obtain
from pellucid.models.sources.source import ModelSource

SOURCE = ModelSource(
    folder=Path("/nowhere"), model_id="owner/model", revision="a" * 40, origin="local"
)
_READ_REQUEST = "import json, os, sys, time; request = json.loads(sys.stdin.readline());"
_WRITE_HALF = "open(request['folder'] + '/float32.bin', 'wb').write(b'half');"
Script = Callable[[str], None]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Have the child run some lines of Python, ``request`` being what it was sent."""

    def use(lines: str) -> None:
        monkeypatch.setattr(child, "_COMMAND", (sys.executable, "-c", _READ_REQUEST + lines))

    return use


def convert(folder: Path, **options: float) -> str | None:
    return convert_in_child(
        SOURCE,
        folder,
        quantization="none",
        trust_remote_code=False,
        num_threads=1,
        **options,  # type: ignore[arg-type]
    )


def obtain_in(folder: Path) -> None:
    obtain(SOURCE, graphs_dir=folder, quantization="none", trust_remote_code=False, num_threads=1)


def test_it_is_told_what_to_do_and_nothing_secret(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("PELLUCID_AUTH_TOKEN", "secret")
    script(
        "open(request['folder'] + '/seen.json', 'w').write(json.dumps([request, dict(os.environ)]))"
        "; print(json.dumps({'done': True}))"
    )
    assert convert(tmp_path) is None
    request, environment = json.loads((tmp_path / "seen.json").read_text())
    assert request["source"]["model_id"] == "owner/model"
    assert request["trust_remote_code"] is False
    assert "secret" not in json.dumps(environment)
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_a_refusal_is_given_back(script: Script, tmp_path: Path) -> None:
    script("print(json.dumps({'refused': 'it has no graph'}))")
    assert convert(tmp_path) == "it has no graph"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("print(json.dumps({'failed': 'No space left on device'}))", "No space left on device"),
        ("sys.exit('out of luck')", "status 1 .*out of luck"),
        ("os.kill(os.getpid(), 9)", "status -9"),
        ("pass", "status 0"),
    ],
    ids=["failed", "exit", "killed", "silent"],
)
def test_what_may_go_well_next_time_is_not_remembered(
    script: Script, tmp_path: Path, lines: str, reason: str
) -> None:
    script(_WRITE_HALF + lines)
    for _ in range(2):
        with pytest.raises(GraphUnavailable, match=reason):
            obtain_in(tmp_path)
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_a_refusal_is_remembered(script: Script, tmp_path: Path) -> None:
    script("print(json.dumps({'refused': 'it has no graph'}))")
    for _ in range(2):
        with pytest.raises(GraphUnavailable, match="it has no graph"):
            obtain_in(tmp_path)
        script("sys.exit('asked again')")


def test_it_has_a_time_limit(script: Script, tmp_path: Path) -> None:
    script("time.sleep(60)")
    others = psutil.Process().children()  # servers of other tests
    with pytest.raises(GraphUnavailable, match=r"took over 0 s"):
        convert(tmp_path, timeout_s=0.3)
    assert set(psutil.Process().children()) <= set(others)


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """The real one, whose parent is killed while it starts."""
    program = f"""
from pathlib import Path
from pellucid.models.graph.child import convert_in_child
from pellucid.models.sources.source import ModelSource
source = ModelSource(
    folder=Path({str(tmp_path)!r}), model_id="owner/model", revision="b" * 40, origin="local"
)
convert_in_child(
    source, Path({str(tmp_path)!r}), quantization="none", trust_remote_code=False, num_threads=1
)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    try:
        _until(lambda: bool(psutil.Process(parent.pid).children()))
        (started,) = psutil.Process(parent.pid).children()
    finally:
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs([started], timeout=30)
    assert alive == []
    assert os.listdir(tmp_path) == []


def _until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)
