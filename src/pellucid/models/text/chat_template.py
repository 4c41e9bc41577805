"""Chat messages as one text, by a tokenizer's own template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.errors import ChatTemplateMissing, InvalidRequest
from pellucid.models.text.text_check import check_text


class ChatTemplate:
    """The template of one tokenizer, or its absence."""

    def __init__(self, tokenizer: Any, *, model_id: str) -> None:
        self._tokenizer = tokenizer
        self._model_id = model_id

    @property
    def exists(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Messages of a request as one text, without a prompt for an answer.

        Raises ChatTemplateMissing, InvalidRequest, EmptyText, InvalidText.
        """
        if not self.exists:
            raise ChatTemplateMissing(model_id=self._model_id)
        if not messages:
            raise InvalidRequest(reason="messages is empty.")
        for index, message in enumerate(messages):
            _check(message, field=f"messages[{index}]")
        return self.apply([dict(message) for message in messages])

    def apply(self, messages: Sequence[dict[str, Any]], **settings: Any) -> str:
        """Messages that are known to be well formed; the template may still refuse them."""
        settings = {"add_generation_prompt": False, **settings}
        try:
            rendered = self._tokenizer.apply_chat_template(messages, tokenize=False, **settings)
        except Exception as error:  # templates raise whatever they like, jinja's errors included
            raise InvalidRequest(
                reason=f"The chat template of {self._model_id} refused the messages: {error}."
            ) from error
        return str(rendered)


def _check(message: Any, *, field: str) -> None:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidRequest(reason=f"{field} needs a role.")
    content = message.get("content")
    if not isinstance(content, str):
        raise InvalidRequest(reason=f"{field} needs content as text.")
    check_text(content, field=f"{field}.content")
