"""stdout kept for Pellucid's own output, whatever libraries print."""

from __future__ import annotations

import os
import sys
from typing import TextIO

_STDOUT_FD = 1
_STDERR_FD = 2

_reserved: TextIO | None = None


def reserve_stdout() -> TextIO:
    """Take stdout for ourselves and return it; from now on everyone else's writes reach stderr.

    Works below Python: file descriptor 1 is duplicated to a private one and then pointed at stderr,
    so ``print``, C libraries and child processes are covered alike. What was printed before and
    still sits in Python's buffer ends on stderr as well. Asking again gives the same stream.
    Where stdout was already replaced by an object (a test's capture), that object is returned.
    """
    global _reserved
    if _reserved is not None:
        return _reserved
    if sys.stdout is not None and sys.stdout is not sys.__stdout__:
        return sys.stdout
    private_fd = _duplicate_or_null(_STDOUT_FD)
    stderr_fd = _duplicate_or_null(_STDERR_FD)
    os.dup2(stderr_fd, _STDOUT_FD)
    os.close(stderr_fd)
    _reserved = os.fdopen(private_fd, "w", encoding="utf-8", errors="backslashreplace")
    if sys.stderr is not None:
        sys.stdout = sys.stderr
    return _reserved


def _duplicate_or_null(fd: int) -> int:
    try:
        return os.dup(fd)
    except OSError:  # started without it
        null_fd = os.open(os.devnull, os.O_WRONLY)
        while null_fd <= _STDERR_FD:  # the next open() took the place of a standard stream
            null_fd = os.dup(null_fd)
        return null_fd
