"""Masks and windows told from the weights themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pellucid.inference.attention_reader import StackReader, listed
from pellucid.inference.engine import InspectionQuery
from pellucid.inference.plan import plan_inspection
from pellucid.models.backend import Bool
from pellucid.models.fake.backend import FakeBackend, FakeModel

Float64 = NDArray[np.float64]
LENGTH = 8


def masked(kind: str) -> Bool:
    queries, keys = np.arange(LENGTH)[:, None], np.arange(LENGTH)[None, :]
    masks: dict[str, Bool] = {
        "full": np.ones((LENGTH, LENGTH), dtype=np.bool_),
        "causal": keys <= queries,
        "causal window": (keys <= queries) & (keys > queries - 3),
        "window": np.abs(keys - queries) <= 2,
    }
    return masks[kind]


@given(arrays(np.float64, 20, elements=st.floats(-1e30, 1e30)))
def test_plain_numbers_keep_what_float32_has(values: Float64) -> None:
    np.testing.assert_allclose(listed(values), values, rtol=1e-6, atol=1e-290)
    short = [number for number in listed(values) if 1e-4 < abs(number) < 1e6]
    assert all(len(str(abs(number)).replace(".", "").strip("0")) <= 7 for number in short)


@pytest.mark.parametrize("kind", ["full", "causal", "causal window", "window"])
def test_uniform_attention_is_relative_one_under_every_mask(kind: str) -> None:
    """Whatever the mask, uniform attention gives each key exactly what was to be expected."""
    visible = masked(kind)
    weights = (visible / visible.sum(axis=1, keepdims=True)).astype(np.float32)
    info = FakeBackend(FakeModel(heads_per_layer=(2,))).info
    plan = plan_inspection(info, InspectionQuery(text="a", include=frozenset({"statistics"})))
    encoding = FakeBackend().tokenize("a b c d e f")
    reader = StackReader(plan, plan.stacks[0], queries=encoding, keys=encoding)
    reader.take(0, np.stack([weights, weights]))
    np.testing.assert_allclose(reader.statistics()["received_relative"][0], 1.0, atol=1e-6)
    seen = weights.sum(axis=0) / visible.sum(axis=0)
    np.testing.assert_allclose(reader.statistics()["received"][0], seen, atol=1e-6)
