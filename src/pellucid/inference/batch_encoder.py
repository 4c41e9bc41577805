"""One batch on one backend, so that each input fails alone: halves, and float32 where need be."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pellucid.errors import (
    CapabilityMissing,
    ForwardOutOfMemory,
    InvalidInput,
    NonFiniteValues,
    PellucidError,
)
from pellucid.inference.events import Happening, InferenceEvents
from pellucid.inference.worker import as_failure
from pellucid.models.backend import Backend, Batch, EmbeddingInput, Float32

logger = logging.getLogger("pellucid.inference")

# More than the halvings of any batch: who has failed so often without one success in between fails
# on everything, and trying the rest input by input would only take time.
_MAX_FAILURES_IN_A_ROW = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardPass:
    """One that gave vectors."""

    inputs: int
    tokens: int
    padded_tokens: int
    seconds: float


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of the inputs of a batch."""

    vectors: Float32  # [n, dimensions]; zeros for inputs in ``errors``
    errors: dict[int, PellucidError] = field(default_factory=dict)  # by row
    passes: list[ForwardPass] = field(default_factory=list)  # with a finite vector at least
    out_of_memory: list[int] = field(default_factory=list)  # padded tokens of batches too large

    @property
    def blames_model(self) -> bool:
        """Whether any input failed for what the model is, not for what the input is."""
        causes = self.errors.values()
        return any(not isinstance(error, InvalidInput | CapabilityMissing) for error in causes)


class BatchEncoder:
    """Runs batches of embeddings; to be called by the thread that owns the backend."""

    def __init__(self, backend: Backend, *, events: InferenceEvents) -> None:
        self._backend = backend
        self._model_id = backend.info.model_id
        self._events = events

    def encode(
        self,
        inputs: Sequence[EmbeddingInput],
        *,
        is_wanted: Callable[[int], bool] = lambda row: True,
    ) -> Outcome:
        """Vectors of all inputs, or why there is none; never raises for what the backend does.

        A batch that raises is halved until the inputs that are to blame stand alone. Rows that are
        not finite are computed again in float32. What is not wanted any more is not tried again:
        it has neither a vector nor an error.
        """
        dimensions = self._backend.info.dimensions
        outcome = Outcome(vectors=np.zeros((len(inputs), dimensions), dtype=np.float32))
        rows = list(range(len(inputs)))
        unsound = self._run(inputs, rows, outcome, is_wanted, exact=False)
        if unsound:
            self._happened("retried_exact", len(unsound))
            unsound = self._run(inputs, unsound, outcome, is_wanted, exact=True)
        for row in unsound:
            outcome.errors[row] = NonFiniteValues(model_id=self._model_id, where="its embedding")
        if outcome.errors:
            self._happened("input_failed", len(outcome.errors))
        return outcome

    def _run(
        self,
        inputs: Sequence[EmbeddingInput],
        rows: list[int],
        outcome: Outcome,
        is_wanted: Callable[[int], bool],
        *,
        exact: bool,
    ) -> list[int]:
        """Fill ``rows`` of the outcome; returns those whose vectors are not finite."""
        unsound: list[int] = []
        failures = 0
        waiting = [rows]
        while waiting:
            rows = waiting.pop()
            if failures:  # what was just chosen is wanted; only a second try takes longer
                rows = [row for row in rows if is_wanted(row)]
            if not rows:
                continue
            started = time.perf_counter()
            try:
                batch = Batch.of([inputs[row] for row in rows], pad_id=self._backend.pad_id)
                vectors = self._backend.encode(batch, exact=exact)
            except BaseException as error:  # Rust libraries panic with a BaseException
                failures += 1
                is_last = len(rows) == 1 or failures >= _MAX_FAILURES_IN_A_ROW
                waiting += self._after_failure(error, inputs, rows, outcome, is_last=is_last)
                continue
            failures = 0
            finite = np.asarray(np.isfinite(vectors).all(axis=1))
            if finite.any():
                outcome.passes.append(
                    ForwardPass(
                        inputs=len(rows),
                        tokens=int(batch.attention_mask.sum()),
                        padded_tokens=batch.input_ids.size,
                        seconds=time.perf_counter() - started,
                    )
                )
            if finite.all():
                outcome.vectors[rows] = vectors
                continue
            unsound += [row for row, is_sound in zip(rows, finite, strict=True) if not is_sound]
            sound = np.flatnonzero(finite)
            outcome.vectors[[rows[place] for place in sound]] = vectors[sound]
        return unsound

    def _after_failure(
        self,
        error: BaseException,
        inputs: Sequence[EmbeddingInput],
        rows: list[int],
        outcome: Outcome,
        *,
        is_last: bool,
    ) -> list[list[int]]:
        """The halves to be tried next; none when the error is the inputs' answer."""
        lengths = [inputs[row].input_ids.size for row in rows]
        is_memory = isinstance(error, MemoryError | ForwardOutOfMemory)
        if is_memory:
            outcome.out_of_memory.append(max(lengths) * len(rows))
        if is_memory and is_last:
            for row, length in zip(rows, lengths, strict=True):
                outcome.errors[row] = self._too_large(error, length)
            return []
        if is_last or isinstance(error, InvalidInput | CapabilityMissing):
            outcome.errors |= dict.fromkeys(rows, as_failure(error, self._model_id))
            return []
        self._happened("split_for_memory" if is_memory else "split_for_error", 1)
        logger.warning(
            "%s failed on %d inputs of up to %d tokens (%s): trying them in halves",
            *(self._model_id, len(rows), max(lengths), type(error).__name__),
        )
        middle = len(rows) // 2
        return [rows[middle:], rows[:middle]]

    def _too_large(self, error: BaseException, length: int) -> ForwardOutOfMemory:
        failure = ForwardOutOfMemory(model_id=self._model_id, inputs=1, tokens=length)
        failure.__cause__ = error
        return failure

    def _happened(self, what: Happening, count: int) -> None:
        self._events.happened(what, model_id=self._model_id, count=count)
