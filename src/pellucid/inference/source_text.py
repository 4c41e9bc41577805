"""The text of one inspection as the model reads it, once it is known to be affordable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from pellucid.errors import InvalidInput, TooManyTokens
from pellucid.inference.admission import admit_inspection
from pellucid.inference.engine import InspectionQuery
from pellucid.inference.knockouts import check_knockouts
from pellucid.inference.plan import InspectionPlan
from pellucid.models.backend import Backend, Batch, Encoding, Truncation
from pellucid.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceText:
    """Tokens of the text and, for encoder-decoder models, of the target."""

    source: Encoding
    target: Encoding | None  # encoder-decoder models
    target_generated: bool

    @property
    def target_len(self) -> int:
        return 0 if self.target is None else self.target.input_ids.size

    @property
    def source_len(self) -> int:
        return self.source.input_ids.size

    def batch(self, backend: Backend) -> Batch:
        batch = Batch.of([self.source], pad_id=backend.pad_id)
        if self.target is None:
            return batch
        target_ids = self.target.input_ids[None]
        return replace(
            batch,
            decoder_input_ids=target_ids,
            decoder_attention_mask=np.ones_like(target_ids),
        )


def read_text(backend: Backend, plan: InspectionPlan, *, settings: Settings) -> SourceText:
    """Tokenise, and check cost and knock-outs, which need the number of tokens.

    Raises errors under InvalidInput and CapabilityMissing.
    """
    source = _encode(backend, plan.query, settings=settings)
    seq_len = source.input_ids.size
    if plan.info.kind != "encoder-decoder":
        admit_inspection(plan, seq_len=seq_len, target_len=0, settings=settings)
        check_knockouts(plan, seq_len=seq_len, target_len=0)
        return SourceText(source=source, target=None, target_generated=False)
    generated = plan.query.target_text is None
    if generated:  # generating takes time: what cannot be afforded after it is not begun
        longest = settings.max_target_tokens
        admit_inspection(plan, seq_len=seq_len, target_len=longest + 1, settings=settings)
        ids = backend.generate_greedily(source, max_new_tokens=longest)
        target = backend.encoding_of(ids.tolist(), target=True)
    else:
        with in_field("target_text"):
            target = backend.tokenize(
                plan.query.target_text or "",
                max_tokens=settings.max_inspection_tokens,
                truncation=plan.query.truncate,
                target=True,
            )
    target_len = target.input_ids.size
    admit_inspection(plan, seq_len=seq_len, target_len=target_len, settings=settings)
    check_knockouts(plan, seq_len=seq_len, target_len=target_len)
    return SourceText(source=source, target=target, target_generated=generated)


def _encode(backend: Backend, query: InspectionQuery, *, settings: Settings) -> Encoding:
    limits = (query.max_tokens, settings.max_inspection_tokens, backend.info.max_tokens)
    max_tokens = min(limit for limit in limits if limit is not None)
    if query.messages is not None:
        return backend.tokenize_messages(
            query.messages, max_tokens=max_tokens, truncation=query.truncate
        )
    if query.input_ids is not None:
        return encode_ids(
            backend, query.input_ids, max_tokens=max_tokens, truncation=query.truncate
        )
    return backend.tokenize(
        query.text or "",
        text_pair=query.text_pair,
        max_tokens=max_tokens,
        truncation=query.truncate,
    )


def encode_ids(
    backend: Backend,
    input_ids: Sequence[int],
    *,
    max_tokens: int | None,
    truncation: Truncation,
    field: str = "input_ids",
) -> Encoding:
    """Given ids as an encoding, cut or refused like text. Raises TooManyTokens, InvalidInputIds."""
    count = len(input_ids)
    if max_tokens is None or count <= max_tokens:
        return backend.encoding_of(input_ids)
    if truncation == "error":
        raise TooManyTokens(
            field=field, tokens=count, model_id=backend.info.model_id, max_tokens=max_tokens
        )
    kept = input_ids[:max_tokens] if truncation == "end" else input_ids[count - max_tokens :]
    return replace(backend.encoding_of(kept), truncated=True, num_tokens_untruncated=count)


@contextmanager
def in_field(name: str) -> Iterator[None]:
    """Errors about a text name the field that it came in."""
    try:
        yield
    except InvalidInput as error:
        if "field" not in error.facts:
            raise
        raise type(error)(**(error.facts | {"field": name})) from error
