"""The embedding requests that wait for one model, by priority. Pure bookkeeping: no locks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pellucid.inference.batching import InputsByLength
from pellucid.inference.embedding_job import EmbeddingJob
from pellucid.inference.engine import Priority
from pellucid.models.backend import EmbeddingInput

_STALE_ENTRIES = 1_024  # inputs of requests that are gone: so many may lie about, or half of all


@dataclass(frozen=True, slots=True)
class LaneBatch:
    """Inputs that run together: (request, position in its inputs)."""

    lane: Priority
    pieces: list[tuple[EmbeddingJob, int]]
    inputs: list[EmbeddingInput]  # in the same order
    waits: list[float]  # seconds in the line, of the requests that begin with this batch


class Lane:
    """Requests of one priority: the oldest leads each batch, the others fill it up.

    Requests are served first come first served; a batch is filled with inputs of a length like
    that of the longest waiting input of the oldest request, whosever they are, older ones first.
    """

    def __init__(self, priority: Priority) -> None:
        self.priority = priority
        self._jobs: deque[EmbeddingJob] = deque()
        self._inputs: InputsByLength[tuple[EmbeddingJob, int]] = InputsByLength()
        self.waiting_tokens = 0
        self._stale = 0

    @property
    def has_inputs(self) -> bool:
        """Whether any input waits."""
        return self.waiting_tokens > 0

    def add(self, job: EmbeddingJob) -> None:
        """``job`` has its inputs, at least one, and waits from now on."""
        self._jobs.append(job)
        for index, given in enumerate(job.inputs):
            self._inputs.add((job, index), given.input_ids.size)
        self.waiting_tokens += job.tokens_waiting

    def discard(self, job: EmbeddingJob) -> None:
        """``job`` is to be closed: its inputs run no more."""
        self.waiting_tokens -= job.tokens_waiting
        self._stale += job.num_left
        if not self.waiting_tokens:
            self._jobs.clear()
        if not self.waiting_tokens or self._stale > max(
            _STALE_ENTRIES, self._inputs.num_entries // 2
        ):
            self._inputs.keep_only(lambda piece: piece[0] is not job and piece[0].is_open)
            self._stale = 0

    def next_batch(self, *, max_tokens: int) -> LaneBatch:
        """Inputs to run now; some input must wait."""
        while (longest := self._longest_of_oldest()) is None:
            self._jobs.popleft()
        taken = self._inputs.take(
            longest, max_tokens=max_tokens, is_wanted=lambda piece: piece[0].is_open
        )
        waits: list[float] = []
        for job, index in taken:
            if not job.has_begun and not job.is_trial:
                waits.append(job.waited_s())
            job.begin(index)
            self.waiting_tokens -= job.inputs[index].input_ids.size
        inputs = [job.inputs[index] for job, index in taken]
        if not self.waiting_tokens:
            self._jobs.clear()
        return LaneBatch(self.priority, taken, inputs, waits)

    def _longest_of_oldest(self) -> int | None:
        oldest = self._jobs[0]
        return oldest.longest_waiting() if oldest.is_open else None
