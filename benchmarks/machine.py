"""What a figure was measured on: without it, a figure says nothing."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

import pellucid

# The instruction sets that decide how fast matrix products are.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
_PACKAGES = ("torch", "transformers", "sentence-transformers", "openvino", "nncf", "numpy")


@cache
def facts() -> dict[str, Any]:
    """Hardware, versions and commit, as they go into every result."""
    return {
        "cpu": cpu_name(),
        "cpu_flags": [flag for flag in _FLAGS if flag in _cpuinfo("flags").split()],
        "cores": psutil.cpu_count(logical=True) or 0,
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": _gpu_name(),
        "system": platform.system(),
        "python": platform.python_version(),
        "pellucid": pellucid.__version__,
        "commit": commit(),
        **versions(),
    }


def versions() -> dict[str, str]:
    """Of the packages that compute."""
    return {name: metadata.version(name) for name in _PACKAGES}


def cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def commit() -> str:
    """The commit of this checkout, with ``-dirty`` if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    root = Path(__file__).resolve().parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _cpuinfo(field: str) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return ""
    found = re.search(rf"^{field}\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    return found[1].strip() if found else ""


def _gpu_name() -> str:
    if shutil.which("nvidia-smi") is None:
        return "none"
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0].strip() or "none"
