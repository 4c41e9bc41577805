"""Families with every kind of tokenizer, and texts that tokenizers stumble over."""

from __future__ import annotations

from collections.abc import Callable

import tiny_models
from pellucid.models.backend import ModelKind
from pellucid.models.text.tokenization import Tokenizer

KINDS: dict[str, ModelKind] = {
    "gpt2": "decoder",
    "llama": "decoder",
    "bert": "encoder",
    "roberta": "encoder",
    "xlm_roberta": "encoder",
    "t5": "encoder-decoder",
    "bart": "encoder-decoder",
}
ODD_TEXTS = {
    "joined emoji": "a 👨‍👩‍👧‍👦 family 🇩🇪 👍🏽!",
    "combining": "e\u0301tude, n\u0303, \u1112\u1161\u11ab",
    "right to left": "שלום, مرحبا بالعالم (ok)",
    "cjk": "漢字とひらがな和한글。",
    "white space": "  tabs\tand\nlines\r\n\r\n and   spaces \u00a0 ",
    "astral": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 and 𐍈",
    "expanding": "ﬁnance ½ ㎏ İstanbul ß",
    "special written out": "see <s> and </s> or [SEP] [MASK] <|end|> here",
    "plain": tiny_models.LONG_TEXT,
}

Load = Callable[[str], Tokenizer]
