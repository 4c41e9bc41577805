"""Fewer bytes per value, with the error known."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.introspection.arrays import Float32

UINT8_SCALE = 1.0 / 255.0  # value = stored * scale
MAX_UINT8_ERROR = 1.0 / 510.0
_SLACK = 1e-4  # a softmax may end a rounding error outside [0, 1]
_BLOCK = 1 << 15  # values at a time: the scratch array stays in the processor's cache

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_ALL_BITS = np.uint32(0xFFFFFFFF)
_HALF = np.float32(0.5).view(np.uint32)
_SMALLEST_NORMAL_HALF = np.float32(2.0**-14).view(np.uint32)
_ROUND_AND_REBIAS = np.uint32(0x1_0000_0000 - ((127 - 15) << 23) + 0xFFF)

UInt8 = NDArray[np.uint8]
Float16 = NDArray[np.float16]


def quantize(weights: NDArray[Any], *, out: UInt8 | None = None) -> UInt8:
    """round(255 w) of values in [0, 1]: the same shape, uint8, error at most 1/510.

    ``out`` (C-contiguous, the same shape) takes the result, so that layers can be written straight
    into the array that holds them all. Raises ValueError for values outside [0, 1] or NaN.
    """
    source = np.ascontiguousarray(weights)
    target = np.empty(source.shape, dtype=np.uint8) if out is None else out
    if target.shape != source.shape or target.dtype != np.uint8 or not target.flags.c_contiguous:
        raise ValueError(f"out is C-contiguous uint8 {source.shape}")
    flat, flat_target = source.reshape(-1), target.reshape(-1)
    # float64 holds 255 w exactly for a float32 w, so that no tie is rounded the wrong way.
    scratch = np.empty(min(_BLOCK, flat.size), dtype=np.float64)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        if not (block.min() >= -_SLACK and block.max() <= 1.0 + _SLACK):
            raise ValueError("only values in [0, 1] can be stored as uint8 / 255")
        scaled = scratch[: block.size]
        np.multiply(block, 255.0, out=scaled, dtype=np.float64)
        scaled += 0.5
        # Casting cuts towards zero, which is the floor here; -_SLACK ends up at 0 as well.
        np.copyto(flat_target[start : start + _BLOCK], scaled, casting="unsafe")
    return target


def dequantize(values: UInt8) -> Float32:
    """uint8 -> float32 in [0, 1]: value / 255."""
    # Dividing by 255 is correctly rounded; multiplying by 1/255 is not.
    restored: Float32 = np.divide(values, np.float32(255.0), dtype=np.float32)
    return restored


def fits_float16(values: NDArray[Any]) -> bool:
    """Whether every value stays finite as float16 (largest 65504)."""
    if values.size == 0:
        return True
    largest = max(float(values.max()), -float(values.min()))
    return largest < 65520.0  # from here on float16 rounds to infinity; NaN compares false


def to_float16(values: NDArray[Any], *, out: Float16 | None = None) -> Float16:
    """The nearest float16 (IEEE 754, ties to even), not copied if ``values`` are float16 already.

    Error at most 2^-11 of the value, or 2^-25 below 2^-14. ``out`` as in ``quantize``. Raises
    ValueError when a value would become infinite or is NaN: ask ``fits_float16`` first.
    """
    if values.dtype == np.float16 and out is None:
        return values
    if not fits_float16(values):
        raise ValueError("NaN or values beyond 65504 do not fit float16")
    target = np.empty(values.shape, dtype=np.float16) if out is None else out
    if target.shape != values.shape or target.dtype != np.float16 or not target.flags.c_contiguous:
        raise ValueError(f"out is C-contiguous float16 {values.shape}")
    if values.dtype == np.float32:
        _round_to_half(np.ascontiguousarray(values).reshape(-1), target.reshape(-1))
    else:
        target[...] = values
    return target


def _round_to_half(values: Float32, target: Float16) -> None:
    """Float32 to float16 on the bits, the result being bit for bit that of ``astype``.

    numpy converts one value at a time and takes ten times as long below 2^-14, where most attention
    weights of a long text lie (float16 subnormals).
    """
    bits, target_bits = values.view(np.uint32), target.view(np.uint16)
    scratch = np.empty((3, min(_BLOCK, bits.size)), dtype=np.uint32)
    for start in range(0, bits.size, _BLOCK):
        block = bits[start : start + _BLOCK]
        magnitude, other, small = scratch[:, : block.size]
        np.bitwise_and(block, _MAGNITUDE, out=magnitude)
        is_small = magnitude < _SMALLEST_NORMAL_HALF
        # Adding 0.5 makes the processor round to multiples of 2^-24, the step of subnormals.
        np.add(magnitude.view(np.float32), np.float32(0.5), out=small.view(np.float32))
        small -= _HALF
        # Otherwise: round at bit 13 to even (its own bit + 0xFFF) and move the exponent's bias.
        np.right_shift(magnitude, 13, out=other)
        other &= 1
        magnitude += other
        magnitude += _ROUND_AND_REBIAS
        magnitude >>= 13
        # Choose without branches: random choices would cost more than all the rest.
        small ^= magnitude
        np.multiply(is_small, _ALL_BITS, out=other, dtype=np.uint32)
        small &= other
        magnitude ^= small
        np.right_shift(block, 16, out=other)
        other &= 0x8000
        magnitude |= other
        np.copyto(target_bits[start : start + _BLOCK], magnitude, casting="unsafe")
