"""Which device models would run on, and whether this machine has it."""

from __future__ import annotations

import torch

from pellucid.models import machine
from pellucid.models.loading import choose_device, choose_dtype


def describe_device(setting: str) -> tuple[str, bool]:
    """The device that the setting means, in words, and whether it can be used."""
    device = choose_device(setting)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return "cuda, but PyTorch finds no CUDA device", False
        return f"cuda: {torch.cuda.get_device_name(device)}", True
    if device.type == "mps":
        is_there = torch.backends.mps.is_available()
        return "mps" if is_there else "mps, but PyTorch finds none", is_there
    return f"{device.type}, {torch.get_num_threads()} threads", True


def device_memory_bytes(setting: str) -> int:
    """Memory that the device has in all; for cpu and mps what this process may have of the
    machine's, which in a container is less."""
    device = choose_device(setting)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine.memory_bytes()


def bytes_per_parameter(dtype: str, setting: str) -> int:
    """Bytes of one weight in memory, whatever it takes on disk."""
    return int(choose_dtype(dtype, choose_device(setting)).itemsize)
