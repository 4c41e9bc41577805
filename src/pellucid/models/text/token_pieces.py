"""Tokens as people read them: no placeholder letters for spaces and bytes, no broken characters."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Literal

from tokenizers import Tokenizer as FastTokenizer

Style = Literal["byte_level", "metaspace", "plain"]

_METASPACE = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenPieces:
    """Readable pieces of one tokenizer's vocabulary.

    - Byte-level BPE (GPT-2, Llama 3, Qwen): the bytes of the token as UTF-8. Where a character is
      spread over several tokens, each shows its bytes, ``<0xF0><0x9F>``, never U+FFFD.
    - Metaspace (Llama 2, T5, XLM-R): the piece with its leading space as a normal space; tokens of
      single bytes stay ``<0xE2>`` unless the byte is a character by itself.
    - WordPiece and others: as in the vocabulary, ``##ing`` included, without ``</w>``.
    """

    def __init__(self, tokenizer: FastTokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {
            token_id: token.content
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
        }
        self._word_end = getattr(tokenizer.model, "end_of_word_suffix", None) or ""
        self._known: dict[int, str] = {}
        self.style: Style = _style_of(tokenizer)

    def piece(self, token_id: int) -> str:
        """The readable form of one token."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._read(token_id)
        return known

    def _read(self, token_id: int) -> str:
        # Added tokens stand in the vocabulary as they are written, not byte-encoded.
        if (added := self._added.get(token_id)) is not None:
            return added
        token = self._tokenizer.id_to_token(token_id)
        if token is None:  # models may have more rows than their tokenizer has tokens
            return f"<id {token_id}>"
        if self.style == "byte_level":
            return _text_of_bytes(token)
        if self.style == "metaspace":
            if byte := _BYTE_TOKEN.fullmatch(token):
                code = int(byte[1], 16)
                return chr(code) if code < 0x80 else token
            return token.replace(_METASPACE, " ")
        return token.removesuffix(self._word_end)


def _byte_alphabet() -> dict[str, int]:
    """The letters by which byte-level BPE writes bytes, as published with GPT-2 (encoder.py):
    printable Latin-1 stands for itself, the other bytes for the letters from U+0100 on."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(itself)]
    return {chr(byte): byte for byte in itself} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


_BYTE_OF_LETTER = _byte_alphabet()


def _text_of_bytes(token: str) -> str:
    if any(letter not in _BYTE_OF_LETTER for letter in token):
        return token
    return bytes(_BYTE_OF_LETTER[letter] for letter in token).decode(errors="pellucid.show_bytes")


def _show_bytes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    broken = error.object[error.start : error.end]
    return "".join(f"<0x{byte:02X}>" for byte in broken), error.end


codecs.register_error("pellucid.show_bytes", _show_bytes)


def _style_of(tokenizer: FastTokenizer) -> Style:
    parts = [tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder]
    components = [
        component
        for part in parts
        if part is not None
        for component in _components(json.loads(part.__getstate__()))
    ]
    kinds = {component.get("type") for component in components}
    if "ByteLevel" in kinds:
        return "byte_level"
    spells_spaces = any(
        component.get("type") == "Replace"
        and _METASPACE in json.dumps(component, ensure_ascii=False)
        for component in components
    )
    return "metaspace" if "Metaspace" in kinds or spells_spaces else "plain"


def _components(state: Any) -> Iterator[dict[str, Any]]:
    """A component's own state and those of the components inside it."""
    if isinstance(state, dict):
        if "type" in state:
            yield state
        for value in state.values():
            yield from _components(value)
    elif isinstance(state, list):
        for value in state:
            yield from _components(value)
