"""The default model never asks the network: not at import, not when it loads, not when it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import plain_environment

# Audit events come from the interpreter itself, whatever library opens the socket.
_WATCHED = """
import sys
asked = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        asked.append(f"{event} {arguments[1:]}")
sys.addaudithook(watch)
sys.argv = ["pellucid", "inspect", "The boat sails.", "--json"]
from pellucid.cli import main
try:
    main()
except SystemExit as end:
    code = end.code
print(f"asked: {asked}", file=sys.stderr)
sys.exit(code or bool(asked))
"""


def test_no_address_is_looked_up_and_no_connection_made(tmp_path: Path) -> None:
    environment = {
        name: value
        for name, value in plain_environment().items()
        if not name.startswith(("HF_", "HUGGING"))
    }
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED],
        env=environment | {"HF_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "asked: []" in done.stderr
    assert "sails" in done.stdout
