from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import ctypes, os, subprocess, sys, threading
print("printed before, still in the buffer")
from pellucid.stdout import reserve_stdout
mine = reserve_stdout()
assert reserve_stdout() is mine
print("printed")
sys.__stdout__.write("to the original stream\\n")
os.write(1, b"written to the descriptor\\n")
libc = ctypes.CDLL(None)
libc.puts(b"from C")
libc.fflush(None)
subprocess.run([sys.executable, "-c", "print('from a child')"])
thread = threading.Thread(target=os.write, args=(1, b"from a thread\\n"))
thread.start()
thread.join()
mine.write("ours\\n")
mine.flush()
"""


def test_only_our_own_writes_reach_stdout() -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=buffered
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ours\n"
    for line in (
        "printed",
        "still in the buffer",
        "original",
        "descriptor",
        "C",
        "child",
        "thread",
    ):
        assert line in done.stderr


def test_without_any_stdout_what_is_ours_goes_nowhere() -> None:
    program = (
        "from pellucid.stdout import reserve_stdout; stdout = reserve_stdout();"
        "stdout.write('ours'); stdout.flush(); print('noise')"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, program],
        stderr=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == b"noise\n"


def test_works_without_any_stream() -> None:
    program = "from pellucid.stdout import reserve_stdout; reserve_stdout().write('x'); print('y')"
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" >&- 2>&-', sys.executable, program], check=False
    )
    assert done.returncode == 0
