"""The side of the worker: one line of JSON in, one line of JSON out, until stdin ends.

``{"task": "bulk", "texts": [...]}`` -> ``{"seconds": [all]}``
``{"task": "each", "texts": [...]}`` -> ``{"seconds": [one for each text, one at a time]}``
``{"task": "vectors", "texts": [...]}`` -> ``{"vectors": [[...], ...]}``
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Embedder(Protocol):
    """A library as its own documentation uses it."""

    def embed_all(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n, dimensions], L2-normalised."""
        ...

    def embed_one(self, text: str) -> NDArray[np.float32]: ...


def answer_requests(embedder: Embedder) -> None:
    """Until the parent closes its end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(embedder, json.loads(line))), file=answers, flush=True)


def _answer(embedder: Embedder, request: dict[str, Any]) -> dict[str, Any]:
    texts = request["texts"]
    if request["task"] == "vectors":
        return {"vectors": embedder.embed_all(texts).tolist()}
    if request["task"] == "bulk":
        started = time.perf_counter()
        embedder.embed_all(texts)
        return {"seconds": [time.perf_counter() - started]}
    seconds = []
    for text in texts:
        started = time.perf_counter()
        embedder.embed_one(text)
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds}
