"""Greedy continuation, with nothing taken over from the model's own ideas of sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from pellucid.models.backend import Int64
from pellucid.models.loading import LoadedTransformer

# Token ids are facts of the model; temperatures, beams and penalties are tastes and are left out.
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id")


class GreedyGenerator:
    """The most likely token, again and again."""

    def __init__(self, loaded: LoadedTransformer, *, pad_id: int) -> None:
        self._model: Any = loaded.model
        self._device = loaded.device
        self._is_encoder_decoder = loaded.kind == "encoder-decoder"
        published = loaded.model.generation_config
        token_ids = {name: getattr(published, name, None) for name in _TOKEN_IDS}
        # generate() fills what is left open from the model's own configuration: replace that one
        self._model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, num_beams=1, pad_token_id=pad_id, **token_ids
        )

    @classmethod
    def of(cls, loaded: LoadedTransformer, *, pad_id: int) -> GreedyGenerator | None:
        """None for models that predict no next token."""
        if loaded.kind == "encoder" or not loaded.model.can_generate():
            return None
        return cls(loaded, pad_id=pad_id)

    def generate(self, input_ids: Int64, *, max_new_tokens: int) -> Int64:
        """[seq_len] -> [num_new]; of encoder-decoder models the decoder's input ids, start token
        first and the end token, which no input needs, left off."""
        given = torch.as_tensor(input_ids, device=self._device)[None]
        with torch.inference_mode():
            generated = self._model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=max_new_tokens,
            )
        new = generated[0] if self._is_encoder_decoder else generated[0, given.shape[1] :]
        found = np.asarray(new.cpu().numpy(), dtype=np.int64)
        if self._is_encoder_decoder and found.size > 1 and self._ends(int(found[-1])):
            return found[:-1]
        return found

    def _ends(self, token_id: int) -> bool:
        eos = self._model.generation_config.eos_token_id
        return token_id in (eos if isinstance(eos, list) else [eos])
