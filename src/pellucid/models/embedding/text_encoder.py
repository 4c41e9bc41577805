"""The part of a model that turns text into hidden states, and the last of these."""

from __future__ import annotations

import threading
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pellucid.models.backend import Int64
from pellucid.models.loading import LoadedTransformer


def text_encoder(loaded: LoadedTransformer) -> nn.Module:
    """The part that turns text into hidden states: without the head of a causal model, without
    the decoder of an encoder-decoder model."""
    model: Any = loaded.model
    part = model.get_encoder() if loaded.kind == "encoder-decoder" else model.base_model
    if part is model and model.get_output_embeddings() is not None:
        # Llama 4 names its inner part otherwise than where it is
        part = next(child for child in model.children() if isinstance(child, PreTrainedModel))
    return cast(nn.Module, part)


def embedding_encoder(loaded: LoadedTransformer, *, trial_ids: Int64) -> nn.Module:
    """The part whose last hidden state embeddings are pooled from, tried on ``trial_ids``
    [1, seq_len].

    BART's kin, left without a target, read the text once more in their decoder, shifted by one
    token; sentence-transformers pools what that gives, and so do we. All others refuse to run
    without a target: there it is the text encoder.
    """
    encoder = text_encoder(loaded)
    if loaded.kind != "encoder-decoder":
        return encoder
    whole = loaded.model.base_model
    input_ids = torch.as_tensor(trial_ids, device=loaded.device)
    try:
        with torch.inference_mode():
            whole(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False)
    except (ValueError, TypeError, AttributeError):  # how families say that they want a target
        return encoder
    return whole


def _inner_modules(loaded: LoadedTransformer) -> tuple[nn.Module, ...]:
    """The text encoder, and for causal models the decoder inside it: some families (OPT) run the
    latter without the former."""
    inner = text_encoder(loaded)
    if loaded.kind != "decoder":
        return (inner,)
    model: Any = loaded.model
    decoder = model.get_decoder()
    return (inner,) if decoder in (None, inner, model) else (decoder, inner)


class LastHiddenState:
    """Notes, within a ``with`` block, what the text encoder gave: after the final norm, which
    ``hidden_states[-1]`` need not be, and which heads do not hand on."""

    def __init__(self, loaded: LoadedTransformer) -> None:
        self._modules = _inner_modules(loaded)
        self._thread = threading.get_ident()
        self._state: Tensor | None = None

    def __enter__(self) -> LastHiddenState:
        self._hooks = [module.register_forward_hook(self._note) for module in self._modules]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def state(self) -> Tensor:
        if self._state is None:
            names = ", ".join(type(module).__name__ for module in self._modules)
            raise RuntimeError(f"{names} gave no last hidden state")
        return self._state

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() != self._thread:
            return  # another call of the same model at the same time
        # the outer module ends last and has the last word
        self._state = output[0] if isinstance(output, tuple) else output["last_hidden_state"]
