"""A listener that remembers what an engine told it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pellucid.inference.events import BatchRun, Happening, Lane


@dataclass
class RecordedEvents:
    """Implements ``InferenceEvents``."""

    batches: list[BatchRun] = field(default_factory=list)
    waits: list[tuple[Lane, float]] = field(default_factory=list)
    counts: Counter[Happening] = field(default_factory=Counter)

    def batch_ran(self, run: BatchRun) -> None:
        self.batches.append(run)

    def waited(self, *, model_id: str, lane: Lane, queue_s: float) -> None:
        self.waits.append((lane, queue_s))

    def happened(self, what: Happening, *, model_id: str, count: int = 1) -> None:
        self.counts[what] += count
