from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from attention_examples import attentions, random_attention
from pellucid.introspection.rollout import HeadFusion, Rollout


def test_two_layers_by_hand() -> None:
    rollout = Rollout()
    rollout.add(np.array([[[1, 0], [1, 0]]], dtype=np.float32))
    assert rollout.result().tolist() == [[1, 0], [0.5, 0.5]]
    rollout.add(np.array([[[0, 1], [0, 1]]], dtype=np.float32))
    # Rows of the second step: [.5, .5] and [0, 1].
    assert rollout.result().tolist() == [[0.75, 0.25], [0.5, 0.5]]
    assert rollout.num_layers == 2


@given(st.lists(attentions(), min_size=1, max_size=4), st.sampled_from(["mean", "max", "min"]))
def test_rows_sum_to_one_and_equal_a_plain_product(
    layers: list[NDArray[np.float32]], head_fusion: HeadFusion
) -> None:
    length = layers[0].shape[1]
    layers = [layer for layer in layers if layer.shape[1] == length]
    rollout = Rollout(head_fusion=head_fusion)
    expected = np.eye(length)
    for layer in layers:
        rollout.add(layer)
        step = np.zeros((length, length))
        for i in range(length):
            for j in range(length):
                heads = [float(head[i, j]) for head in layer]
                fused = {"mean": sum(heads) / len(heads), "max": max(heads), "min": min(heads)}
                step[i, j] = 0.5 * fused[head_fusion] + 0.5 * (i == j)
        step /= step.sum(axis=1, keepdims=True)
        expected = step @ expected

    result = rollout.result()
    assert result == pytest.approx(expected, abs=1e-6)
    assert np.isfinite(result).all()
    assert result.sum(axis=1) == pytest.approx(np.ones(length), abs=1e-5)


def test_causal_stays_causal() -> None:
    rollout = Rollout()
    for seed in range(5):
        rollout.add(random_attention(seed, causal=True))
    assert np.triu(rollout.result(), k=1).max() == 0


def test_what_a_learned_sink_takes_goes_back_in_proportion() -> None:
    rollout = Rollout()
    rollout.add(np.array([[[0.0, 0.2], [0.0, 0.2]]], dtype=np.float32))  # 0.8 to the sink
    assert rollout.result()[0] == pytest.approx([0.5 / 0.6, 0.1 / 0.6])


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no layer"):
        Rollout().result()
    with pytest.raises(ValueError, match="as many queries"):
        Rollout().add(np.ones((1, 2, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="residual"):
        Rollout(residual=0.0)
    rollout = Rollout()
    rollout.add(random_attention(0, query_len=4))
    with pytest.raises(ValueError, match="5 tokens after"):
        rollout.add(random_attention(0, query_len=5))
    with pytest.raises(ValueError, match="NaN"):
        rollout.add(np.full((1, 4, 4), np.nan, dtype=np.float32))
