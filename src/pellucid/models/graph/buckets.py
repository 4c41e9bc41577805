"""Shapes that a graph is run in: few enough to be compiled before the first request comes.

A shape met for the first time costs a graph 5 to 20 ms. Batches are therefore cut into runs whose
number of rows and length are both taken from a short list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pellucid.models.backend import Int64

MAX_RUN_TOKENS = 1_024  # measured: 512 to 2048 are equally fast, more is slower and takes memory
# What one more run costs, in tokens that could be computed meanwhile (1 ms of 20 ms for 1,024).
_RUN_COST_TOKENS = 48
_MAX_WASTE = 1 / 8  # of a length; shorter texts have steps of at least _SMALLEST_STEP
_SMALLEST_STEP = 8
_TILE_TOKENS = 32  # two tiles of 16 rows
_STEP_FROM = 64  # where steps begin to grow with the length


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Some rows of a batch, computed together in one shape."""

    rows: Int64  # indices into the batch
    num_rows: int  # of the shape; those beyond ``rows`` are empty
    seq_len: int  # of the shape

    @property
    def tokens(self) -> int:
        return self.num_rows * self.seq_len


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """Rows of one length as runs."""

    cost: int  # tokens computed, and what the runs cost besides
    runs: tuple[tuple[int, int], ...]  # (rows taken, rows of the shape)


class Buckets:
    """The shapes of one model, and how a batch is cut into them."""

    def __init__(self, max_tokens: int) -> None:
        self.lengths = _lengths(max_tokens)
        self._row_counts = {length: _row_counts(length) for length in self.lengths}
        self._splits: dict[tuple[int, int], _Split] = {}

    def shapes(self) -> Iterator[tuple[int, int]]:
        """Every (rows, length): single short texts first, for these are asked for most."""
        shapes = [(rows, length) for length in self.lengths for rows in self._row_counts[length]]
        yield from sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape[0]))

    def runs(self, lengths: Int64) -> Iterator[Run]:
        """Rows of these lengths [num_rows] as runs, each row in exactly one.

        Raises ValueError for a row longer than the model takes.
        """
        places = np.searchsorted(self.lengths, lengths)
        if places.max(initial=0) >= len(self.lengths):
            longest = int(lengths.max())
            raise ValueError(f"a row of {longest} tokens, the longest shape is {self.lengths[-1]}")
        order = np.argsort(places, kind="stable")
        counts = np.bincount(places, minlength=len(self.lengths))
        start = 0
        for num_rows, length in self._merged(counts):
            for taken, of_shape in self._split(num_rows, length).runs:
                rows = order[start : start + taken]
                yield Run(rows=rows, num_rows=of_shape, seq_len=length)
                start += taken

    def _merged(self, counts: Int64) -> Iterator[tuple[int, int]]:
        """(number of rows, length), shortest first; rows are padded to the next length in use
        where that is cheaper than runs of their own."""
        waiting, at = 0, 0
        for place in np.flatnonzero(counts).tolist():
            length, own = self.lengths[place], int(counts[place])
            if waiting:
                apart = self._split(waiting, at).cost + self._split(own, length).cost
                if self._split(waiting + own, length).cost > apart:
                    yield waiting, at
                    waiting = 0
            waiting, at = waiting + own, length
        if waiting:
            yield waiting, at

    def _split(self, num_rows: int, length: int) -> _Split:
        """The cheapest way to compute so many rows of one length."""
        most = self._row_counts[length][-1]
        full, rest = divmod(num_rows, most)
        runs = ((most, most),) * full
        cost = full * (_RUN_COST_TOKENS + most * length)
        if not rest:
            return _Split(cost=cost, runs=runs)
        known = self._splits.get((rest, length))
        if known is None:
            known = self._splits[rest, length] = self._cheapest(rest, length)
        return _Split(cost=cost + known.cost, runs=runs + known.runs)

    def _cheapest(self, num_rows: int, length: int) -> _Split:
        """The same for fewer rows than the largest shape has."""
        options = []
        for count in self._row_counts[length]:
            cost = _RUN_COST_TOKENS + count * length
            if count >= num_rows:
                options.append(_Split(cost=cost, runs=((num_rows, count),)))
                break
            rest = self._split(num_rows - count, length)
            options.append(_Split(cost=cost + rest.cost, runs=((count, count), *rest.runs)))
        return min(options, key=lambda split: split.cost)


def _lengths(max_tokens: int) -> tuple[int, ...]:
    """8, 16, ... 64, 80, ... 128, 160, ... up to the limit."""
    lengths = [_SMALLEST_STEP]
    while lengths[-1] < max_tokens:
        last = lengths[-1]
        power = 1 << (last.bit_length() - 1)  # steps double where lengths do
        step = _SMALLEST_STEP if last < _STEP_FROM else int(2 * power * _MAX_WASTE)
        lengths.append(min(last + step, max_tokens))
    return tuple(lengths)


def full_rows(length: int, *, max_tokens: int) -> int:
    """How many rows of one length make a full batch: as many as the budget holds, in whole tiles of
    the matrix units where that leaves any (measured: a tenth more tokens in the same time)."""
    rows = max(1, max_tokens // length)
    rows_per_tile = _TILE_TOKENS // math.gcd(_TILE_TOKENS, length)
    return rows - rows % rows_per_tile or rows


def _row_counts(length: int) -> tuple[int, ...]:
    """1, 2, 4, ... and as many as a run may hold."""
    most = full_rows(length, max_tokens=MAX_RUN_TOKENS)
    counts = {1 << power for power in range(most.bit_length())}
    return tuple(sorted(counts | {most}))
