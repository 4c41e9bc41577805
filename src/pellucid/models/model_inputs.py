"""A batch as the arguments of a model's forward pass."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.models.backend import Batch, Int64


class ModelInputs:
    """Knows which arguments one model takes."""

    def __init__(self, model: nn.Module, *, device: torch.device) -> None:
        self._device = device
        self._parameters = frozenset(inspect.signature(model.forward).parameters)
        self._positions_from_ids = _counts_positions_itself(model)

    def of(self, batch: Batch) -> dict[str, Any]:
        """Tensors on the model's device, by argument name. Caches are off: one pass is one pass."""
        inputs = self.of_encoder(batch)
        if batch.decoder_input_ids is not None:
            target_ids = self._tensor(batch.decoder_input_ids)
            target_mask = batch.decoder_attention_mask
            inputs["decoder_input_ids"] = target_ids
            # left to itself T5Gemma would hide a start token that is also the padding
            inputs["decoder_attention_mask"] = (
                torch.ones_like(target_ids) if target_mask is None else self._tensor(target_mask)
            )
        return inputs

    def of_encoder(self, batch: Batch) -> dict[str, Any]:
        """The same without a target."""
        attention_mask = self._tensor(batch.attention_mask)
        inputs: dict[str, Any] = {
            "input_ids": self._tensor(batch.input_ids),
            "attention_mask": attention_mask,
        }
        if batch.token_type_ids is not None and "token_type_ids" in self._parameters:
            inputs["token_type_ids"] = self._tensor(batch.token_type_ids)
        if self._needs_positions(attention_mask):
            inputs["position_ids"] = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
        if "use_cache" in self._parameters:
            inputs["use_cache"] = False
        return inputs

    @property
    def without_logits(self) -> dict[str, int]:
        """Arguments that spare the logits nobody asked for: all but the last token's, where the
        model can. They are [seq_len, vocab_size], often more than all hidden states together."""
        return {"logits_to_keep": 1} if "logits_to_keep" in self._parameters else {}

    def _needs_positions(self, attention_mask: Tensor) -> bool:
        """Left padding shifts every token unless the positions are given."""
        if self._positions_from_ids or "position_ids" not in self._parameters:
            return False
        return bool((attention_mask[:, 0] == 0).any())

    def _tensor(self, values: Int64) -> Tensor:
        return torch.as_tensor(values, device=self._device)


def _counts_positions_itself(model: nn.Module) -> bool:
    """RoBERTa's kin count the ids that are not padding, from padding_idx + 1 on."""
    name = "create_position_ids_from_input_ids"
    return hasattr(sys.modules[type(model).__module__], name) or any(
        hasattr(module, name) for module in model.modules()
    )
