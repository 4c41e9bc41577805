"""The parent's side of ``benchmarks.workers``."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROOT = Path(__file__).resolve().parent.parent


class PeerProcess:
    """A worker that embeds when it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def bulk(self, texts: Sequence[str]) -> float:
        """Seconds for all of them."""
        seconds: float = self._ask("bulk", texts)["seconds"][0]
        return seconds

    def each(self, texts: Sequence[str]) -> list[float]:
        """Seconds for each, one at a time."""
        seconds: list[float] = self._ask("each", texts)["seconds"]
        return seconds

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array(self._ask("vectors", texts)["vectors"], dtype=np.float32)

    def _ask(self, task: str, texts: Sequence[str]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"task": task, "texts": texts}) + "\n")
        self._process.stdin.flush()
        return self.next_answer()

    def next_answer(self) -> dict[str, Any]:
        """Raises RuntimeError if it ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def peer_process(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[PeerProcess]:
    """Started and ready; ended with the block. Raises RuntimeError with what it said at the end."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=_ROOT,
            env=dict(environment),
        )
        peer = PeerProcess(process)
        try:
            peer.next_answer()
            yield peer
        except RuntimeError as error:
            log.seek(0)
            raise RuntimeError(f"{error}\n{log.read()[-2000:]}") from error
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
