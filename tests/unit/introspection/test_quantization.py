from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from pellucid.introspection.quantization import (
    dequantize,
    fits_float16,
    quantize,
    to_float16,
)

UNIT = st.floats(0, 1, width=32)


@given(npst.arrays(np.float32, npst.array_shapes(max_dims=4, max_side=6), elements=UNIT))
def test_error_is_at_most_half_a_step(weights: NDArray[np.float32]) -> None:
    stored = quantize(weights)
    assert stored.shape == weights.shape
    for weight, value in zip(weights.ravel().tolist(), stored.ravel().tolist(), strict=True):
        assert abs(Fraction(weight) - Fraction(value, 255)) <= Fraction(1, 510)


def test_error_bound_holds_beside_every_tie() -> None:
    middles = ((np.arange(255) + 0.5) / 255).astype(np.float32)
    around = np.concatenate(
        [middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(1))]
    )
    for weight, value in zip(around.tolist(), quantize(around).tolist(), strict=True):
        assert abs(Fraction(weight) - Fraction(value, 255)) <= Fraction(1, 510)


def test_all_256_values_survive_the_way_back() -> None:
    values = np.arange(256, dtype=np.uint8)
    weights = dequantize(values)
    assert weights.dtype == np.float32
    assert (quantize(weights) == values).all()
    assert weights == pytest.approx(np.arange(256) / 255, abs=1e-7)


def test_blocks_meet_without_a_seam() -> None:
    weights = np.random.default_rng(0).random(100_001, dtype=np.float32)
    assert (quantize(weights) == np.floor(weights.astype(np.float64) * 255 + 0.5)).all()


def test_layers_are_written_in_place() -> None:
    weights = np.random.default_rng(1).random((2, 3, 4, 4), dtype=np.float32)
    whole = np.zeros(weights.shape, dtype=np.uint8)
    for layer, target in zip(weights, whole, strict=True):
        assert quantize(layer, out=target) is target
    assert (whole == quantize(weights)).all()


def test_rounding_errors_of_a_softmax_are_taken_for_its_bounds() -> None:
    assert quantize(np.array([-1e-7, 1 + 1e-6], dtype=np.float32)).tolist() == [0, 255]


@pytest.mark.parametrize("bad", [-0.01, 1.01, 300.0, np.nan, np.inf])
def test_other_values_are_refused(bad: float) -> None:
    weights = np.full(70_000, 0.5, dtype=np.float32)
    weights[69_999] = bad
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        quantize(weights)


def test_a_target_of_another_form_is_refused() -> None:
    weights = np.zeros((2, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="uint8"):
        quantize(weights, out=np.zeros((3, 2), dtype=np.uint8))
    with pytest.raises(ValueError, match="float16"):
        to_float16(weights, out=np.zeros((3, 2), dtype=np.float16))


def test_nothing_to_do() -> None:
    assert quantize(np.zeros((0, 3), dtype=np.float32)).shape == (0, 3)
    assert to_float16(np.zeros((0, 3), dtype=np.float32)).shape == (0, 3)
    half = np.ones(3, dtype=np.float16)
    assert to_float16(half) is half


@given(
    npst.arrays(
        np.float32,
        st.integers(0, 20),
        elements=st.floats(-65504, 65504, width=32, allow_subnormal=True),
    )
)
def test_float16_is_that_of_ieee(values: NDArray[np.float32]) -> None:
    expected = values.astype(np.float16)
    assert (to_float16(values).view(np.uint16) == expected.view(np.uint16)).all()


def test_float16_of_every_half_its_neighbours_and_the_ties_between() -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[:-1] + halves[1:]) / 2
    exact = np.concatenate([halves, ties])
    values = np.concatenate(
        [exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(1e6))]
    )
    values = np.concatenate([values, -values])
    values = values[np.abs(values) < 65520]
    assert (to_float16(values).view(np.uint16) == values.astype(np.float16).view(np.uint16)).all()


def test_float16_of_other_types() -> None:
    values = np.array([0.1, -3.5], dtype=np.float64)
    assert (to_float16(values) == values.astype(np.float16)).all()


@pytest.mark.parametrize("bad", [65520.0, -1e6, np.nan, np.inf])
def test_float16_never_becomes_infinite(bad: float) -> None:
    values = np.array([1.0, bad], dtype=np.float32)
    assert not fits_float16(values)
    with pytest.raises(ValueError, match="65504"):
        to_float16(values)


def test_the_largest_float16_fits() -> None:
    values = np.array([65519.0, -65519.0], dtype=np.float32)
    assert to_float16(values).tolist() == [65504, -65504]
