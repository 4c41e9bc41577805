"""What Pellucid wants to reach, and what was found: one row of the table each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Bound = Literal["at least", "at most"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    name: str
    part: str  # of a run: what is measured together
    figure: str  # in words
    bound: Bound | None = None  # None = told, not aimed at
    limit: float = 0.0
    unit: str = "times"

    @property
    def text(self) -> str:
        return f"{self.bound} {self.limit:g} {self.unit}" if self.bound else "-"

    def is_met_by(self, value: float) -> bool | None:
        if self.bound is None:
            return None
        return value >= self.limit if self.bound == "at least" else value <= self.limit


def _times(name: str, part: str, figure: str, bound: Bound, limit: float) -> Target:
    return Target(name=name, part=part, figure=figure, bound=bound, limit=limit)


_BULK = "bulk over HTTP, {} texts, against {}"
_ST = "`SentenceTransformer.encode(batch_size=32)` in process"
_TARGETS = (
    _times("short_sentence_transformers", "bulk", _BULK.format("short", _ST), "at least", 7),
    _times("long_sentence_transformers", "bulk", _BULK.format("long", _ST), "at least", 5),
    _times("short_infinity", "bulk", _BULK.format("short", "Infinity over HTTP"), "at least", 8),
    _times("long_infinity", "bulk", _BULK.format("long", "Infinity over HTTP"), "at least", 8),
    _times("short_engine", "bulk", _BULK.format("short", "our engine in process"), "at least", 0.9),
    _times("long_engine", "bulk", _BULK.format("long", "our engine in process"), "at least", 0.9),
    Target(
        name="short_one_request",
        part="bulk",
        figure=f"one request with 512 short texts over HTTP, against {_ST}",
    ),
    _times(
        "single_onnx",
        "single",
        "one short text over HTTP, p50, against one ONNX Runtime fp32 call in process",
        "at most",
        1.5,
    ),
    Target(
        name="single_infinity",
        part="single",
        figure="one short text over HTTP, p50, Infinity's time against ours",
    ),
    Target(
        name="busy_p95",
        part="busy",
        figure="one short text over HTTP while a bulk job saturates the server, p95",
        bound="at most",
        limit=60,
        unit="ms",
    ),
    _times("busy_idle", "busy", "the same p95, against the idle server's", "at most", 4),
    _times(
        "int8_short", "bulk", f"int8, bulk over HTTP, short texts, against {_ST}", "at least", 10
    ),
    Target(
        name="int8_cosine",
        part="bulk",
        figure="int8, mean cosine to PyTorch float32",
        bound="at least",
        limit=0.995,
        unit="",
    ),
    Target(
        name="memory",
        part="start",
        figure="resident memory of an embedding server, after a bulk run",
        bound="at most",
        limit=450,
        unit="MB",
    ),
    Target(
        name="start",
        part="start",
        figure="start to ready from the cached graph",
        bound="at most",
        limit=4,
        unit="s",
    ),
    Target(
        name="load",
        part="load",
        figure="200 connections of mixed traffic: 5xx, lost, mixed-up or wrong answers",
        bound="at most",
        limit=0,
        unit="answers",
    ),
    Target(
        name="flat_memory",
        part="soak",
        figure="resident memory moved by requests of mixed length, after warm-up",
        bound="at most",
        limit=5,
        unit="%",
    ),
)
TARGETS = {target.name: target for target in _TARGETS}
PARTS = tuple(dict.fromkeys(target.part for target in _TARGETS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Found: the median, and what it lies between; None = not measured, ``note`` says why."""

    target: Target
    found: float | None = None
    least: float | None = None
    most: float | None = None
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_met(self) -> bool | None:
        return None if self.found is None else self.target.is_met_by(self.found)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.target.name,
            "figure": self.target.figure,
            "target": self.target.text,
            "unit": self.target.unit,
            "found": _rounded(self.found),
            "least": _rounded(self.least),
            "most": _rounded(self.most),
            "met": self.is_met,
            "note": self.note,
            "details": self.details,
        }


def row_of(name: str, values: list[float], *, note: str = "", **details: Any) -> Row:
    """The median of the values, and the least and the most of them."""
    return Row(
        target=TARGETS[name],
        found=float(np.median(values)),
        least=min(values),
        most=max(values),
        note=note,
        details=details,
    )


def not_measured(name: str, reason: str) -> Row:
    return Row(target=TARGETS[name], note=f"not measured: {reason}")


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
