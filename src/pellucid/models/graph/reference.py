"""Texts on which a graph is compared with torch, and how near it comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pellucid.errors import EmptyText
from pellucid.models.backend import EmbeddingInput, Float32, Int64, Parity
from pellucid.models.text.embedding_tokenizer import EmbeddingTokenizer

# Torch computes these in float32 while the model is converted, so the longest is kept affordable.
_MAX_TOKENS = 1_024
_PARAGRAPH = (
    "The harbour wakes before the town does. Crates of ice slide over wet stone, gulls argue about "
    "the scraps, and a man in a yellow coat counts boxes of mackerel aloud. By seven the first "
    "lorries leave, by nine the quay is hosed down, and at noon nobody could tell from the smell "
    "of coffee and warm bread that anything was ever sold here but pastries. "
)
TEXTS = (
    "a",
    "Hello",
    "42",
    "?",
    "Where is the nearest station?",
    "The cat sat on the mat.",
    "HOW TO RESET A FORGOTTEN PASSWORD",
    "Quarterly revenue rose by 7.3 % to 12.4 million, mostly from subscriptions.",
    "def area(radius: float) -> float:\n    return math.pi * radius**2",
    "https://example.org/a/b?page=2&sort=asc#top",
    "{'name': 'Ada', 'born': 1815, 'tags': ['engine', 'notes']}",
    "Der Zug nach Köln fällt heute wegen eines Unwetters leider aus.",
    "¿Dónde puedo comprar un billete para el museo de arte moderno?",
    "L'été dernier, nous avons traversé les Alpes à vélo, sous une pluie fine.",
    "Завтра утром в горах ожидается сильный снегопад.",
    "明日の朝、山では大雪が予想されています。",
    "机器学习模型把句子变成向量。",
    "الطقس جميل اليوم في المدينة القديمة.",
    "आज शाम को बाज़ार बंद रहेगा।",
    "Great game last night 🎉🔥 can't believe that final goal 😂😂",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis zzxqj",
    "It was, all things considered, a good year: the roof held, the debts were paid, the youngest "
    "learned to swim, and in the autumn there were so many apples that we gave them away by the "
    "bucket to anyone who stopped at the gate.",
    _PARAGRAPH,
    _PARAGRAPH * 20,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Inputs, and torch's float32 embeddings of them."""

    inputs: tuple[EmbeddingInput, ...]
    embeddings: Float32  # [num_inputs, dimensions]

    def save(self, path: Path) -> None:
        """Raises OSError."""
        lengths = np.array([item.input_ids.size for item in self.inputs], dtype=np.int64)
        given = [item.token_type_ids for item in self.inputs]
        types = [np.zeros(0, np.int64) if item is None else item for item in given]
        np.savez(
            path,
            lengths=lengths,
            input_ids=np.concatenate([item.input_ids for item in self.inputs]),
            type_lengths=np.array([item.size for item in types], dtype=np.int64),
            token_type_ids=np.concatenate(types),
            num_prompt_tokens=np.array([item.num_prompt_tokens for item in self.inputs]),
            embeddings=self.embeddings,
        )

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Raises OSError, and ValueError or KeyError for a file of another form."""
        with np.load(path, allow_pickle=False) as arrays:
            ids = _pieces(arrays["input_ids"], arrays["lengths"])
            types = _pieces(arrays["token_type_ids"], arrays["type_lengths"])
            prompts = arrays["num_prompt_tokens"].tolist()
            embeddings: Float32 = arrays["embeddings"]
        inputs = tuple(
            EmbeddingInput(
                input_ids=input_ids,
                num_tokens_untruncated=input_ids.size,
                token_type_ids=type_ids if type_ids.size else None,
                num_prompt_tokens=num_prompt_tokens,
            )
            for input_ids, type_ids, num_prompt_tokens in zip(ids, types, prompts, strict=True)
        )
        return cls(inputs=inputs, embeddings=embeddings)


def reference_inputs(tokenizer: EmbeddingTokenizer, *, prompt: str | None) -> list[EmbeddingInput]:
    """The texts as one model reads them, every third with a prompt, the longest at the model's
    limit. A text of which its tokenizer keeps nothing (a script that it drops) is left out."""
    inputs = []
    for number, text in enumerate(TEXTS):
        wanted = prompt if number % 3 == 0 else None
        try:
            (item,) = tokenizer.tokenize([text], prompt=wanted)
        except EmptyText:
            continue
        inputs.append(_shortened(item))
    return inputs


def parity(reference: Float32, *given: Float32, threshold: float) -> Parity:
    """The cosines of embeddings [num_texts, dimensions] computed in several ways with torch's. A
    vector that is not finite counts as 0."""
    cosines = np.concatenate([_cosines(reference, vectors) for vectors in given])
    return Parity(
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
        threshold=threshold,
        num_texts=len(reference),
    )


def _cosines(left: Float32, right: Float32) -> Float32:
    wide_left, wide_right = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(wide_left, axis=1) * np.linalg.norm(wide_right, axis=1)
    dots = (wide_left * wide_right).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.where(norms > 0, dots / norms, 0.0)
    bounded: Float32 = np.nan_to_num(cosines, nan=0.0, posinf=0.0, neginf=0.0).clip(-1.0, 1.0)
    return bounded


def _shortened(item: EmbeddingInput) -> EmbeddingInput:
    types = item.token_type_ids
    return EmbeddingInput(
        input_ids=item.input_ids[:_MAX_TOKENS],
        num_tokens_untruncated=min(item.input_ids.size, _MAX_TOKENS),
        token_type_ids=None if types is None else types[:_MAX_TOKENS],
        num_prompt_tokens=item.num_prompt_tokens,
    )


def _pieces(values: Int64, lengths: Sequence[int] | Int64) -> list[Int64]:
    return np.split(values, np.cumsum(lengths)[:-1])
