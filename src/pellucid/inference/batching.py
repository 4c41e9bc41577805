"""Which inputs run together."""

from __future__ import annotations

from collections.abc import Sequence


def token_budget_batches(lengths: Sequence[int], *, max_batch_tokens: int) -> list[list[int]]:
    """Indices of ``lengths`` in batches of similar length, the longest first.

    A batch takes longest * count tokens, padding counted, and stays within ``max_batch_tokens``;
    an input longer than that runs alone. Every index is in exactly one batch.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        # The first of a batch is its longest: all others are padded to it.
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
