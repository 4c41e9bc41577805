"""Texts that an embedding model reads as chat messages.

Since version 6 the sentence-transformers library sends text through the chat template where the
repository says so, and for plain models whose tokenizer has a template: the text as the user's
message, the prompt as the system's.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pellucid.errors import EmbeddingUnavailable, TooManyTokens
from pellucid.models.backend import EmbeddingInput, Truncation
from pellucid.models.sources.repository_layout import RepositoryLayout
from pellucid.models.text.embedding_tokenizer import field_names
from pellucid.models.text.text_check import check_text
from pellucid.models.text.tokenization import Tokenizer


class ChatInputs:
    """Renders texts with one model's chat template and cuts them as the library does."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        structured: bool,
        settings: Mapping[str, Any],
        model_id: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._structured = structured
        self._settings = settings
        self._model_id = model_id
        self._suffixes: dict[str | None, list[int]] = {}
        self._busy = threading.Lock()  # templates are not known to bear several callers

    @classmethod
    def of(
        cls, layout: RepositoryLayout, tokenizer: Tokenizer, *, model_id: str
    ) -> ChatInputs | None:
        """None for a model that reads plain text. Raises EmbeddingUnavailable."""
        if unknown := sorted(set(layout.processing) - {"chat_template"}):
            reason = (
                f"its repository sets {unknown[0]!r} of processing_kwargs, which is not supported"
            )
            raise EmbeddingUnavailable(model_id=model_id, reason=reason)
        is_plain = layout.modules is None
        if not (layout.reads_messages or (is_plain and tokenizer.chat_template.exists)):
            return None
        settings = dict(layout.processing.get("chat_template", {}))
        settings.pop("restore_suffix", None)
        return cls(
            tokenizer,
            structured=layout.structured_messages,
            settings=settings,
            model_id=model_id,
        )

    def tokenize(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None,
        max_tokens: int,
        truncation: Truncation,
    ) -> list[EmbeddingInput]:
        """Texts behind the template. Where one is cut, the template's last tokens are put back over
        its end, so that pooling of the last token reads what it was trained on.

        Thread-safe: one call at a time. Raises EmptyText, InvalidText, InvalidRequest,
        TooManyTokens.
        """
        fields = field_names(len(texts))
        for text, field in zip(texts, fields, strict=True):
            check_text(text, field=field)
        with self._busy:
            return [
                self._fitted(
                    text, prompt, max_tokens=max_tokens, truncation=truncation, field=field
                )
                for text, field in zip(texts, fields, strict=True)
            ]

    def _fitted(
        self, text: str, prompt: str | None, *, max_tokens: int, truncation: Truncation, field: str
    ) -> EmbeddingInput:
        ids = self._ids(text, prompt=prompt)
        kept = ids
        if len(ids) > max_tokens:
            if truncation == "error":
                raise TooManyTokens(
                    field=field, tokens=len(ids), max_tokens=max_tokens, model_id=self._model_id
                )
            kept = self._cut(ids, prompt, max_tokens=max_tokens, truncation=truncation)
        return EmbeddingInput(
            input_ids=np.array(kept, dtype=np.int64), num_tokens_untruncated=len(ids)
        )

    def _cut(
        self, ids: list[int], prompt: str | None, *, max_tokens: int, truncation: Truncation
    ) -> list[int]:
        if truncation == "start":
            return ids[-max_tokens:]
        suffix = self._suffix(prompt)[-max_tokens:]
        return ids[: max_tokens - len(suffix)] + suffix

    def _ids(self, text: str, *, prompt: str | None) -> list[int]:
        messages = [self._message("user", text)]
        if prompt:
            messages.insert(0, self._message("system", prompt))
        rendered = self._tokenizer.chat_template.apply(messages, **self._settings)
        return self._tokenizer.ids_of_rendered(rendered)

    def _message(self, role: str, text: str) -> dict[str, Any]:
        content = [{"type": "text", "text": text}] if self._structured else text
        return {"role": role, "content": content}

    def _suffix(self, prompt: str | None) -> list[int]:
        """The tokens that the template sets behind every text: the common end of two renderings."""
        if prompt not in self._suffixes:
            first, second = (self._ids(text, prompt=prompt) for text in ("0", "1 2 3 4"))
            count = 0
            for left, right in zip(reversed(first), reversed(second), strict=False):
                if left != right:
                    break
                count += 1
            is_trusted = count < min(len(first), len(second))
            self._suffixes[prompt] = first[len(first) - count :] if is_trusted else []
        return self._suffixes[prompt]
