"""Text -> ``Encoding``: ids, readable tokens, offsets into the text, what was cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding as FastEncoding

from pellucid.errors import (
    CapabilityMissing,
    EmptyText,
    InvalidInputIds,
    InvalidRequest,
    PairUnsupported,
    TargetUnsupported,
    TooManyTokens,
)
from pellucid.models.backend import Encoding, ModelKind, Truncation
from pellucid.models.sources.repository_layout import RepositoryLayout
from pellucid.models.text.chat_template import ChatTemplate
from pellucid.models.text.embedding_tokenizer import EmbeddingTokenizer
from pellucid.models.text.text_check import check_text
from pellucid.models.text.token_pieces import TokenPieces
from pellucid.models.text.token_sequence import TokenSequence, kept_lengths
from pellucid.models.text.tokenizer_files import (
    decoder_start_id,
    finite_length,
    load_fast_tokenizer,
    lowercase_first,
    max_positions,
    pad_id,
    special_ids,
)


class Tokenizer:
    """One model's tokenizer. Used by one thread at a time; never changes between calls.

    Offsets count characters (Unicode code points) of the text as sent, end exclusive, and include
    the leading space of a piece where the piece holds it, so that the pieces of byte-level
    tokenizers lie end to end. Tokens that share one character share its span. Tokens that the
    tokenizer adds (``[CLS]``) have offsets (0, 0) and text_index -1; special tokens written in the
    text keep their place and are marked special; the unknown token stands for text and is not.
    """

    def __init__(
        self, tokenizer: Any, *, config: Any, model_id: str, model_kind: ModelKind, folder: Path
    ) -> None:
        self._hf = tokenizer
        self._fast = tokenizer.backend_tokenizer
        # tokenizer.json may carry truncation and padding of its own (all-MiniLM-L6-v2: 128).
        self._fast.no_truncation()
        self._fast.no_padding()
        # Special tokens are added by us, after the cut; the added step would also trim offsets.
        self._post_processor = self._fast.post_processor
        self._fast.post_processor = None
        self._pieces = TokenPieces(self._fast)
        self.chat_template = ChatTemplate(tokenizer, model_id=model_id)
        self._special_ids = special_ids(tokenizer)
        self._model_id = model_id
        self._model_kind = model_kind
        self._num_added: dict[tuple[bool, bool], int] = {}
        self._has_segments = "token_type_ids" in tokenizer.model_input_names
        self._decoder_start_id = decoder_start_id(config, folder=folder)
        self.vocab_size: int = getattr(config, "vocab_size", None) or len(tokenizer)
        self.pad_id: int = pad_id(tokenizer, vocab_size=self.vocab_size)
        self.model_max_length: int | None = finite_length(tokenizer.model_max_length)
        self.max_positions: int | None = max_positions(config)
        self.max_tokens: int | None = self.max_positions
        if self.max_positions is not None and self.model_max_length is not None:
            self.max_tokens = min(self.max_positions, self.model_max_length)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        config: Any,
        model_kind: ModelKind = "encoder",
        model_id: str | None = None,
        trust_remote_code: bool = False,
    ) -> Tokenizer:
        """The tokenizer of a model folder (a sentence-transformers repository or a plain one).

        Raises ModelLoadFailed, RemoteCodeRequired.
        """
        model_id = model_id or folder.name
        layout = RepositoryLayout.read(folder, model_id=model_id)
        tokenizer = load_fast_tokenizer(
            layout.transformer_folder, model_id=model_id, trust_remote_code=trust_remote_code
        )
        if layout.lowercase:
            lowercase_first(tokenizer.backend_tokenizer)
        return cls(
            tokenizer,
            config=config,
            model_id=model_id,
            model_kind=model_kind,
            folder=layout.transformer_folder,
        )

    def tokenize(
        self,
        text: str,
        *,
        text_pair: str | None = None,
        max_tokens: int | None = None,
        truncation: Truncation = "error",
        target: bool = False,
        field: str = "text",
    ) -> Encoding:
        """Text as the model reads it, special tokens included.

        ``max_tokens`` None means the model's own limit; "end" and "start" say which end of the text
        is cut, of a pair always from the longer text first. ``target`` gives decoder inputs: the
        decoder's start token first, no end token. Raises EmptyText, InvalidText, TooManyTokens,
        PairUnsupported, TargetUnsupported, CapabilityMissing, InvalidRequest.
        """
        check_text(text, field=field)
        texts = [text]
        if text_pair is not None:
            self._check_pair(target=target)
            check_text(text_pair, field="text_pair")
            texts.append(text_pair)
        contents = [self._fast.encode(text, add_special_tokens=False) for text in texts]
        if len(contents) > 1 and not contents[1].ids:
            raise EmptyText(field="text_pair")
        return self._fitted(
            contents,
            texts,
            limit=self._limit(max_tokens),
            truncation=truncation,
            target=target,
            field=field,
        )

    def for_embedding(self, *, max_tokens: int, pools_prompt: bool) -> EmbeddingTokenizer:
        """The same tokenizer for embeddings, which are cut at ``max_tokens``.

        Raises EmbeddingUnavailable.
        """
        return EmbeddingTokenizer(
            self._fast,
            post_processor=self._post_processor,
            model_id=self._model_id,
            max_tokens=max_tokens,
            max_input_tokens=self.max_tokens,
            vocab_size=self.vocab_size,
            pad_id=self.pad_id,
            special_ids=self._special_ids,
            has_segments=self._has_segments,
            pools_prompt=pools_prompt,
        )

    def ids_of_rendered(self, text: str) -> list[int]:
        """Ids of a text that holds its special tokens already."""
        return list(self._fast.encode(text, add_special_tokens=False).ids)

    def _fitted(
        self,
        contents: list[FastEncoding],
        texts: Sequence[str],
        *,
        limit: int | None,
        truncation: Truncation,
        field: str,
        target: bool = False,
    ) -> Encoding:
        """Contents with special tokens around them, cut to the limit."""
        if not contents[0].ids:
            raise EmptyText(field=field)
        num_own = sum(len(content) for content in contents)
        num_tokens = num_own + self._count_added(pair=len(contents) > 1, target=target)
        if limit is not None and num_tokens > limit:
            if truncation == "error":
                raise self._too_many(num_tokens, limit=limit, field=field)
            room = limit - (num_tokens - num_own)
            self._cut(contents, room=room, truncation=truncation, limit=limit)
        sequence = self._with_special_tokens(contents, target=target)
        return self._encoding(sequence, texts, num_tokens_untruncated=num_tokens)

    def _count_added(self, *, pair: bool, target: bool) -> int:
        """Special tokens around texts, known before a long text is framed in vain."""
        if (pair, target) not in self._num_added:
            nothing = [self._fast.encode("", add_special_tokens=False)] * (2 if pair else 1)
            self._num_added[pair, target] = len(self._with_special_tokens(nothing, target=target))
        return self._num_added[pair, target]

    def tokenize_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        truncation: Truncation = "error",
    ) -> Encoding:
        """Chat messages through the model's chat template, without a prompt for an answer.

        Offsets count characters of the rendered template. Raises ChatTemplateMissing,
        InvalidRequest, EmptyText, InvalidText, TooManyTokens.
        """
        rendered = self.chat_template.render(messages)
        content = self._fast.encode(rendered, add_special_tokens=False)
        num_tokens, limit = len(content), self._limit(max_tokens)
        if limit is not None and num_tokens > limit:
            if truncation == "error":
                raise self._too_many(num_tokens, limit=limit, field="messages")
            content.truncate(limit, direction=_direction(truncation))
        pieces = TokenSequence.of(content)
        return self._encoding(pieces, [rendered], num_tokens_untruncated=num_tokens)

    def encoding_of(self, input_ids: Sequence[int], *, target: bool = False) -> Encoding:
        """Given ids, taken as they are: nothing is added, cut or checked for sense.

        There is no text to point into, so all offsets are (0, 0). Raises InvalidInputIds,
        TooManyTokens, EmptyText.
        """
        field = "target input_ids" if target else "input_ids"
        if len(input_ids) == 0:
            raise EmptyText(field=field)
        for position, token_id in enumerate(input_ids):
            if not 0 <= token_id < self.vocab_size:
                raise InvalidInputIds(
                    field=field,
                    token_id=token_id,
                    position=position,
                    vocab_size=self.vocab_size,
                )
        if self.max_tokens is not None and len(input_ids) > self.max_tokens:
            raise self._too_many(len(input_ids), limit=self.max_tokens, field=field)
        ids = np.asarray(input_ids, dtype=np.int64)
        special = np.fromiter((i in self._special_ids for i in input_ids), np.bool_, len(ids))
        return Encoding(
            input_ids=ids,
            tokens=tuple(self._pieces.piece(int(token_id)) for token_id in input_ids),
            offsets=np.zeros((len(ids), 2), dtype=np.int64),
            special=special,
            text_index=np.where(special, -1, 0).astype(np.int64),
            token_type_ids=np.zeros_like(ids) if self._has_segments and not target else None,
            truncated=False,
            num_tokens_untruncated=len(ids),
        )

    def _limit(self, max_tokens: int | None) -> int | None:
        limits = [limit for limit in (max_tokens, self.max_tokens) if limit is not None]
        return min(limits, default=None)

    def _too_many(self, tokens: int, *, limit: int, field: str) -> TooManyTokens:
        return TooManyTokens(field=field, tokens=tokens, max_tokens=limit, model_id=self._model_id)

    def _check_pair(self, *, target: bool) -> None:
        if target:
            raise PairUnsupported(reason="a target is one text")
        if self._model_kind == "decoder":
            raise PairUnsupported(reason=f"{self._model_id} is a decoder and reads one text")
        processor = self._post_processor
        if processor is None or processor.num_special_tokens_to_add(True) == 0:
            raise PairUnsupported(
                reason=f"the tokenizer of {self._model_id} sets nothing between two texts"
            )

    def _cut(
        self, contents: list[FastEncoding], *, room: int, truncation: Truncation, limit: int
    ) -> None:
        if room < len(contents):
            raise InvalidRequest(
                reason=f"max_tokens {limit} leaves no room for text beside the special tokens."
            )
        lengths = [len(content) for content in contents]
        for content, length in zip(contents, kept_lengths(lengths, room=room), strict=True):
            content.truncate(length, direction=_direction(truncation))

    def _with_special_tokens(
        self, contents: Sequence[FastEncoding], *, target: bool
    ) -> TokenSequence:
        """Contents inside the tokenizer's own frame of special tokens."""
        if self._post_processor is None:
            framed = TokenSequence.of(*contents)
        else:
            pair = contents[1] if len(contents) > 1 else None
            done = self._post_processor.process(contents[0], pair, True)
            framed = TokenSequence.framed(done, contents)
        return self._as_decoder_inputs(framed) if target else framed

    def _as_decoder_inputs(self, labels: TokenSequence) -> TokenSequence:
        """Decoder inputs are the labels behind the start token, without the last end token
        (teacher forcing: row i predicts token i + 1)."""
        if self._model_kind != "encoder-decoder":
            raise TargetUnsupported(model_id=self._model_id)
        if self._decoder_start_id is None:
            raise CapabilityMissing(
                model_id=self._model_id,
                reason="its configuration names no token for its decoder to start with",
            )
        ends_itself = labels.text_index[-1:] == [-1] and labels.ids[-1] == self._hf.eos_token_id
        kept = labels.drop_last() if ends_itself else labels
        return kept.behind(self._decoder_start_id)

    def _encoding(
        self, sequence: TokenSequence, texts: Sequence[str], *, num_tokens_untruncated: int
    ) -> Encoding:
        input_ids = np.array(sequence.ids, dtype=np.int64)
        special = [
            index == -1 or token_id in self._special_ids
            for index, token_id in zip(sequence.text_index, sequence.ids, strict=True)
        ]
        tokens = (
            self._token(token_id, start=start, text=texts[index] if index >= 0 else None)
            for token_id, (start, _), index in zip(
                sequence.ids, sequence.offsets, sequence.text_index, strict=True
            )
        )
        return Encoding(
            input_ids=input_ids,
            tokens=tuple(tokens),
            offsets=np.array(sequence.offsets, dtype=np.int64).reshape(-1, 2),
            special=np.array(special, dtype=np.bool_),
            text_index=np.array(sequence.text_index, dtype=np.int64),
            token_type_ids=np.array(sequence.type_ids, dtype=np.int64)
            if self._has_segments
            else None,
            truncated=len(input_ids) < num_tokens_untruncated,
            num_tokens_untruncated=num_tokens_untruncated,
        )

    def _token(self, token_id: int, *, start: int, text: str | None) -> str:
        """The piece, without a leading space that only the tokenizer set before the text."""
        piece = self._pieces.piece(token_id)
        if text is None or not piece.startswith(" ") or self._pieces.style == "plain":
            return piece
        has_space = text[start : start + 1].isspace() or text[max(start - 1, 0) : start].isspace()
        return piece if has_space else piece[1:]


def _direction(truncation: Truncation) -> str:
    return "left" if truncation == "start" else "right"
