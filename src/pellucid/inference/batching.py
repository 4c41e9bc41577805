"""Which inputs run together: those of similar length, within a token budget."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from pellucid.models.graph.buckets import full_rows

T = TypeVar("T")

# Padding that a batch may hold: running a short input beside a long one costs its padding, running
# it later costs the start of one more batch, which takes as long as some dozens of tokens.
_MAX_PADDING_SHARE = 0.25
_FREE_PADDING_TOKENS = 64


class InputsByLength(Generic[T]):
    """Inputs that wait, in bands of similar length, first come first served within each."""

    def __init__(self) -> None:
        self._bands: dict[int, deque[T]] = {}  # by padded length
        self.num_entries = 0

    def add(self, entry: T, length: int) -> None:
        """Let ``entry``, which is ``length`` tokens long, wait."""
        self._bands.setdefault(padded_length(length), deque()).append(entry)
        self.num_entries += 1

    def take(self, longest: int, *, max_tokens: int, is_wanted: Callable[[T], bool]) -> list[T]:
        """A batch for whoever is first in the band of ``longest``.

        That entry is always taken, then others of the band, then shorter ones while padding stays
        a small part. Padded length x count stays within ``max_tokens``, but for an entry that is
        longer alone. Entries that are not wanted any more are thrown away.
        """
        widest = padded_length(longest)
        batch: list[T] = []
        width = padding = 0
        for band in sorted((band for band in self._bands if band <= widest), reverse=True):
            entries = self._bands[band]
            while entries:
                if is_wanted(entries[0]):
                    width = width or band
                    is_full = len(batch) >= full_rows(width, max_tokens=max_tokens)
                    padded = width * (len(batch) + 1)
                    most_padding = max(_FREE_PADDING_TOKENS, _MAX_PADDING_SHARE * padded)
                    if batch and (is_full or padding + width - band > most_padding):
                        return batch
                    batch.append(entries[0])
                    padding += width - band
                entries.popleft()
                self.num_entries -= 1
            del self._bands[band]
        return batch

    def keep_only(self, is_wanted: Callable[[T], bool]) -> None:
        """Throw away what is not wanted any more."""
        kept = {
            band: deque(entry for entry in entries if is_wanted(entry))
            for band, entries in self._bands.items()
        }
        self._bands = {band: entries for band, entries in kept.items() if entries}
        self.num_entries = sum(len(entries) for entries in self._bands.values())


def padded_length(length: int) -> int:
    """The top of a length's band: multiples of 8 up to 64, then quarters of powers of two.

    These are the lengths that graphs are compiled for, so that a band is one shape.
    """
    step = 8 if length <= 64 else 1 << ((length - 1).bit_length() - 3)
    return -(-length // step) * step


class TokenBudget:
    """Tokens that one batch may take, padding counted; lower while memory is short."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.tokens = most

    def lower(self, failed_tokens: int) -> None:
        """A batch of so many tokens was too large for the memory. One long input may be more than
        the budget, and says nothing of batches that are half as large."""
        self.tokens = max(1, min(self.tokens, failed_tokens // 2))

    def succeeded(self, tokens: int) -> None:
        """A batch of so many tokens ran: after some dozens of full ones the budget is whole."""
        if self.tokens < self._most and 2 * tokens >= self.tokens:
            self.tokens = min(self._most, self.tokens + max(1, self._most // 64))
