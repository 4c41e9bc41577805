"""What this machine is, as far as it can be told without importing torch."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 63
# Made by the drivers of NVIDIA (also inside Windows' Linux) and AMD.
_ACCELERATORS = tuple(map(Path, ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")))


def runs_on_cpu(device: str) -> bool:
    """Whether models run on the CPU for certain: told to, or nothing else could be here.

    False for ``auto`` only means that torch has to be asked.
    """
    if device != "auto":
        return device == "cpu"
    if platform.system() == "Linux":
        return not any(path.exists() for path in _ACCELERATORS)
    return platform.system() == "Darwin" and platform.machine() != "arm64"


def memory_bytes() -> int:
    """What this process may have of the machine's memory, which in a container is less."""
    return min(int(psutil.virtual_memory().total), _container_limit_bytes())


def trim_heap() -> None:
    """Give pages that were freed back to the system."""
    if platform.system() == "Windows":  # where a process is no library
        return
    # glibc keeps them for itself unless told; other C libraries have no such call
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _container_limit_bytes() -> int:
    """Limit of the control group, version 2 then 1; no limit reads as "max" or as 2^63."""
    for path in (_CGROUP / "memory.max", _CGROUP / "memory" / "memory.limit_in_bytes"):
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            continue
    return _NO_LIMIT
