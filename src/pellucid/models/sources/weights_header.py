"""What a safetensors file says about itself, read without reading its tensors."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


class HeaderUnreadable(ValueError):
    """The file does not begin with a safetensors header, or is cut off."""


def read_header(path: Path) -> bytes:
    """The header as JSON bytes: 8 bytes of length (little endian) stand before it.

    Source: the safetensors format description. Raises HeaderUnreadable.
    """
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise HeaderUnreadable(f"{path.name} has {len(prefix)} bytes")
        (length,) = struct.unpack("<Q", prefix)
        if length > _MAX_HEADER_BYTES:
            raise HeaderUnreadable(f"{path.name} announces a header of {length} bytes")
        header = file.read(length)
    if len(header) < length:
        raise HeaderUnreadable(f"{path.name} ends within its header")
    return header


def count_parameters(paths: Iterable[Path]) -> int | None:
    """Numbers in all tensors of safetensors files; None when a file is of another format."""
    total = 0
    for path in paths:
        if path.suffix != ".safetensors":
            return None
        try:
            tensors = json.loads(read_header(path))
            total += sum(
                math.prod(tensor["shape"])
                for name, tensor in tensors.items()
                if name != "__metadata__"
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # an estimate only; loading will say what is wrong
    return total
