"""Attention of one layer, made by hand, at random and by hypothesis; shared by the tests here."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray


def random_attention(
    seed: int,
    *,
    num_heads: int = 3,
    query_len: int = 6,
    key_len: int | None = None,
    causal: bool = False,
    sink: float | None = None,
    cut_key: int | None = None,
    sharpness: float = 2.0,
) -> NDArray[np.float32]:
    """Softmax of random scores; ``sink`` is the score of a learned sink, dropped afterwards."""
    rng = np.random.default_rng(seed)
    keys = query_len if key_len is None else key_len
    scores = rng.standard_normal((num_heads, query_len, keys)) * sharpness
    if causal:
        scores[:, np.arange(keys)[None, :] > np.arange(query_len)[:, None]] = -np.inf
    if cut_key is not None and keys > 1:
        cut = np.arange(query_len) != cut_key if causal else np.arange(query_len) >= 0
        scores[:, cut, cut_key] = -np.inf
    columns = scores if sink is None else np.pad(scores, ((0, 0), (0, 0), (0, 1)))
    if sink is not None:
        columns[:, :, -1] = sink
    columns = np.exp(columns - columns.max(axis=2, keepdims=True))
    columns /= columns.sum(axis=2, keepdims=True)
    return columns[:, :, :keys].astype(np.float32)


@st.composite
def attentions(draw: st.DrawFn, *, square: bool = True) -> NDArray[np.float32]:
    """Any layer: short and long, sharp and flat, with sinks, masks and knocked-out columns."""
    query_len = draw(st.integers(1, 9))
    key_len = query_len if square else draw(st.integers(1, 9))
    return random_attention(
        draw(st.integers(0, 2**31)),
        num_heads=draw(st.integers(1, 4)),
        query_len=query_len,
        key_len=key_len,
        causal=square and draw(st.booleans()),
        sink=draw(st.none() | st.floats(-5, 40)),
        cut_key=draw(st.none() | st.integers(0, key_len - 1)),
        sharpness=draw(st.sampled_from([0.0, 0.5, 3.0, 60.0])),
    )
