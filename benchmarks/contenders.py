"""Who takes part, started and kept for the whole run: our servers, our engine, the peers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.peer_process import PeerProcess, peer_process
from benchmarks.servers import QUIET, Server, environment, infinity, pellucid
from pellucid.models.sources.default_encoder import DefaultEncoder

Started = TypeVar("Started")

_PEERS_DIR = Path(__file__).resolve().parent.parent / ".venv-peers"
PEERS_PYTHON = _PEERS_DIR / "bin" / "python"
INFINITY_EMBEDDINGS, INFINITY_MODEL = "/embeddings", "minilm"
_GRAPH = _PEERS_DIR / "minilm.onnx"
_NO_PEERS = "the peers are not installed: `make bench-peers`"


class Contenders:
    """Each is started when it is first asked for; ``reasons`` tells why one could not be."""

    def __init__(self, stack: ExitStack, data_dir: Path) -> None:
        self._stack = stack
        self._folder = str(DefaultEncoder().checked_folder())
        self._started: dict[str, Any] = {}
        self.data_dir = data_dir  # holds the graphs once they are made
        self.reasons: dict[str, str] = {}

    def own_server(self) -> Server:
        """Pellucid with its default settings."""
        server = self._start("pellucid", partial(pellucid, self.data_dir))
        if server is None:
            raise RuntimeError(self.reasons["pellucid"])
        return server

    def int8_server(self) -> Server | None:
        """Pellucid with int8, if that is really what embeds."""
        name = "pellucid int8"
        server = self._start(name, partial(pellucid, self.data_dir, quantization="int8"))
        if server is not None and (embeds := embedding_info(server)).get("quantization") != "int8":
            self.reasons[name] = f"asked for int8, embeds with {embeds or 'PyTorch'}"
            return None
        return server

    def own_engine(self) -> PeerProcess | None:
        command = [sys.executable, "-m", "benchmarks.workers.own_engine"]
        return self._start("engine", partial(peer_process, command, environment(self.data_dir)))

    def sentence_transformers(self) -> PeerProcess | None:
        module = "benchmarks.workers.sentence_transformers_fp32"
        command = [sys.executable, "-m", module, self._folder]
        return self._start("sentence-transformers", partial(peer_process, command, _environment()))

    def onnx_runtime(self, *, num_threads: int = 0) -> PeerProcess | None:
        """0: as many threads as ONNX Runtime itself chooses."""
        module = "benchmarks.workers.onnx_runtime_fp32"
        command = [str(PEERS_PYTHON), "-W", "ignore", "-m", module, self._folder, str(_GRAPH)]
        command.append(str(num_threads))
        name = "ONNX Runtime" + (f", {num_threads} threads" if num_threads else "")
        return self._start_peer(name, partial(peer_process, command, _environment()))

    def infinity(self) -> Server | None:
        return self._start_peer(
            "Infinity", partial(infinity, PEERS_PYTHON, self._folder, model=INFINITY_MODEL)
        )

    def versions_of_peers(self) -> dict[str, str]:
        """From the file that pins them."""
        pins = (Path(__file__).parent / "peers.txt").read_text().split()
        named = dict(pin.split("==") for pin in pins if "==" in pin)
        names = ("infinity_emb", "onnxruntime", "sentence-transformers", "torch", "transformers")
        return {name: named[name] for name in names} if PEERS_PYTHON.exists() else {}

    def _start_peer(
        self, name: str, start: Callable[[], AbstractContextManager[Started]]
    ) -> Started | None:
        if not PEERS_PYTHON.exists():
            self.reasons[name] = _NO_PEERS
            return None
        return self._start(name, start)

    def _start(
        self, name: str, start: Callable[[], AbstractContextManager[Started]]
    ) -> Started | None:
        if name not in self._started and name not in self.reasons:
            print(f"starting {name} ...", file=sys.stderr)
            try:
                self._started[name] = self._stack.enter_context(start())
            except (RuntimeError, OSError) as error:
                print(error, file=sys.stderr)
                self.reasons[name] = f"did not start: {str(error).splitlines()[0]}"
        started: Started | None = self._started.get(name)
        return started


def embedding_info(server: Server) -> dict[str, Any]:
    """What embeds there, in the server's own words."""
    info: dict[str, Any] = server.get("/info").get("embedding") or {}
    return info


def _environment() -> dict[str, str]:
    return os.environ | QUIET
