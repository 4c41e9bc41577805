"""``SentenceTransformer.encode(batch_size=32)``: the yardstick.

Run as ``python -m benchmarks.workers.sentence_transformers_fp32 FOLDER``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from benchmarks.workers.loop import answer_requests


class SentenceTransformersEmbedder:
    def __init__(self, folder: str) -> None:
        self._model = SentenceTransformer(folder, device="cpu")

    def embed_all(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = self._model.encode(
            list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)

    def embed_one(self, text: str) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self.embed_all([text])[0]
        return vector


if __name__ == "__main__":
    answer_requests(SentenceTransformersEmbedder(sys.argv[1]))
