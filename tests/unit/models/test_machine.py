"""What is known of the machine without asking torch."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from pellucid.models import machine


@pytest.mark.parametrize(
    ("system", "processor", "is_cpu"),
    [("Linux", "x86_64", True), ("Darwin", "x86_64", True), ("Darwin", "arm64", False)],
)
def test_what_auto_means(
    system: str, processor: str, is_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    monkeypatch.setattr(machine, "_ACCELERATORS", (Path("/none"),))
    assert machine.runs_on_cpu("auto") is is_cpu


def test_a_driver_means_that_torch_has_to_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(machine, "_ACCELERATORS", (tmp_path,))
    assert not machine.runs_on_cpu("auto")
    assert machine.runs_on_cpu("cpu")
    assert not machine.runs_on_cpu("cuda")


def test_a_container_has_less_memory_than_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    whole = machine.memory_bytes()
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory_bytes() == whole
    (tmp_path / "memory.max").write_text("1048576\n")
    assert machine.memory_bytes() == 1_048_576


def test_it_needs_no_torch() -> None:
    program = "import sys, pellucid.models.machine; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
