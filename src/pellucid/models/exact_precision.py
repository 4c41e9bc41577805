"""A model of half precision, for a while in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Weights and buffers of ``module`` as float32 within the block, and as they were after it.

    Takes twice the memory of 16-bit weights beside them. Weights that other modules share change
    with them, so nothing else may run on the model meanwhile.
    """
    halved = [
        (tensor, tensor.data)
        for tensor in chain(module.parameters(), module.buffers())
        if tensor.is_floating_point() and tensor.dtype != torch.float32
    ]
    try:
        for tensor, original in halved:
            tensor.data = original.to(torch.float32)
        yield
    finally:
        for tensor, original in halved:
            tensor.data = original
