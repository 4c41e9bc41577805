"""Layers of attention, as they come, put into the arrays that will be sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.inference.engine import Tensor, TensorDtype
from pellucid.introspection.quantization import UINT8_SCALE, fits_float16, quantize, to_float16
from pellucid.models.backend import Float32

ATTENTION_AXES = ("layer", "head", "query_position", "key_position")
FLOAT16_NOTE = "uint8 was asked for, sent as float16"
FLOAT32_NOTE = "float16 cannot hold these values, sent as float32"


class LayerArrays:
    """One array [num_layers, num_heads, query_len, key_len], or one per layer where they differ.

    The array is made once, when the first layer has told its shape, so that a model's whole
    attention is in memory only in the dtype that was asked for.
    """

    def __init__(self, layers: Sequence[int], *, dtype: TensorDtype) -> None:
        self._layers = tuple(layers)
        self._dtype = np.dtype(dtype)
        self._whole: NDArray[Any] | None = None
        self._by_layer: dict[int, NDArray[Any]] = {}

    def add(self, layer: int, weights: Float32) -> None:
        """Take in one layer [num_heads, query_len, key_len]; only those named before."""
        if self._whole is None:
            self._whole = np.empty((len(self._layers), *weights.shape), dtype=self._dtype)
        if weights.shape == self._whole.shape[1:]:
            target = self._whole[self._layers.index(layer)]
        else:
            target = np.empty(weights.shape, dtype=self._dtype)
        if self._dtype == np.uint8:
            quantize(weights, out=target)
        elif self._dtype == np.float16:
            to_float16(weights, out=target)
        else:
            target[...] = weights
        self._by_layer[layer] = target

    def layer(self, layer: int) -> NDArray[Any]:
        return self._by_layer[layer]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The whole under ``name``, or ``name.<layer>`` each."""
        scale = UINT8_SCALE if self._dtype == np.uint8 else None
        if self._whole is None:
            return {}
        if all(array.base is self._whole for array in self._by_layer.values()):
            return {name: Tensor(values=self._whole, axes=ATTENTION_AXES, scale=scale)}
        return {
            f"{name}.{layer}": Tensor(values=array, axes=ATTENTION_AXES[1:], scale=scale)
            for layer, array in self._by_layer.items()
        }


def float_tensor(values: Float32, *, axes: tuple[str, ...], dtype: TensorDtype) -> Tensor:
    """Values of any size in the dtype asked for, or in the next one that can hold them."""
    if dtype == "float32":
        return Tensor(values=values, axes=axes)
    if not fits_float16(values):
        return Tensor(values=values, axes=axes, note=FLOAT32_NOTE)
    note = FLOAT16_NOTE if dtype == "uint8" else None
    return Tensor(values=to_float16(values), axes=axes, note=note)
