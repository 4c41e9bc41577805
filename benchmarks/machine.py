"""What a figure was measured on: without it, a figure says nothing."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path

import psutil
import torch
import transformers

import pellucid


@cache
def facts() -> dict[str, str | int]:
    """Hardware, versions and commit, as they go into every JSON line."""
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=True) or 0,
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pellucid": pellucid.__version__,
        "commit": _commit(),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    root = Path(__file__).resolve().parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
