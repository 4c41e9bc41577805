"""Tokens with their places in the text, between the tokenizer and ``Encoding``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding as FastEncoding


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Parallel lists, one entry per token."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    text_index: list[int]  # 0 = text, 1 = text_pair, -1 = added by the tokenizer
    type_ids: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, *contents: FastEncoding) -> TokenSequence:
        """Texts without special tokens around them."""
        return cls(
            [token_id for content in contents for token_id in content.ids],
            [span for content in contents for span in content.offsets],
            [index for index, content in enumerate(contents) for _ in content.ids],
            [0 for content in contents for _ in content.ids],
        )

    @classmethod
    def framed(cls, done: FastEncoding, contents: Sequence[FastEncoding]) -> TokenSequence:
        """``done`` is ``contents`` with special tokens; offsets are taken from the contents, for
        post-processors trim spaces off them."""
        spans = [iter(content.offsets) for content in contents]
        text_index = [-1 if index is None else index for index in done.sequence_ids]
        offsets = [(0, 0) if index == -1 else next(spans[index]) for index in text_index]
        return cls(done.ids, offsets, text_index, done.type_ids)

    def drop_last(self) -> TokenSequence:
        return TokenSequence(
            self.ids[:-1], self.offsets[:-1], self.text_index[:-1], self.type_ids[:-1]
        )

    def behind(self, token_id: int) -> TokenSequence:
        return TokenSequence(
            [token_id, *self.ids],
            [(0, 0), *self.offsets],
            [-1, *self.text_index],
            [0, *self.type_ids],
        )


def kept_lengths(lengths: Sequence[int], *, room: int) -> list[int]:
    """How many tokens of each text remain in ``room``: the longer text is cut first."""
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    first, second = lengths
    shorter = min(first, second, room // 2)
    if first <= second:
        return [shorter, min(second, room - shorter)]
    return [min(first, room - shorter), shorter]
