"""The tokenizer of the fake model: words, cut into pieces, numbered by a hash."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pellucid.errors import EmptyText, InvalidInputIds, TooManyTokens
from pellucid.models.backend import Encoding, Truncation
from pellucid.models.fake.transformer import FakeModel

PAD_ID, CLS_ID, SEP_ID, START_ID = 0, 1, 2, 3
_SPECIAL_TOKENS = {PAD_ID: "[PAD]", CLS_ID: "[CLS]", SEP_ID: "[SEP]", START_ID: "[START]"}
_WORD = re.compile(r"\w+|[^\w\s]")
_PIECE_CHARACTERS = 5  # longer words fall into pieces, so that offsets are worth testing


class FakeTokenizer:
    """Text to ``Encoding``, with the special tokens that the kind of model has."""

    def __init__(self, model: FakeModel) -> None:
        self.model = model

    def tokenize(
        self,
        text: str,
        *,
        text_pair: str | None = None,
        max_tokens: int | None = None,
        truncation: Truncation = "error",
        target: bool = False,
    ) -> Encoding:
        """Words cut into pieces of five characters, with the special tokens of the kind."""
        limit = min(n for n in (max_tokens, self.model.max_tokens, 10**9) if n is not None)
        pieces = list(_pieces(text, 0))
        if not pieces:
            raise EmptyText(field="text")
        if target:
            return self._encoding([START_ID], pieces, [], limit, truncation)
        if self.model.kind == "decoder":
            return self._encoding([], pieces, [], limit, truncation)
        if text_pair is not None:
            pieces += [_Piece("[SEP]", 0, 0, -1), *_pieces(text_pair, 1)]
        first = [CLS_ID] if self.model.kind == "encoder" else []
        return self._encoding(first, pieces, [SEP_ID], limit, truncation)

    @property
    def num_special(self) -> int:
        """Tokens around every text."""
        return {"encoder": 2, "decoder": 0, "encoder-decoder": 1}[self.model.kind]

    def pieces_of(self, text: str) -> list[_Piece]:
        return list(_pieces(text, 0))

    def encoding_of_pieces(self, pieces: list[_Piece]) -> Encoding:
        """Pieces with the special tokens of a text. Raises EmptyText."""
        if not pieces:
            raise EmptyText(field="text")
        first = [CLS_ID] if self.model.kind == "encoder" else []
        last = [] if self.model.kind == "decoder" else [SEP_ID]
        return self._encoding(first, pieces, last, 10**9, "error")

    def encoding_of(self, input_ids: Sequence[int]) -> Encoding:
        """Ids as they are; pieces are not kept, so ordinary tokens are shown by number."""
        for position, token_id in enumerate(input_ids):
            if not 0 <= token_id < self.model.vocab_size:
                raise InvalidInputIds(
                    field="input_ids",
                    token_id=token_id,
                    position=position,
                    vocab_size=self.model.vocab_size,
                )
        if not input_ids:
            raise EmptyText(field="input_ids")
        ids = np.asarray(input_ids, dtype=np.int64)
        special = ids <= START_ID
        return Encoding(
            input_ids=ids,
            tokens=tuple(_SPECIAL_TOKENS.get(token_id, f"#{token_id}") for token_id in ids),
            offsets=np.zeros((ids.size, 2), dtype=np.int64),
            special=special,
            text_index=np.where(special, -1, 0).astype(np.int64),
            token_type_ids=None,
            truncated=False,
            num_tokens_untruncated=ids.size,
        )

    def _encoding(
        self,
        first: list[int],
        pieces: list[_Piece],
        last: list[int],
        limit: int,
        truncation: Truncation,
    ) -> Encoding:
        untruncated = len(first) + len(pieces) + len(last)
        if untruncated > limit:
            if truncation == "error":
                raise TooManyTokens(
                    field="text",
                    tokens=untruncated,
                    model_id=self.model.model_id,
                    max_tokens=limit,
                )
            room = limit - len(first) - len(last)
            pieces = pieces[:room] if truncation == "end" else pieces[len(pieces) - room :]
        whole = [
            *(_Piece(_SPECIAL_TOKENS[token_id], 0, 0, -1) for token_id in first),
            *pieces,
            *(_Piece(_SPECIAL_TOKENS[token_id], 0, 0, -1) for token_id in last),
        ]
        return Encoding(
            input_ids=np.array([self._id_of(piece.text) for piece in whole], dtype=np.int64),
            tokens=tuple(piece.text for piece in whole),
            offsets=np.array([(piece.start, piece.end) for piece in whole], dtype=np.int64),
            special=np.array([piece.text_index < 0 for piece in whole]),
            text_index=np.array([piece.text_index for piece in whole], dtype=np.int64),
            token_type_ids=None,
            truncated=untruncated > limit,
            num_tokens_untruncated=untruncated,
        )

    def _id_of(self, piece: str) -> int:
        for token_id, token in _SPECIAL_TOKENS.items():
            if piece == token:
                return token_id
        return (
            START_ID
            + 1
            + zlib.crc32(piece.lower().encode()) % (self.model.vocab_size - START_ID - 1)
        )


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    start: int
    end: int
    text_index: int


def _pieces(text: str, text_index: int) -> Iterator[_Piece]:
    for word in _WORD.finditer(text):
        for start in range(word.start(), word.end(), _PIECE_CHARACTERS):
            end = min(start + _PIECE_CHARACTERS, word.end())
            mark = "" if start == word.start() else "##"
            yield _Piece(mark + text[start:end], start, end, text_index)
