"""One embedding request in a lane, and its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pellucid.errors import PellucidError
from pellucid.inference.engine import Priority
from pellucid.models.backend import EmbeddingInput, Float32

logger = logging.getLogger("pellucid.inference")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What a model made of the inputs of one request."""

    vectors: Float32  # [n, dimensions]; zeros for inputs in ``errors``
    errors: dict[int, PellucidError]  # by position in the inputs
    queue_s: float  # until the model began with it
    compute_s: float  # of the batches that it took part in


class EmbeddingJob:
    """From its place in the line to its answer. Its line's lock guards ``is_open`` and the counts.

    Whoever closes it answers it, once.
    """

    def __init__(
        self,
        lane: Priority,
        *,
        future: asyncio.Future[Encoded] | None,
        on_done: Callable[[], None],
        stops_at_error: bool,
        is_trial: bool = False,
    ) -> None:
        self.lane = lane
        self.stops_at_error = stops_at_error
        self.is_trial = is_trial  # of the model's health: no request
        self.inputs: Sequence[EmbeddingInput] = ()
        self.is_open = True
        self.at_work = False  # some inputs are in the batch that runs now
        self.has_begun = False
        self.num_left = 0  # inputs without a result
        self.tokens_waiting = 0  # of inputs in no batch yet
        self._queue_s = 0.0
        self._future = future
        self._loop = None if future is None else future.get_loop()
        self._on_done: Callable[[], None] | None = on_done
        self._submitted = time.monotonic()
        self._order: list[int] = []
        self._cursor = 0
        self._taken = bytearray()
        self._vectors: Float32 | None = None
        self._errors: dict[int, PellucidError] = {}
        self._compute_s = 0.0
        self._error: PellucidError | None = None

    @property
    def future(self) -> asyncio.Future[Encoded]:
        assert self._future is not None, "a trial has no answer"
        return self._future

    @property
    def error(self) -> PellucidError | None:
        """What the request as a whole was answered with."""
        return self._error

    def give(self, inputs: Sequence[EmbeddingInput]) -> None:
        """The inputs, once they are known: from now on it waits for the model."""
        lengths = [given.input_ids.size for given in inputs]
        self.inputs = inputs
        self._order = sorted(range(len(inputs)), key=lengths.__getitem__, reverse=True)
        self._taken = bytearray(len(inputs))
        self.num_left = len(inputs)
        self.tokens_waiting = sum(lengths)
        self._submitted = time.monotonic()

    @property
    def is_waiting(self) -> bool:
        """Whether an input is in no batch yet, or the inputs are not known yet."""
        return self.tokens_waiting > 0 or not self._taken

    def waited_s(self) -> float:
        """Seconds since it got its inputs."""
        return time.monotonic() - self._submitted

    def longest_waiting(self) -> int | None:
        """Tokens of the longest input that is in no batch yet; None when all are."""
        while self._cursor < len(self._order):
            index = self._order[self._cursor]
            if not self._taken[index]:
                return self.inputs[index].input_ids.size
            self._cursor += 1
        return None

    def begin(self, index: int) -> None:
        """The input goes into the next batch."""
        self._taken[index] = True
        self.tokens_waiting -= self.inputs[index].input_ids.size
        self.at_work = True
        if not self.has_begun:
            self.has_begun = True
            self._queue_s = self.waited_s()

    def store(
        self, indices: list[int], vectors: Float32, errors: dict[int, PellucidError], seconds: float
    ) -> None:
        """Results of one batch: ``vectors`` [len(indices), dimensions], errors by index."""
        if self._vectors is None:
            shape = (len(self.inputs), vectors.shape[1])
            self._vectors = np.zeros(shape, dtype=np.float32)
        self._vectors[indices] = vectors
        self._errors |= errors
        self._compute_s += seconds
        self.num_left -= len(indices)

    def close(self, error: PellucidError | None = None) -> None:
        """No more work for it. ``error`` answers the request as a whole."""
        self.is_open = False
        self._error = error
        self.tokens_waiting = 0
        self.inputs = ()  # not kept until whoever asked has gone

    def release(self) -> None:
        """Give back what it held of the model; more than once does no harm."""
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done()

    def settle(self) -> None:
        """Answer, in the loop of whoever asked."""
        if self._future is None or self._future.done():
            return
        if self._error is not None:
            self._future.set_exception(self._error)
            self._future.exception()  # seen: whoever asked may still be tokenising
            return
        self._future.set_result(
            Encoded(
                vectors=np.zeros((0, 0), np.float32) if self._vectors is None else self._vectors,
                errors=self._errors,
                queue_s=self._queue_s,
                compute_s=self._compute_s,
            )
        )

    @staticmethod
    def answer(jobs: Iterable[EmbeddingJob]) -> None:
        """Answer closed jobs, from any thread: each loop is woken once for all of its own."""
        by_loop: dict[asyncio.AbstractEventLoop, list[EmbeddingJob]] = {}
        for job in jobs:
            job.release()  # first: whoever has the answer may unload the model at once
            if job._loop is not None:
                by_loop.setdefault(job._loop, []).append(job)
        for loop, theirs in by_loop.items():
            try:
                loop.call_soon_threadsafe(_settle, theirs)
            except RuntimeError:
                logger.debug("the loop of %d requests has ended", len(theirs))


def _settle(jobs: list[EmbeddingJob]) -> None:
    for job in jobs:
        job.settle()
