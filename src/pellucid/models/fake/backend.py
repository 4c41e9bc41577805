"""A model that is none: deterministic, tiny, numpy only; for tests and clients without torch.

It is a real transformer all the same (random weights from a seed), so padding, causality, cross
attention and knock-outs behave as they do in a trained one.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from pellucid.errors import (
    AttentionUnavailable,
    ChatTemplateMissing,
    GenerationUnavailable,
    LogitLensUnavailable,
    TargetRequired,
)
from pellucid.models.backend import (
    AttentionName,
    AttentionSink,
    Batch,
    Bool,
    CaptureSpec,
    EmbeddingInput,
    Encoding,
    Float32,
    HiddenStatesName,
    Int64,
    ModelInfo,
    ModelOutputs,
    Truncation,
)
from pellucid.models.fake.tokenizer import PAD_ID, SEP_ID, START_ID, FakeTokenizer
from pellucid.models.fake.transformer import FakeModel, FakeTransformer, mean_of_real_tokens

__all__ = ["FakeBackend", "FakeModel", "Faults"]


@dataclass(slots=True)
class Faults:
    """Switches that make a ``FakeBackend`` misbehave from its next call on, in whatever process:
    ``change`` takes them as JSON."""

    error: BaseException | None = None  # raised by every call of tokenize*, encode and inspect
    hang: threading.Event | None = None  # encode and inspect wait for it
    delay_s: float = 0.0  # encode and inspect take this long
    delay_s_per_token: float = 0.0  # and encode so much longer, padding counted
    nan: bool = False  # encode and inspect give NaN
    exact_heals: bool = False  # but an exact encode does not
    only_with: int | None = None
    """A token id: in encode, ``error`` and ``hang`` strike just the batches that hold it, ``nan``
    just their rows; tokenising is spared."""
    max_tokens: int | None = None  # encode runs out of memory above it, padding counted

    def change(self, changes: str) -> None:
        """Set switches from JSON such as ``{"error": "boom", "hang": true, "delay_s": 0.5}``;
        null and false switch off. What hangs goes on when ``hang`` is switched off."""
        for name, value in json.loads(changes).items():
            if name == "error":
                value = None if value is None else RuntimeError(value)
            elif name == "hang":
                before, value = self.hang, threading.Event() if value else None
                if before is not None:
                    before.set()
            elif name not in self.__slots__:
                raise ValueError(f"no such fault: {name}")
            setattr(self, name, value)

    def rows_of(self, batch: Batch) -> Bool:
        """The rows of a batch that the faults strike: [batch]."""
        if self.only_with is None:
            return np.ones(len(batch.input_ids), dtype=bool)
        return np.asarray((batch.input_ids == self.only_with).any(axis=1))


class FakeBackend:
    """Implements ``Backend``. Raises when called from two threads at once where that is not
    allowed, or after ``close``."""

    def __init__(self, model: FakeModel | None = None, *, faults: Faults | None = None) -> None:
        self.model = model or FakeModel()
        self.faults = faults or Faults()
        self.closed = False
        self.num_forwards = 0
        self.batches: deque[tuple[int, int]] = deque(maxlen=1_000)  # [inputs, tokens] of encode
        self._busy = threading.Lock()
        self._transformer = FakeTransformer(self.model)
        self._tokenizer = FakeTokenizer(self.model)

    @property
    def info(self) -> ModelInfo:
        return self._transformer.info

    @property
    def pad_id(self) -> int:
        return PAD_ID

    # ------------------------------------------------------------------------------- tokenising

    def tokenize(
        self,
        text: str,
        *,
        text_pair: str | None = None,
        max_tokens: int | None = None,
        truncation: Truncation = "error",
        target: bool = False,
    ) -> Encoding:
        with self._at_work():
            return self._tokenizer.tokenize(
                text,
                text_pair=text_pair,
                max_tokens=max_tokens,
                truncation=truncation,
                target=target,
            )

    def encoding_of(self, input_ids: Sequence[int], *, target: bool = False) -> Encoding:
        with self._at_work():
            return self._tokenizer.encoding_of(input_ids)

    def tokenize_messages(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int | None = None,
        truncation: Truncation = "error",
    ) -> Encoding:
        """``role: content`` line by line."""
        if not self.model.has_chat_template:
            raise ChatTemplateMissing(model_id=self.model.model_id)
        text = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
        return self.tokenize(text, max_tokens=max_tokens, truncation=truncation)

    def tokenize_for_embedding(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        truncation: Truncation = "end",
    ) -> list[EmbeddingInput]:
        """Each text after the prompt, cut at ``max_embedding_tokens``."""
        self._check()
        encodings = [
            self._tokenizer.tokenize(
                (prompt or "") + text,
                max_tokens=self.model.max_embedding_tokens,
                truncation=truncation,
            )
            for text in texts
        ]
        return [
            EmbeddingInput(
                input_ids=encoding.input_ids,
                num_tokens_untruncated=encoding.num_tokens_untruncated,
                num_prompt_tokens=encoding.num_prompt_tokens,
            )
            for encoding in encodings
        ]

    def chunk_for_embedding(
        self, texts: Sequence[str], *, prompt: str | None = None
    ) -> list[list[EmbeddingInput]]:
        """Each text in pieces of ``max_embedding_tokens``, the last one shorter; prompt and special
        tokens around every piece."""
        self._check()
        return [self._chunks(text, prompt or "") for text in texts]

    def _chunks(self, text: str, prompt: str) -> list[EmbeddingInput]:
        limit = self.model.max_embedding_tokens or 10**9
        whole = self._tokenizer.pieces_of(text)
        before = self._tokenizer.pieces_of(prompt)
        room = limit - len(before) - self._tokenizer.num_special
        chunks = []
        for start in range(0, max(1, len(whole)), room):
            encoding = self._tokenizer.encoding_of_pieces(before + whole[start : start + room])
            chunks.append(
                EmbeddingInput(
                    input_ids=encoding.input_ids,
                    num_tokens_untruncated=encoding.num_tokens_untruncated,
                    num_added_tokens=len(before) + self._tokenizer.num_special,
                )
            )
        return chunks

    def ids_for_embedding(self, input_ids: Sequence[int]) -> EmbeddingInput:
        self._check()
        encoding = self._tokenizer.encoding_of(input_ids)
        return EmbeddingInput(
            input_ids=encoding.input_ids, num_tokens_untruncated=encoding.num_tokens_untruncated
        )

    def token_id_of(self, word: str) -> int:
        """The id of a word of at most five characters, for ``Faults.only_with``."""
        encoding = self._tokenizer.tokenize(word)
        return int(encoding.input_ids[~encoding.special][0])

    # ---------------------------------------------------------------------------------- running

    def encode(self, batch: Batch, *, exact: bool = False) -> Float32:
        """Mean of the last hidden state over real tokens, prompts left out: [batch, hidden]."""
        with self._forward(batch, is_encode=True):
            self.batches.append(batch.input_ids.shape)
            spec = CaptureSpec(pooled=True)
            states = self._transformer.encoder_states(batch, spec, None, {})
            pooled = mean_of_real_tokens(states[-1], batch.attention_mask, batch.num_prompt_tokens)
            if self.faults.nan and not (exact and self.faults.exact_heals):
                pooled[self.faults.rows_of(batch)] = np.nan
            return pooled

    def inspect(
        self, batch: Batch, spec: CaptureSpec, *, sink: AttentionSink | None = None
    ) -> ModelOutputs:
        """One forward pass through every stack of the model."""
        self._refuse(batch, spec)
        with self._forward(batch):
            started = time.perf_counter()
            norms: dict[tuple[AttentionName, int], Float32] = {}
            states = self._transformer.encoder_states(batch, spec, sink, norms)
            hidden: dict[HiddenStatesName, Float32] = {}
            if self.model.kind != "encoder-decoder":
                hidden["hidden_states"], last = states, states
            else:
                hidden["encoder_hidden_states"], last = states, states
                if batch.decoder_input_ids is not None:
                    last = self._transformer.decoder_states(batch, states[-1], spec, sink, norms)
                    hidden["decoder_hidden_states"] = last
            if self.faults.nan:
                hidden = {name: np.full_like(values, np.nan) for name, values in hidden.items()}
            top_k = spec.logit_lens_top_k
            return ModelOutputs(
                hidden_states={n: _chosen(v, spec) for n, v in hidden.items()}
                if spec.hidden_states
                else {},
                value_norms=norms if spec.value_norms else {},
                logits=last[-1] @ self._transformer.embeddings.T if spec.logits else None,
                logit_lens=self._transformer.logit_lens(last, top_k) if top_k is not None else None,
                pooled=mean_of_real_tokens(states[-1], batch.attention_mask, None)
                if spec.pooled
                else None,
                forward_ms=(time.perf_counter() - started) * 1000,
            )

    def generate_greedily(self, encoding: Encoding, *, max_new_tokens: int) -> Int64:
        """Most likely token after most likely token, until ``[SEP]``."""
        kind, model_id = self.model.kind, self.model.model_id
        if kind == "encoder":
            raise GenerationUnavailable(model_id=model_id, reason="it is an encoder")
        given = [int(token_id) for token_id in encoding.input_ids]
        new = [START_ID] if kind == "encoder-decoder" else []
        while len(new) < max_new_tokens and SEP_ID not in new:
            if kind == "decoder":
                batch = _batch_of_ids(given + new)
            else:
                batch = _batch_of_ids(given, decoder_input_ids=new)
            logits = self.inspect(batch, CaptureSpec(logits=True)).logits
            assert logits is not None
            new.append(int(logits[0, -1].argmax()))
        return np.array(new, dtype=np.int64)

    def close(self) -> None:
        if self._busy.locked():
            raise RuntimeError("closed while at work")
        self.closed = True

    def _refuse(self, batch: Batch, spec: CaptureSpec) -> None:
        model_id, support = self.model.model_id, self.info.attention
        if spec.attentions and not support.available:
            raise AttentionUnavailable(model_id=model_id, where="", reason=support.reason)
        if spec.logit_lens_top_k is not None and self.model.kind != "decoder":
            raise LogitLensUnavailable(model_id=model_id, reason="it is not a causal model")
        needs_target = spec.attentions or spec.logits
        has_target = self.model.kind != "encoder-decoder" or batch.decoder_input_ids is not None
        if needs_target and not has_target:
            raise TargetRequired(field="attentions", model_id=model_id)

    def _check(self) -> None:
        if self.closed:
            raise RuntimeError("used after close")
        if self.faults.error is not None and self.faults.only_with is None:
            raise self.faults.error

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("called from two threads at once")
        try:
            self._check()
            yield
        finally:
            self._busy.release()

    @contextmanager
    def _forward(self, batch: Batch, *, is_encode: bool = False) -> Iterator[None]:
        faults = self.faults
        with self._at_work():
            self.num_forwards += 1
            strikes = bool(faults.rows_of(batch).any())
            if faults.hang is not None and strikes:
                faults.hang.wait()
            time.sleep(faults.delay_s + is_encode * faults.delay_s_per_token * batch.input_ids.size)
            if faults.error is not None and strikes:
                raise faults.error
            if (
                faults.max_tokens is not None
                and is_encode
                and (batch.input_ids.size > faults.max_tokens)
            ):
                raise MemoryError(f"a batch of {batch.input_ids.size} tokens")
            yield


def _chosen(states: Float32, spec: CaptureSpec) -> Float32:
    if spec.hidden_layers is not None:
        return states[list(spec.hidden_layers)]
    return states if spec.layers is None else states[[layer + 1 for layer in spec.layers]]


def _batch_of_ids(ids: list[int], *, decoder_input_ids: list[int] | None = None) -> Batch:
    input_ids = np.array([ids], dtype=np.int64)
    return Batch(
        input_ids=input_ids,
        attention_mask=np.ones_like(input_ids),
        decoder_input_ids=None
        if decoder_input_ids is None
        else np.array([decoder_input_ids], dtype=np.int64),
    )
