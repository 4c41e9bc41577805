"""Texts that an embedding model reads as chat messages.

Since version 6 the sentence-transformers library sends text through the chat template where the
repository says so, and for plain models whose tokenizer has a template: the text as the user's
message, the prompt as the system's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pellucid.errors import EmbeddingUnavailable, TooManyTokens
from pellucid.models.backend import Encoding, Truncation
from pellucid.models.sources.repository_layout import RepositoryLayout
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
        text: str,
        *,
        prompt: str | None,
        max_tokens: int | None,
        truncation: Truncation,
        field: str,
    ) -> Encoding:
        """One text. Where it is cut, the template's last tokens are put back over its end, so that
        pooling of the last token reads what it was trained on. Raises TooManyTokens."""
        ids = self._ids(text, prompt=prompt)
        if max_tokens is None or len(ids) <= max_tokens:
            return self._tokenizer.unchecked_encoding(ids)
        if truncation == "error":
            raise TooManyTokens(
                field=field, tokens=len(ids), max_tokens=max_tokens, model_id=self._model_id
            )
        if truncation == "start":
            kept = ids[-max_tokens:]
        else:
            suffix = self._suffix(prompt)[-max_tokens:]
            kept = ids[: max_tokens - len(suffix)] + suffix
        encoding = self._tokenizer.unchecked_encoding(kept)
        return replace(encoding, truncated=True, num_tokens_untruncated=len(ids))

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
