"""Contenders asked in turn, so that the drift of a shared machine touches all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

Measured = TypeVar("Measured")

_PAUSE_S = 0.3  # threads that spin after their work have stopped by then


def alternate(
    contenders: Mapping[str, Callable[[], Measured]], *, rounds: int
) -> dict[str, list[Measured]]:
    """What each found, round by round; every other round in reverse order."""
    found: dict[str, list[Measured]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in list(contenders)[:: -1 if number % 2 else 1]:
            time.sleep(_PAUSE_S)
            found[name].append(contenders[name]())
    return found


def ratios(numerators: list[float], denominators: list[float]) -> list[float]:
    """Round by round."""
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def percentiles_ms(seconds: list[float]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99]) * 1000
    return {"p50_ms": round(p50, 3), "p95_ms": round(p95, 3), "p99_ms": round(p99, 3)}
