"""What embeddings are compared with: the sentence-transformers library, and 200 texts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.models.backend import (
    Batch,
    Encoding,
    Float32,
    InputType,
    Int64,
    ModelInfo,
    Truncation,
)
from pellucid.models.embedding.prompts import choose_prompt
from tiny_backends import load_tiny
from tiny_models import SENTENCES

ODD_TEXTS = (
    "a",
    "!",
    "👨‍👩‍👧‍👦 family, 🇩🇪 flag, 👍🏽 thumb",
    "e\u0301 is not é, but ﬁ is fi",
    "漢字とひらがな",
    "שלום עולם, مرحبا بالعالم",
    "tabs\tand\nlines\r\n\r\nand   spaces  ",
    "  a leading space",
    "[MASK] and </s> written out <s>",
    "x" * 400,
    "MiXeD CaSe WORDS",
    "Ünïcödé ÀÉÎ ß ẞ İ",
)


def texts_of_all_lengths(count: int = 200) -> list[str]:
    """One word to some 600, the odd ones among them; the same ones every time."""
    rng = random.Random(0)
    words = [word for sentence in SENTENCES for word in sentence.split()]
    lengths = [1 + round(599 * (i / count) ** 4) for i in range(count - len(ODD_TEXTS))]
    texts = [" ".join(rng.choices(words, k=length)) for length in lengths]
    texts.extend(ODD_TEXTS)
    rng.shuffle(texts)
    return texts


def library(folder: Path) -> Any:
    """The folder as the sentence-transformers library loads it."""
    import sentence_transformers

    return sentence_transformers.SentenceTransformer(
        str(folder), device="cpu", local_files_only=True
    )


def normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Row by row."""
    return (normalized(first) * normalized(second)).sum(axis=1)


class Embedder:
    """Pellucid's backend, fed in batches."""

    def __init__(self, folder: Path) -> None:
        self.backend = load_tiny(folder)

    @property
    def info(self) -> ModelInfo:
        return self.backend.info

    def tokenize(
        self,
        texts: Sequence[str],
        *,
        input_type: InputType | None = None,
        truncation: Truncation = "end",
    ) -> list[Encoding]:
        prompt = choose_prompt(
            input_type=input_type,
            prompt_name=None,
            prompts=self.info.prompts,
            default_prompt_name=self.info.default_prompt_name,
            model_id=self.info.model_id,
        )
        return self.backend.tokenize_for_embedding(texts, prompt=prompt, truncation=truncation)

    def encode(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 16,
        input_type: InputType | None = None,
        pad_left: bool = False,
    ) -> Float32:
        """Batches in the order given, each padded to its longest."""
        encodings = self.tokenize(texts, input_type=input_type)
        rows = []
        for start in range(0, len(encodings), batch_size):
            batch = Batch.of(encodings[start : start + batch_size], pad_id=self.backend.pad_id)
            rows.append(self.backend.encode(padded_left(batch) if pad_left else batch))
        return np.concatenate(rows)


def padded_left(batch: Batch) -> Batch:
    """The same texts with their padding in front."""
    shifts = batch.input_ids.shape[1] - batch.attention_mask.sum(axis=1)

    def shifted(rows: Int64) -> Int64:
        return np.stack([np.roll(row, shift) for row, shift in zip(rows, shifts, strict=True)])

    segments = batch.token_type_ids
    return replace(
        batch,
        input_ids=shifted(batch.input_ids),
        attention_mask=shifted(batch.attention_mask),
        token_type_ids=None if segments is None else shifted(segments),
    )
