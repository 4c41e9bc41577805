"""A small forward pass on which a freshly loaded model shows what it is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.models.attention.function import AttentionObserver, observing
from pellucid.models.backend import AttentionName, Batch, HiddenStatesName
from pellucid.models.loading import LoadedTransformer
from pellucid.models.model_inputs import ModelInputs

_LENGTHS = (13, 9)  # unequal, so that padding is tried
_TARGET_LENGTHS = (6, 5)  # unlike the input's, so that cross attention is known by its keys

# Names of a model's attention, with the hidden states whose number tells how many layers there are.
STACKS: dict[AttentionName, HiddenStatesName] = {
    "attentions": "hidden_states",
    "encoder_attentions": "encoder_hidden_states",
    "decoder_attentions": "decoder_hidden_states",
    "cross_attentions": "decoder_hidden_states",
}


@dataclass(frozen=True)
class Probe:
    """One model with the two batches that it is tried on."""

    loaded: LoadedTransformer
    inputs: ModelInputs
    pad_id: int
    padded: Batch = field(init=False)  # two texts of different length
    single: Batch = field(init=False)  # one text, no padding: masks may be left out

    def __post_init__(self) -> None:
        with_target = self.loaded.kind == "encoder-decoder"
        object.__setattr__(self, "padded", self._batch(_LENGTHS, with_target=with_target))
        object.__setattr__(self, "single", self._batch(_LENGTHS[:1], with_target=with_target))

    def run(
        self, batch: Batch, *, observer: AttentionObserver | None = None, **options: Any
    ) -> Any:
        """The model's own outputs."""
        armed: AbstractContextManager[None] = nullcontext() if not observer else observing(observer)
        with torch.inference_mode(), armed:
            return self.loaded.model(**self.inputs.of(batch), **options)

    @cached_property
    def num_layers(self) -> dict[AttentionName, int]:
        """Layers of each stack that the model has, counted by the hidden states that it gives."""
        outputs = self.run(self.single, output_hidden_states=True)
        if self.loaded.kind == "encoder-decoder":
            names: Sequence[AttentionName] = (
                "encoder_attentions",
                "decoder_attentions",
                "cross_attentions",
            )
        else:
            names = ("attentions",)
        return {name: len(outputs[STACKS[name]]) - 1 for name in names}

    @property
    def encoder_len(self) -> int:
        return int(self.padded.input_ids.shape[1])

    def _batch(self, lengths: Sequence[int], *, with_target: bool) -> Batch:
        input_ids, attention_mask = self._rows(lengths)
        if not with_target:
            return Batch(input_ids=input_ids, attention_mask=attention_mask)
        target_ids, target_mask = self._rows(_TARGET_LENGTHS[: len(lengths)])
        start = getattr(self.loaded.config, "decoder_start_token_id", None)
        if start is not None:
            target_ids[:, 0] = start
        return Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=target_ids,
            decoder_attention_mask=target_mask,
        )

    def _rows(self, lengths: Sequence[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        ordinary = self._ordinary_ids(sum(lengths))
        input_ids = np.full((len(lengths), max(lengths)), self.pad_id, dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, length in enumerate(lengths):
            input_ids[row, :length] = [next(ordinary) for _ in range(length)]
            attention_mask[row, :length] = 1
        return input_ids, attention_mask

    def _ordinary_ids(self, count: int) -> Any:
        """Ids spread over the vocabulary, none of them special."""
        config = self.loaded.config.get_text_config()
        special: set[int | None] = {self.pad_id}
        for role in ("pad", "bos", "eos", "cls", "sep", "mask", "decoder_start"):
            value = getattr(config, f"{role}_token_id", None)
            special.update(value if isinstance(value, list) else [value])
        step = max(1, config.vocab_size // (3 * count))
        ids = [i for i in range(step, config.vocab_size, step) if i not in special]
        if not ids:
            ids = [i for i in range(config.vocab_size) if i != self.pad_id] or [0]
        # 7 is prime to most lengths: neighbours are far apart and repeat late
        return iter([ids[(7 * index) % len(ids)] for index in range(count)])


def last_hidden_state(outputs: Any) -> Tensor:
    """[batch, seq_len, hidden_size] of the last stack, after its final norm."""
    state = outputs.get("last_hidden_state")
    if state is None:
        state = (outputs.get("hidden_states") or outputs["decoder_hidden_states"])[-1]
    assert isinstance(state, Tensor)
    return state
