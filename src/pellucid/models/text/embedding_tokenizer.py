"""Texts to ids for embeddings: nothing but ids, in any thread, without transformers or torch."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer as FastTokenizer

from pellucid.errors import (
    EmbeddingUnavailable,
    EmptyText,
    GraphUnavailable,
    InvalidInputIds,
    InvalidRequest,
    TooManyTokens,
)
from pellucid.models.backend import EmbeddingInput, Truncation
from pellucid.models.text.special_frame import SpecialFrame
from pellucid.models.text.text_check import check_text

# A clone takes memory and time with its vocabulary: 3 MB and 15 ms at 30,000 entries, 250 MB and
# 1 s at XLM-R's 250,000.
_MAX_CLONED_VOCABULARY = 100_000
# Words whose tokens a clone remembers. Long strings without a space fill the library's 10,000 with
# 100 MB; 2,000 take 20 MB and cost a tenth of the speed.
_REMEMBERED_WORDS = 2_000
_SAMPLES = ("a", "a b c", "1 2")


class EmbeddingTokenizer:
    """One model's texts as its embedding reads them. Thread-safe.

    Each thread works with a clone of its own; a vocabulary too large to be cloned is shared. That
    is safe as well: what races in a shared fast tokenizer is its setting of truncation and
    padding, and neither is ever set here.
    """

    def __init__(
        self,
        fast: FastTokenizer,
        *,
        post_processor: Any,
        model_id: str,
        max_tokens: int,
        max_input_tokens: int | None,
        vocab_size: int,
        pad_id: int,
        special_ids: Iterable[int],
        has_segments: bool,
        pools_prompt: bool,
    ) -> None:
        """``fast`` without truncation, padding and ``post_processor`` stays as it is from now on.

        Raises EmbeddingUnavailable.
        """
        self._fast = fast
        self._post_processor = post_processor
        self._model_id = model_id
        self._special_ids = frozenset(special_ids)
        self._has_segments = has_segments
        self._pools_prompt = pools_prompt
        self._is_shared = fast.get_vocab_size() > _MAX_CLONED_VOCABULARY or not _is_storable(fast)
        self._clones = threading.local()
        self._prompt_tokens: dict[str, int] = {}
        self.max_tokens = max_tokens  # where texts are cut, special tokens counted
        self.max_input_tokens = max_input_tokens  # the most that may be given as ids
        self.vocab_size = vocab_size
        self.pad_id = pad_id
        samples = fast.encode_batch_fast(list(_SAMPLES), add_special_tokens=False)
        frame = SpecialFrame.of(post_processor, [sample for sample in samples if sample.ids])
        if frame is None:
            reason = "its tokenizer does more to a text than set special tokens around it"
            raise EmbeddingUnavailable(model_id=model_id, reason=reason)
        self._frame = frame

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> EmbeddingTokenizer:
        """The tokenizer that gave ``state``."""
        fast = FastTokenizer.from_str(state["tokenizer"])
        post_processor = fast.post_processor
        fast.post_processor = None
        facts = {name: value for name, value in state.items() if name != "tokenizer"}
        return cls(fast, post_processor=post_processor, **facts)

    def state(self) -> dict[str, Any]:
        """All that ``from_state`` needs, fit for JSON. Raises GraphUnavailable."""
        if not _is_storable(self._fast):
            raise GraphUnavailable(
                model_id=self._model_id,
                reason="its tokenizer has parts in Python, which cannot be stored",
            )
        whole = _clone(self._fast)
        whole.post_processor = self._post_processor
        return {
            "tokenizer": whole.to_str(),
            "model_id": self._model_id,
            "max_tokens": self.max_tokens,
            "max_input_tokens": self.max_input_tokens,
            "vocab_size": self.vocab_size,
            "pad_id": self.pad_id,
            "special_ids": sorted(self._special_ids),
            "has_segments": self._has_segments,
            "pools_prompt": self._pools_prompt,
        }

    def tokenize(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        truncation: Truncation = "end",
        fields: Sequence[str] | None = None,
    ) -> list[EmbeddingInput]:
        """Texts behind ``prompt``, each cut at ``max_tokens``; errors name them by ``fields``.

        A text that loses its start keeps the prompt: it is the text that is cut.

        Raises EmptyText, InvalidText, TooManyTokens, InvalidRequest.
        """
        fields = fields or field_names(len(texts))
        num_prompt_tokens = self._num_prompt_tokens(prompt)
        room = self._room(0)
        inputs = []
        for own, field in zip(self._own_ids(texts, prompt, fields), fields, strict=True):
            if len(own) > room and truncation == "error":
                raise self._too_many(len(own) + len(self._frame), self.max_tokens, field)
            kept, left_out = own[:room], num_prompt_tokens
            if len(own) > room and truncation == "start":
                repeated, left_out = self._prompt_in(own, prompt)
                kept = own[:repeated] + own[-self._room(repeated) :]
            inputs.append(self._input(kept, len(own), left_out, field))
        return inputs

    def chunk(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        fields: Sequence[str] | None = None,
    ) -> list[list[EmbeddingInput]]:
        """Each text as the fewest pieces within ``max_tokens``, all about equally long, so that no
        short rest weighs as much as the others; the prompt stands before each.

        Raises EmptyText, InvalidText, InvalidRequest.
        """
        fields = fields or field_names(len(texts))
        num_prompt_tokens = self._num_prompt_tokens(prompt)
        chunked = []
        for own, field in zip(self._own_ids(texts, prompt, fields), fields, strict=True):
            if len(own) <= self._room(0):
                chunked.append([self._input(own, len(own), num_prompt_tokens, field)])
                continue
            repeated, left_out = self._prompt_in(own, prompt)
            rest = own[repeated:]
            num_pieces = -(-len(rest) // self._room(repeated))
            ends = [len(rest) * index // num_pieces for index in range(num_pieces + 1)]
            pieces = [own[:repeated] + rest[start:end] for start, end in itertools.pairwise(ends)]
            chunked.append(
                [
                    self._input(piece, len(piece), left_out, field, num_repeated=repeated)
                    for piece in pieces
                ]
            )
        return chunked

    def checked_ids(self, input_ids: Sequence[int], *, field: str = "input_ids") -> EmbeddingInput:
        """Given ids, taken as they are. Raises InvalidInputIds, TooManyTokens, EmptyText."""
        if len(input_ids) == 0:
            raise EmptyText(field=field)
        if self.max_input_tokens is not None and len(input_ids) > self.max_input_tokens:
            raise self._too_many(len(input_ids), self.max_input_tokens, field)
        if not 0 <= min(input_ids) <= max(input_ids) < self.vocab_size:
            position = next(
                place for place, i in enumerate(input_ids) if not 0 <= i < self.vocab_size
            )
            raise InvalidInputIds(
                field=field,
                token_id=input_ids[position],
                position=position,
                vocab_size=self.vocab_size,
            )
        ids = np.array(input_ids, dtype=np.int64)
        return EmbeddingInput(input_ids=ids, num_tokens_untruncated=ids.size)

    def _own_ids(
        self, texts: Sequence[str], prompt: str | None, fields: Sequence[str]
    ) -> list[list[int]]:
        """Ids of the texts behind the prompt, without special tokens around them."""
        for text, field in zip(texts, fields, strict=True):
            check_text(text, field=field)
        contents = self._encode([prompt + text for text in texts] if prompt else texts)
        for own, field in zip(contents, fields, strict=True):
            if not own:
                raise EmptyText(field=field)
        return contents

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._own_clone().encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _own_clone(self) -> FastTokenizer:
        """The calling thread's tokenizer."""
        if self._is_shared:
            return self._fast
        clone: FastTokenizer | None = getattr(self._clones, "fast", None)
        if clone is None:
            clone = self._clones.fast = _clone(self._fast)
        return clone

    def _input(
        self,
        kept: list[int],
        num_own: int,
        num_prompt_tokens: int,
        field: str,
        *,
        num_repeated: int | None = None,
    ) -> EmbeddingInput:
        """``kept`` of a text's ``num_own`` tokens inside the frame; ``num_repeated`` of them are
        the prompt's in front of each piece of a text, None for whole texts."""
        input_ids = self._frame.around(kept)
        if num_prompt_tokens and num_prompt_tokens >= input_ids.size:
            raise InvalidRequest(
                reason=f"The prompt of {num_prompt_tokens} tokens leaves no room for {field}."
            )
        has_segments = self._has_segments and self._frame.has_segments
        return EmbeddingInput(
            input_ids=input_ids,
            num_tokens_untruncated=num_own + len(self._frame),
            token_type_ids=self._frame.token_type_ids(len(kept)) if has_segments else None,
            num_prompt_tokens=num_prompt_tokens,
            num_added_tokens=0 if num_repeated is None else len(self._frame) + num_repeated,
        )

    def _room(self, num_prompt_tokens: int) -> int:
        """Tokens of the text itself that one input has room for."""
        room = self.max_tokens - len(self._frame) - num_prompt_tokens
        if room < 1:
            raise InvalidRequest(
                reason=f"max_tokens {self.max_tokens} leaves no room for text beside the special "
                "tokens and the prompt."
            )
        return room

    def _prompt_in(self, own: list[int], prompt: str | None) -> tuple[int, int]:
        """How many of a text's own ids are the prompt's, to be kept where the text is cut, and how
        many leading tokens pooling then leaves out."""
        if not prompt:
            return 0, 0
        # The prompt's last token may have merged with the text: that one is the text's.
        repeated = _common_prefix(self._encode([prompt])[0], own)
        framed = len(self._frame.prefix) + repeated
        return repeated, min(self._num_prompt_tokens(prompt), framed)

    def _num_prompt_tokens(self, prompt: str | None) -> int:
        """Leading tokens that pooling leaves out, counted as sentence-transformers does: those of
        the framed prompt but for a special one at its end."""
        if not prompt or self._pools_prompt:
            return 0
        if prompt not in self._prompt_tokens:
            framed = self._frame.around(self._encode([prompt])[0])
            ends_special = bool(framed.size) and int(framed[-1]) in self._special_ids
            self._prompt_tokens[prompt] = framed.size - ends_special
        return self._prompt_tokens[prompt]

    def _too_many(self, tokens: int, limit: int, field: str) -> TooManyTokens:
        return TooManyTokens(field=field, tokens=tokens, max_tokens=limit, model_id=self._model_id)


def field_names(count: int) -> list[str]:
    """Names of the texts of one call, for errors."""
    return ["text"] if count == 1 else [f"texts[{index}]" for index in range(count)]


def _clone(fast: FastTokenizer) -> FastTokenizer:
    clone = FastTokenizer.from_str(fast.to_str())
    resize_cache = getattr(clone.model, "_resize_cache", None)
    if resize_cache is not None:  # WordPiece remembers nothing
        resize_cache(_REMEMBERED_WORDS)
    return clone


def _is_storable(fast: FastTokenizer) -> bool:
    """Whether all its parts are the library's own: those written in Python have no JSON form."""
    parts = (fast.normalizer, fast.pre_tokenizer)
    try:
        for part in parts:
            if part is not None:
                part.__getstate__()
    except Exception:  # the library raises a bare Exception for it
        return False
    return True


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))
