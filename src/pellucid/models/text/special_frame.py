"""The special tokens that a tokenizer sets around every text, found out by trying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Encoding as FastEncoding

from pellucid.models.backend import Int64


@dataclass(frozen=True, slots=True)
class SpecialFrame:
    """Special tokens before and behind a text, with the segments of all three parts."""

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    prefix_types: tuple[int, ...] = ()
    text_type: int = 0
    suffix_types: tuple[int, ...] = ()

    @classmethod
    def of(cls, post_processor: Any, samples: Sequence[FastEncoding]) -> SpecialFrame | None:
        """What ``post_processor`` sets around ``samples``, texts of one token and more without
        special tokens; None where that is not the same tokens around each."""
        if post_processor is None:
            return cls()
        frames = {cls._around(post_processor, sample) for sample in samples}
        return frames.pop() if len(frames) == 1 else None

    @classmethod
    def _around(cls, post_processor: Any, sample: FastEncoding) -> SpecialFrame | None:
        done = post_processor.process(sample, None, True)
        places = [place for place, index in enumerate(done.sequence_ids) if index == 0]
        if not places or done.ids[places[0] : places[-1] + 1] != sample.ids:
            return None
        start, end = places[0], places[-1] + 1
        return cls(
            prefix=tuple(done.ids[:start]),
            suffix=tuple(done.ids[end:]),
            prefix_types=tuple(done.type_ids[:start]),
            text_type=done.type_ids[start],
            suffix_types=tuple(done.type_ids[end:]),
        )

    def __len__(self) -> int:
        return len(self.prefix) + len(self.suffix)

    @property
    def has_segments(self) -> bool:
        """Whether any token is of a segment other than the first."""
        return any((*self.prefix_types, self.text_type, *self.suffix_types))

    def around(self, token_ids: Sequence[int]) -> Int64:
        """Ids of a text [n] -> [n + len(self)]."""
        return np.array([*self.prefix, *token_ids, *self.suffix], dtype=np.int64)

    def token_type_ids(self, num_own: int) -> Int64:
        """Segments of a text of ``num_own`` tokens: [num_own + len(self)]."""
        types = [*self.prefix_types, *[self.text_type] * num_own, *self.suffix_types]
        return np.array(types, dtype=np.int64)
