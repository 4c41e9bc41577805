"""Giving a model's memory back to the system."""

from __future__ import annotations

import gc
from itertools import chain

import torch
from torch import nn

from pellucid.models import machine


def memory_bytes(model: nn.Module) -> int:
    """Bytes of weights and buffers; tensors that share their storage count once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in chain(model.parameters(), model.buffers())
    }
    return sum(storages.values())


def empty(model: nn.Module) -> None:
    """Drop every weight, even if somebody still holds the model."""
    for tensor in chain(model.parameters(), model.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)


def give_back(device: torch.device) -> None:
    """Collect what nothing refers to, and return freed memory to device and system."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    machine.trim_heap()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: on cuda that has a class of its own, elsewhere only words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "out of memory")
    )
