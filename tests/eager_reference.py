"""An independent answer to compare with: the same weights in float64, by the model's own eager
attention, one text at a time without padding. Nothing of Pellucid takes part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from tiny_models import FAMILIES

NAMES = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
STATES = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")


@dataclass(frozen=True)
class Reference:
    """Of one text: attentions[name] lists layers [num_heads, query_len, key_len]."""

    attentions: Mapping[str, list[NDArray[np.float64]]] = field(default_factory=dict)
    hidden_states: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    logits: NDArray[np.float64] | None = None


@cache
def reference_model(family: str, folder: Path) -> Any:
    """The model in float64 with eager attention."""
    model_class = getattr(transformers, FAMILIES[family].model_class)
    transformers.utils.logging.disable_progress_bar()
    model = model_class.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64)
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # the others know no float64
    return model.eval()


def reference(
    family: str,
    folder: Path,
    input_ids: Sequence[int],
    *,
    target_ids: Sequence[int] | None = None,
    token_type_ids: Sequence[int] | None = None,
) -> Reference:
    """One eager pass over one text."""
    inputs: dict[str, Any] = {"input_ids": torch.tensor([list(input_ids)])}
    if target_ids is not None:
        inputs["decoder_input_ids"] = torch.tensor([list(target_ids)])
    if token_type_ids is not None:
        inputs["token_type_ids"] = torch.tensor([list(token_type_ids)])
    if FAMILIES[family].has_attention:
        inputs["output_attentions"] = True
    with torch.no_grad():
        outputs = reference_model(family, folder)(**inputs, output_hidden_states=True)
    return Reference(
        attentions={
            name: [layer[0].double().numpy() for layer in outputs[name]]
            for name in NAMES
            if outputs.get(name)
        },
        hidden_states={
            name: torch.stack([state[0] for state in outputs[name]]).double().numpy()
            for name in STATES
            if outputs.get(name)
        },
        logits=None if outputs.get("logits") is None else outputs["logits"][0].double().numpy(),
    )
