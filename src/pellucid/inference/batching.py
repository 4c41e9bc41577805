"""Which inputs run together: those of similar length, within a token budget."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")

# Padding that a batch may hold: running a short input beside a long one costs its padding, running
# it later costs the start of one more batch, which takes as long as some dozens of tokens.
_MAX_PADDING_SHARE = 0.25
_FREE_PADDING_TOKENS = 64


class InputsByLength(Generic[T]):
    """Inputs that wait, in bands of similar length, first come first served within each.

    A band is an eighth of a power of two wide, so that padding within it stays under 12.5 %.
    """

    def __init__(self) -> None:
        self._bands: dict[int, deque[tuple[T, int]]] = {}
        self.num_entries = 0

    def add(self, entry: T, length: int) -> None:
        """Let ``entry``, which is ``length`` tokens long, wait."""
        self._bands.setdefault(band_of(length), deque()).append((entry, length))
        self.num_entries += 1

    def take(
        self, longest: int, *, max_tokens: int, is_wanted: Callable[[T], bool]
    ) -> list[tuple[T, int]]:
        """A batch for whoever leads the band of ``longest``: entries and their lengths.

        The first entry of that band is always taken, then others of the band, then shorter ones
        while padding stays a small part. Longest x count stays within ``max_tokens``, but for an
        entry that is longer alone. Entries that are not wanted any more are thrown away.
        """
        first_band = band_of(longest)
        batch: list[tuple[T, int]] = []
        width = tokens = 0
        for band in sorted((b for b in self._bands if b <= first_band), reverse=True):
            entries = self._bands[band]
            while entries:
                entry, length = entries[0]
                if is_wanted(entry):
                    wider = max(width, length)
                    padded = wider * (len(batch) + 1)
                    padding = padded - tokens - length
                    if batch and (
                        padded > max_tokens
                        or padding > max(_FREE_PADDING_TOKENS, _MAX_PADDING_SHARE * padded)
                    ):
                        return batch
                    batch.append((entry, length))
                    width, tokens = wider, tokens + length
                entries.popleft()
                self.num_entries -= 1
            del self._bands[band]
        return batch

    def keep_only(self, is_wanted: Callable[[T], bool]) -> None:
        """Throw away what is not wanted any more."""
        kept = [item for band in self._bands.values() for item in band if is_wanted(item[0])]
        self._bands, self.num_entries = {}, 0
        for entry, length in kept:
            self.add(entry, length)


def band_of(length: int) -> int:
    """The number of a length's band; longer lengths have higher ones."""
    exponent = max(0, length.bit_length() - 4)
    return exponent * 8 + (length >> exponent)


def padded_tokens(lengths: Iterable[int]) -> int:
    """What a batch of these lengths takes: longest x count."""
    lengths = list(lengths)
    return max(lengths, default=0) * len(lengths)


class TokenBudget:
    """Tokens that one batch may take, padding counted; lower while memory is short."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.tokens = most

    def lower(self, failed_tokens: int) -> None:
        """A batch of so many tokens was too large for the memory."""
        self.tokens = max(1, min(self.tokens, failed_tokens) // 2)

    def succeeded(self, tokens: int) -> None:
        """A batch of so many tokens ran: after some dozens of full ones the budget is whole."""
        if self.tokens < self._most and 2 * tokens >= self.tokens:
            self.tokens = min(self._most, self.tokens + max(1, self._most // 64))
