"""Capturing with a tiny backend: two texts of different length, padded on either side."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pellucid.models.backend import (
    AttentionName,
    Batch,
    CaptureSpec,
    Encoding,
    Float32,
    Int64,
    ModelOutputs,
)
from pellucid.models.transformers_backend import TransformersBackend
from tiny_models import LONG_TEXT, SHORT_TEXT

Captured = dict[tuple[AttentionName, int], Float32]
Side = Literal["left", "right"]


class Collector:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.layers: Captured = {}

    def __call__(self, name: AttentionName, layer: int, weights: Float32) -> None:
        assert (name, layer) not in self.layers
        assert weights.dtype == np.float32
        self.layers[name, layer] = weights


def capture(
    backend: TransformersBackend, batch: Batch, spec: CaptureSpec
) -> tuple[Captured, ModelOutputs]:
    collector = Collector()
    outputs = backend.inspect(batch, spec, sink=collector)
    return collector.layers, outputs


def encodings(backend: TransformersBackend) -> list[Encoding]:
    return [backend.tokenize(text) for text in (LONG_TEXT, SHORT_TEXT)]


def targets(backend: TransformersBackend) -> list[Encoding]:
    return [
        backend.tokenize("The dog and the fox, the shells.", target=True),
        backend.tokenize("She buys the sea.", target=True),
    ]


def padded(rows: list[Int64], *, pad_id: int, side: Side) -> tuple[Int64, Int64]:
    longest = max(row.size for row in rows)
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(0, row.size) if side == "right" else slice(longest - row.size, longest)
        ids[index, place] = row
        mask[index, place] = 1
    return ids, mask


def batch_of(backend: TransformersBackend, *, side: Side = "right") -> Batch:
    ids, mask = padded([e.input_ids for e in encodings(backend)], pad_id=backend.pad_id, side=side)
    if backend.info.kind != "encoder-decoder":
        return Batch(input_ids=ids, attention_mask=mask)
    target_ids, target_mask = padded(
        [e.input_ids for e in targets(backend)], pad_id=backend.pad_id, side=side
    )
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        decoder_input_ids=target_ids,
        decoder_attention_mask=target_mask,
    )


def masks(name: AttentionName, batch: Batch, row: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Real queries and real keys of one text."""
    source = batch.attention_mask[row] == 1
    target = source
    if batch.decoder_input_ids is not None:
        target = np.ones(batch.decoder_input_ids.shape[1], dtype=bool)
    if batch.decoder_attention_mask is not None:
        target = batch.decoder_attention_mask[row] == 1
    queries = target if name in ("decoder_attentions", "cross_attentions") else source
    keys = target if name == "decoder_attentions" else source
    return queries, keys
