"""A batch as the inputs of a graph: int32, padding right, in one of the shapes it was warmed in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pellucid.models.backend import Batch, EmbeddingInput, Int64

Int32 = NDArray[np.int32]


def input_names(
    inputs: Sequence[EmbeddingInput], *, takes_token_types: bool, leaves_prompt_out: bool
) -> list[str]:
    """Inputs that a model's graph needs. Segments that are always 0 are left to the model."""
    names = ["input_ids", "attention_mask"]
    types = [item.token_type_ids for item in inputs if item.token_type_ids is not None]
    if takes_token_types and any(row.any() for row in types):
        names.append("token_type_ids")
    if leaves_prompt_out:
        names.append("num_prompt_tokens")
    return names


class Feeder:
    """Rows of one batch as inputs of any shape."""

    def __init__(self, batch: Batch, names: Sequence[str], *, pad_id: int) -> None:
        """Raises ValueError for segments that the graph has no input for."""
        types = batch.token_type_ids
        if types is not None and "token_type_ids" not in names and types.any():
            raise ValueError("the batch has segments, the graph was made without")
        self.lengths: Int64 = batch.attention_mask.sum(axis=1)
        self._names = names
        self._pad_id = pad_id
        self._input_ids = _padded_right(batch.input_ids, batch.attention_mask)
        self._token_types = None if types is None else _padded_right(types, batch.attention_mask)
        self._num_prompt_tokens = batch.num_prompt_tokens

    def feed(self, rows: Int64, *, num_rows: int, seq_len: int) -> dict[str, Int32]:
        """The named inputs [num_rows, seq_len] (prompts: [num_rows]) of the rows that are named,
        filled up with padding. A row without text has one token, so that its attention, which
        nobody reads, is a number."""
        lengths = self.lengths[rows]
        width = min(seq_len, self._input_ids.shape[1])
        real = np.ones((num_rows, 1), dtype=np.int64)
        real[: rows.size, 0] = lengths
        mask = (np.arange(seq_len) < real).astype(np.int32)
        feed: dict[str, Int32] = {}
        for name in self._names:
            if name == "attention_mask":
                feed[name] = mask
            elif name == "num_prompt_tokens":
                feed[name] = np.zeros(num_rows, dtype=np.int32)
                if self._num_prompt_tokens is not None:
                    feed[name][: rows.size] = self._num_prompt_tokens[rows]
            else:
                is_ids = name == "input_ids"
                feed[name] = np.full((num_rows, seq_len), self._pad_id * is_ids, dtype=np.int32)
                values = self._input_ids if is_ids else self._token_types
                if values is not None:
                    inside = mask[: rows.size, :width]
                    filler = self._pad_id * is_ids
                    feed[name][: rows.size, :width] = np.where(inside, values[rows, :width], filler)
        return feed


def feed(batch: Batch, names: Sequence[str], *, pad_id: int) -> dict[str, Int32]:
    """A whole batch in the shape that it has."""
    num_rows, seq_len = batch.input_ids.shape
    feeder = Feeder(batch, names, pad_id=pad_id)
    return feeder.feed(np.arange(num_rows), num_rows=num_rows, seq_len=seq_len)


def _padded_right(values: Int64, attention_mask: Int64) -> Int64:
    """[batch, seq_len] with each row's real values first, in their order."""
    if (np.diff(attention_mask, axis=1) <= 0).all():
        return values
    order = np.argsort(attention_mask == 0, axis=1, kind="stable")
    return np.take_along_axis(values, order, axis=1)
