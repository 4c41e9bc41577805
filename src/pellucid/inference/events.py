"""What whoever keeps the figures is told of: batches, waits, and what went wrong on the way.

Told from several threads, the models' own among them: a listener must be thread-safe and quick, and
must not raise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from pellucid.inference.engine import Priority

Lane = Literal["interactive", "bulk", "inspection"]
Happening = Literal[
    "split_for_memory",  # a batch did not fit into memory and was halved
    "split_for_error",  # a batch failed and was halved, to find the inputs that are to blame
    "retried_exact",  # inputs whose vectors were not finite, computed again in float32
    "input_failed",  # inputs that were answered with an error of the model
    "restarted",  # a model that hung, died or failed on everything was given up
    "refused",  # requests turned away: queue full, or too long for their deadline
    "truncated",  # inputs that were cut
    "evicted",  # models closed to make room for others
    "dropped",  # requests whose client left, or whose deadline passed, before the answer
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRun:
    """One forward pass of embeddings that gave vectors."""

    model_id: str
    lane: Priority
    inputs: int
    tokens: int  # padding not counted
    padded_tokens: int  # longest x inputs
    compute_s: float


class InferenceEvents(Protocol):
    """Listens to every model of an engine."""

    def batch_ran(self, run: BatchRun) -> None: ...

    def waited(self, *, model_id: str, lane: Lane, queue_s: float) -> None:
        """Once per request, when the model begins with it."""
        ...

    def happened(self, what: Happening, *, model_id: str, count: int = 1) -> None: ...


class _Ignored:
    def batch_ran(self, run: BatchRun) -> None:
        pass

    def waited(self, *, model_id: str, lane: Lane, queue_s: float) -> None:
        pass

    def happened(self, what: Happening, *, model_id: str, count: int = 1) -> None:
        pass


IGNORED: InferenceEvents = _Ignored()
