"""The command line: ``pellucid serve | inspect | embed | models | doctor | settings | openapi``."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

# What libraries read when they are imported; whoever has set it otherwise keeps it.
_ENVIRONMENT = {
    # What runs on this machine is nobody else's to know.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Threads that spin for work take the cores from requests that have some: 10 times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def main() -> None:
    """Entry point of ``pellucid`` and ``python -m pellucid``."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    arguments = sys.argv[1:]
    if arguments[:1] == ["serve"] and not {"-h", "--help", "--reload"} & set(arguments):
        # Before anything else is imported: what imports print must not reach a parent process.
        # (With --reload another process serves, which inherits stdout and does this itself.)
        from pellucid.stdout import reserve_stdout

        reserve_stdout()
        for ending in (signal.SIGTERM, signal.SIGINT):  # until the server takes them over
            signal.signal(ending, _end_before_the_start)
    try:
        from pellucid.cli.app import app

        app()
    except KeyboardInterrupt:  # so early that nothing else could take it
        sys.exit(130)


def _end_before_the_start(signum: int, frame: FrameType | None) -> None:
    sys.exit(0)
