"""Arrays on the wire: JSON and safetensors, written without a Python loop over numbers."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import orjson
from fastapi import Response
from fastapi.responses import StreamingResponse
from numpy.typing import NDArray

from pellucid.api.problems import NotAcceptable
from pellucid.errors import NonFiniteValues
from pellucid.inference.engine import Tensor

JSON_TYPE: Final = "application/json"
SAFETENSORS_TYPE: Final = "application/vnd.safetensors"
BYTES_TYPE: Final = "application/octet-stream"
ARRAY_TYPES: Final = (JSON_TYPE, SAFETENSORS_TYPE)

JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS

_DTYPE_NAMES = {"float32": "F32", "float16": "F16", "uint8": "U8", "int64": "I64", "bool": "BOOL"}
_CHUNK_VALUES = 1 << 18  # about 3 MB of JSON: 20 ms in which nothing else runs
_CHUNK_BYTES = 1 << 20
_WHOLE_VALUES = 1 << 16  # smaller answers are one message with a Content-Length

Nested = NDArray[Any] | list[Any]


def preferred_type(accept: str | None, *, offered: Sequence[str] = ARRAY_TYPES) -> str:
    """The offered type that ``Accept`` likes best; the first when it does not care.

    Raises NotAcceptable.
    """
    if not accept or not accept.strip():
        return offered[0]
    weights = {kind: _weight(accept, kind) for kind in offered}
    best = max(weights, key=lambda kind: weights[kind])  # the first of equals
    if weights[best] <= 0:
        raise NotAcceptable(accept=accept, available=", ".join(offered))
    return best


def _weight(accept: str, kind: str) -> float:
    """The weight that ``accept`` gives to ``kind``: of its most specific matching range."""
    main, _, _ = kind.partition("/")
    found: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                weight = _number(value.strip())
        found[name] = weight
    for pattern in (kind, f"{main}/*", "*/*"):
        if pattern in found:
            return found[pattern]
    return 0.0


def _number(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        return 0.0
    return weight if 0.0 <= weight <= 1.0 else 0.0


def require_finite(arrays: Mapping[str, Nested], *, model_id: str) -> None:
    """JSON has no NaN: refuse rather than send null. Raises NonFiniteValues."""
    for name, array in arrays.items():
        for part in array if isinstance(array, list) else [array]:
            if part.dtype.kind == "f" and not np.isfinite(part).all():
                raise NonFiniteValues(model_id=model_id, where=name)


def json_response(
    fields: Mapping[str, Any], arrays: Mapping[str, Nested], *, headers: Mapping[str, str]
) -> Response:
    """``fields`` and ``arrays`` as one JSON object; large ones leave piece by piece."""
    pieces = json_pieces(fields, arrays)
    if _num_values(arrays) <= _WHOLE_VALUES:
        return Response(b"".join(pieces), media_type=JSON_TYPE, headers=dict(headers))
    return StreamingResponse(_paced(pieces), media_type=JSON_TYPE, headers=dict(headers))


def json_pieces(fields: Mapping[str, Any], arrays: Mapping[str, Nested]) -> Iterator[bytes]:
    """The object piece by piece, never more than a few megabytes of text at once."""
    head = orjson.dumps(dict(fields), option=JSON_OPTIONS)
    yield head[:-1]
    separator = b"," if fields else b""
    for name, array in arrays.items():
        yield separator + orjson.dumps(name) + b":"
        yield from _array_pieces(array)
        separator = b","
    yield b"}"


def _array_pieces(array: Nested) -> Iterator[bytes]:
    if not isinstance(array, list) and (array.size <= _CHUNK_VALUES or array.ndim == 1):
        yield orjson.dumps(np.ascontiguousarray(array), option=JSON_OPTIONS)
        return
    separator = b"["
    for part in array:
        yield separator
        yield from _array_pieces(part)
        separator = b","
    yield b"]"


def safetensors_response(
    tensors: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, Mapping[str, Any]],
    headers: Mapping[str, str],
) -> Response:
    """A safetensors file; the values go from the arrays to the socket without a copy of ours."""
    pieces, size = safetensors_pieces(tensors, metadata=metadata)
    return StreamingResponse(
        _paced(pieces),
        media_type=SAFETENSORS_TYPE,
        headers={**headers, "Content-Length": str(size)},
    )


def safetensors_pieces(
    tensors: Mapping[str, Tensor], *, metadata: Mapping[str, Mapping[str, Any]]
) -> tuple[Iterator[bytes | memoryview], int]:
    """The file piece by piece, and its size in bytes.

    Layout (safetensors README, "Format"): u64 little-endian length of the header, the header as
    JSON padded with spaces, then the values, little-endian and row-major, without holes. Each
    entry of ``metadata`` is JSON in a string, as the format allows only strings there.
    """
    # Wide types first, so that every tensor starts aligned to its item size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].values.dtype.itemsize)
    arrays = [_little_endian(tensor.values) for _, tensor in ordered]
    header: dict[str, Any] = {
        "__metadata__": {
            name: orjson.dumps(fields, option=JSON_OPTIONS).decode()
            for name, fields in metadata.items()
        }
    }
    offset = 0
    for (name, _), array in zip(ordered, arrays, strict=True):
        end = offset + array.nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    prefix = struct.pack("<Q", len(text)) + text
    return _file_pieces(prefix, arrays), len(prefix) + offset


def _file_pieces(prefix: bytes, arrays: Iterable[NDArray[Any]]) -> Iterator[bytes | memoryview]:
    yield prefix
    for array in arrays:
        if array.size == 0:
            continue
        view = array.reshape(-1).data.cast("B")
        for start in range(0, len(view), _CHUNK_BYTES):
            yield view[start : start + _CHUNK_BYTES]


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """Row-major little-endian; the same array where it is so already (nearly always)."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


async def _paced(pieces: Iterable[bytes | memoryview]) -> AsyncIterator[bytes | memoryview]:
    """Between two pieces the server answers others: sending awaits the socket."""
    for piece in pieces:
        yield piece


def _num_values(arrays: Mapping[str, Nested]) -> int:
    return sum(
        sum(part.size for part in array) if isinstance(array, list) else array.size
        for array in arrays.values()
    )
