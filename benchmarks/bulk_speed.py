"""Bulk jobs: all texts as fast as they go, over HTTP and in process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.alternating import alternate, ratios
from benchmarks.bulk_http import PER_REQUEST, bulk_seconds, bulk_vectors, requests_of
from benchmarks.contenders import INFINITY_EMBEDDINGS, INFINITY_MODEL, Contenders
from benchmarks.mixed_traffic import EMBEDDINGS
from benchmarks.peer_process import PeerProcess
from benchmarks.servers import Server
from benchmarks.sizes import Size
from benchmarks.targets import Row, not_measured, row_of
from benchmarks.texts import long_texts, short_texts

_OURS, _ONE_REQUEST, _INT8, _ENGINE = "pellucid", "pellucid, one request", "pellucid int8", "engine"
_YARDSTICK, _INFINITY = "sentence-transformers", "Infinity"
# Row, who is measured, against whom.
_COMPARISONS = {
    "short": (
        ("short_sentence_transformers", _OURS, _YARDSTICK),
        ("short_infinity", _OURS, _INFINITY),
        ("short_engine", _OURS, _ENGINE),
        ("short_one_request", _ONE_REQUEST, _YARDSTICK),
        ("int8_short", _INT8, _YARDSTICK),
    ),
    "long": (
        ("long_sentence_transformers", _OURS, _YARDSTICK),
        ("long_infinity", _OURS, _INFINITY),
        ("long_engine", _OURS, _ENGINE),
    ),
}
_MIN_COSINE = 0.999  # below, somebody embeds something else and the times say nothing
_MIN_COSINE_INT8 = 0.9

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Side:
    """One who embeds all the texts."""

    seconds: Callable[[], float]
    vectors: Callable[[], Vectors]


def bulk_rows(contenders: Contenders, size: Size) -> list[Row]:
    """Short and long texts, everybody in every round."""
    rows: list[Row] = []
    cosines: list[NDArray[np.float32]] = []
    for kind, texts in (("short", short_texts()), ("long", long_texts())):
        sides = _sides(contenders, texts)
        print(f"bulk, {kind} texts: {', '.join(sides)}", file=sys.stderr)
        to_yardstick = _cosines(sides)  # the warm-up, too
        if _INT8 in to_yardstick:
            cosines.append(to_yardstick[_INT8])
        seconds = alternate(
            {name: side.seconds for name, side in sides.items()}, rounds=size.bulk_rounds
        )
        rates = {name: len(texts) / float(np.median(each)) for name, each in seconds.items()}
        for row, side, base in _COMPARISONS[kind]:
            if missing := [name for name in (side, base) if name not in seconds]:
                rows.append(not_measured(row, contenders.reasons[missing[0]]))
                continue
            told = {name: round(rates[name], 1) for name in (side, base)}
            rows.append(row_of(row, ratios(seconds[base], seconds[side]), texts_per_s=told))
    return [*rows, _int8_cosine(contenders, cosines)]


def _sides(contenders: Contenders, texts: tuple[str, ...]) -> dict[str, _Side]:
    own = contenders.own_server()
    sides = {
        _OURS: _over_http(own, texts),
        _ONE_REQUEST: _over_http(own, texts, per_request=len(texts)),
    }
    if (int8 := contenders.int8_server()) is not None:
        sides[_INT8] = _over_http(int8, texts)
    if (engine := contenders.own_engine()) is not None:
        sides[_ENGINE] = _in_process(engine, texts)
    if (yardstick := contenders.sentence_transformers()) is not None:
        sides[_YARDSTICK] = _in_process(yardstick, texts)
    if (infinity := contenders.infinity()) is not None:
        sides[_INFINITY] = _over_http(
            infinity, texts, path=INFINITY_EMBEDDINGS, model=INFINITY_MODEL
        )
    return sides


def _over_http(
    server: Server,
    texts: tuple[str, ...],
    *,
    path: str = EMBEDDINGS,
    per_request: int = PER_REQUEST,
    **fields: str,
) -> _Side:
    requests = requests_of(texts, path=path, per_request=per_request, **fields)
    return _Side(
        lambda: bulk_seconds(server.port, requests), lambda: bulk_vectors(server.port, requests)
    )


def _in_process(peer: PeerProcess, texts: tuple[str, ...]) -> _Side:
    return _Side(lambda: peer.bulk(texts), lambda: peer.vectors(texts))


def _cosines(sides: dict[str, _Side]) -> dict[str, NDArray[np.float32]]:
    """Of every text's vector to the yardstick's, by side. Raises RuntimeError if they differ."""
    if _YARDSTICK not in sides:
        return {}
    expected = sides[_YARDSTICK].vectors()
    found = {}
    for name, side in sides.items():
        found[name] = np.einsum("nd,nd->n", side.vectors(), expected)
        least, allowed = found[name].min(), _MIN_COSINE_INT8 if name == _INT8 else _MIN_COSINE
        if not least >= allowed:  # NaN, too
            raise RuntimeError(f"{name} embeds something else: cosine {least:.5f}")
    return found


def _int8_cosine(contenders: Contenders, cosines: list[NDArray[np.float32]]) -> Row:
    if not cosines:
        missing = [name for name in (_INT8, _YARDSTICK) if name in contenders.reasons]
        return not_measured("int8_cosine", contenders.reasons[missing[0]])
    values = np.concatenate(cosines)
    return row_of("int8_cosine", [float(values.mean())], least_cosine=float(values.min()))
