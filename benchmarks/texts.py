"""The texts that are measured with: English words drawn from ``words.txt``, the same every time.

``words.txt`` holds common words (one WordPiece token each for all-MiniLM-L6-v2) and, after an empty
line, long ones (3.2 tokens on average). Their shares are chosen so that short texts have 27 tokens
on average and long ones 175, cut at the model's 256.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

_SEED = 20_251_121
_LONG_WORDS = {"short": 0.45, "long": 0.357}  # share of all words


@cache
def short_texts(count: int = 512) -> tuple[str, ...]:
    """Texts of 5 to 20 words."""
    return _texts("short", count, 5, 20)


@cache
def long_texts(count: int = 256) -> tuple[str, ...]:
    """Texts of 40 to 160 words."""
    return _texts("long", count, 40, 160)


def mixed_texts(count: int, *, seed: int = 0) -> list[str]:
    """Texts of 1 to 160 words, most of them short: each length as likely as its inverse."""
    draw = random.Random(f"{_SEED} mixed {seed}")
    return [_text(draw, round(160 ** draw.random()), _LONG_WORDS["short"]) for _ in range(count)]


def _texts(name: str, count: int, fewest: int, most: int) -> tuple[str, ...]:
    draw = random.Random(f"{_SEED} {name}")
    share = _LONG_WORDS[name]
    return tuple(_text(draw, draw.randint(fewest, most), share) for _ in range(count))


def _text(draw: random.Random, num_words: int, share_of_long: float) -> str:
    common, long = _words()
    pools = [long if draw.random() < share_of_long else common for _ in range(num_words)]
    return " ".join(draw.choice(pool) for pool in pools)


@cache
def _words() -> tuple[list[str], list[str]]:
    common, long = (Path(__file__).parent / "words.txt").read_text().split("\n\n")
    return common.split(), long.split()
