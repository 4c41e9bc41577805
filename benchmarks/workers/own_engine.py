"""Our own engine without HTTP: requests of 32 texts, all of them at once.

Run as ``python -m benchmarks.workers.own_engine``; settings come from the environment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.workers.loop import answer_requests
from pellucid.cli.options import settings_from
from pellucid.inference.composition import build_engine
from pellucid.inference.engine import EmbeddingQuery

PER_REQUEST = 32


class OwnEngineEmbedder:
    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._engine = build_engine(settings_from())
        runner.run(self._engine.load())

    def embed_all(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._runner.run(self._embed(texts))

    def embed_one(self, text: str) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self.embed_all([text])[0]
        return vector

    def close(self) -> None:
        self._runner.run(self._engine.close())

    async def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        parts = [texts[start : start + PER_REQUEST] for start in range(0, len(texts), PER_REQUEST)]
        answers = await asyncio.gather(
            *(self._engine.embed(EmbeddingQuery(inputs=part)) for part in parts)
        )
        return np.concatenate([answer.vectors for answer in answers])


if __name__ == "__main__":
    with asyncio.Runner() as runner:
        embedder = OwnEngineEmbedder(runner)
        answer_requests(embedder)
        embedder.close()
