"""How fast a model computes, as its batches have shown, and what follows from that."""

from __future__ import annotations

import math

_WEIGHT = 0.2  # of the newest measurement in a moving mean
_BULK_SLICE_S = 0.010  # how long a batch of the bulk lane may hold up an interactive request
_INTERACTIVE_MEMORY_S = 1.0  # how long bulk batches stay short after an interactive request
_FIRST_SLICE_TOKENS = 256  # before anything has been measured
_LEAST_SLICE_TOKENS = 32
_LONGEST_RETRY_S = 60
# A throughput is believed when it has been measured so often, and so lately: else one slow moment
# could have everybody refused, and with nothing running no better figure would ever come.
_LEAST_MEASUREMENTS = 3
_MEASUREMENT_HOLDS_S = 60.0


class Pace:
    """Moving means of a model's tokens per second; times are ``time.monotonic()``."""

    def __init__(self) -> None:
        self._throughput: float | None = None  # of batches that were well filled
        self._num_measured = 0
        self._measured_at = -math.inf
        self._bulk: float | None = None  # of the bulk lane's, as short as they may be
        self._last_interactive = -math.inf

    def interactive_came(self, now: float) -> None:
        self._last_interactive = now

    def batch_ran(
        self,
        now: float,
        *,
        tokens: int,
        padded_tokens: int,
        seconds: float,
        budget: int,
        is_bulk: bool,
    ) -> None:
        """``budget`` is what a whole batch may have: a short one says little of the throughput."""
        seconds = max(seconds, 1e-6)
        if 2 * padded_tokens >= budget:
            self._throughput = _moved(self._throughput, tokens / seconds)
            self._num_measured += 1
            self._measured_at = now
        if is_bulk:
            self._bulk = _moved(self._bulk, padded_tokens / seconds)

    def bulk_tokens(self, budget: int, now: float) -> int:
        """Tokens of the next bulk batch: all that is allowed, but a short time's worth while
        interactive requests are about, which cannot overtake a batch that runs."""
        if now - self._last_interactive > _INTERACTIVE_MEMORY_S:
            return budget
        tokens = _FIRST_SLICE_TOKENS if self._bulk is None else int(self._bulk * _BULK_SLICE_S)
        return min(budget, max(_LEAST_SLICE_TOKENS, tokens))

    def throughput(self, now: float) -> float | None:
        """Tokens per second of full batches; None while it is not known, or no more."""
        is_known = self._num_measured >= _LEAST_MEASUREMENTS
        is_fresh = now - self._measured_at <= _MEASUREMENT_HOLDS_S
        return self._throughput if is_known and is_fresh else None


def retry_after_s(wait_s: float | None) -> int:
    """Whole seconds for a client to wait, of an estimate that may be missing or absurd."""
    return max(1, min(_LONGEST_RETRY_S, math.ceil(wait_s or 0)))


def _moved(mean: float | None, value: float) -> float:
    return value if mean is None else (1 - _WEIGHT) * mean + _WEIGHT * value
