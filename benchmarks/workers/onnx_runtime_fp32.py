"""ONNX Runtime, float32, as FastEmbed and Chroma's default use it: tokenise, run, average,
normalise. Exports the model once.

Run as ``python -m benchmarks.workers.onnx_runtime_fp32 FOLDER GRAPH NUM_THREADS`` in the peers'
environment; NUM_THREADS 0 leaves it to ONNX Runtime.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.workers.loop import answer_requests

_MAX_TOKENS = 256
_BATCH_SIZE = 32
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_OUTPUT = "last_hidden_state"


class OnnxRuntimeEmbedder:
    def __init__(self, folder: str, graph: Path, *, num_threads: int) -> None:
        self._tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        self._tokenizer.enable_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )

    def embed_all(self, texts: Sequence[str]) -> NDArray[np.float32]:
        starts = range(0, len(texts), _BATCH_SIZE)
        return np.concatenate([self._embed(texts[start : start + _BATCH_SIZE]) for start in starts])

    def embed_one(self, text: str) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self._embed([text])[0]
        return vector

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        encodings = self._tokenizer.encode_batch(list(texts))
        mask = np.array([each.attention_mask for each in encodings])
        given = (np.array([each.ids for each in encodings]), mask, np.zeros_like(mask))
        (hidden,) = self._session.run([_OUTPUT], dict(zip(_INPUTS, given, strict=True)))
        summed: NDArray[np.float32] = np.einsum("bsh,bs->bh", hidden, mask.astype(np.float32))
        vectors: NDArray[np.float32] = summed / np.linalg.norm(summed, axis=1, keepdims=True)
        return vectors  # those of the mean: its divisor falls out


def export(folder: str, graph: Path) -> None:
    """Write the transformer as ONNX, float32, with free batch and sequence axes."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    example = torch.ones((1, 8), dtype=torch.int64)
    unfinished = graph.with_suffix(".unfinished")
    torch.onnx.export(
        model,
        (example, example, torch.zeros_like(example)),
        unfinished,
        input_names=list(_INPUTS),
        output_names=[_OUTPUT],
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in (*_INPUTS, _OUTPUT)},
        dynamo=False,
    )
    unfinished.rename(graph)


if __name__ == "__main__":
    folder, graph = sys.argv[1], Path(sys.argv[2])
    if not graph.exists():
        export(folder, graph)
    answer_requests(OnnxRuntimeEmbedder(folder, graph, num_threads=int(sys.argv[3])))
