"""Norms of what each token hands to each head, after Kobayashi et al. 2020."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attention_capture import batch_of, capture
from eager_reference import reference_model
from pellucid.errors import NormWeightedUnavailable
from pellucid.models.attention.output_projection import find_projections
from pellucid.models.attention.selftest import find_attention
from pellucid.models.backend import Batch, CaptureSpec, ModelOutputs
from pellucid.models.loading import load_transformer
from pellucid.models.model_inputs import ModelInputs
from pellucid.models.probe import Probe
from pellucid.models.transformers_backend import TransformersBackend
from tiny_backends import TinyBackend, TinyFolder, source_of

HEADS, DIM = 4, 8


def first_text(backend: TransformersBackend) -> Batch:
    batch = batch_of(backend)
    return Batch(input_ids=batch.input_ids[:1], attention_mask=batch.attention_mask[:1])


def norms_of(backend: TransformersBackend, **options: Any) -> ModelOutputs:
    return capture(backend, first_text(backend), CaptureSpec(value_norms=True, **options))[1]


def layer_input(model: Any, batch: Batch, path: str) -> torch.Tensor:
    """What a module of the reference is fed with, [seq_len, hidden_size] float64."""
    seen: list[torch.Tensor] = []
    module = model.get_submodule(path)
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    with torch.no_grad():
        model(input_ids=torch.as_tensor(batch.input_ids))
    hook.remove()
    return seen[0]


def by_hand(
    x: torch.Tensor, value: torch.Tensor, value_bias: torch.Tensor, output: torch.Tensor
) -> NDArray[np.float64]:
    """||(x W_V + b_V) W_O|| head by head; matrices as [in, out]."""
    norms = []
    for head in range(HEADS):
        part = slice(head * DIM, (head + 1) * DIM)
        transformed = (x @ value[:, part] + value_bias[part]) @ output[part]
        norms.append(transformed.norm(dim=-1).numpy())
    return np.stack(norms)


@pytest.mark.parametrize("layer", [0, 2])
def test_bert_by_hand(layer: int, tiny_backend: TinyBackend, tiny_folder: TinyFolder) -> None:
    backend = tiny_backend("bert")
    model = reference_model("bert", tiny_folder("bert"))
    attention = model.encoder.layer[layer].attention
    x = layer_input(model, first_text(backend), f"encoder.layer.{layer}.attention.self.value")

    outputs = norms_of(backend)

    with torch.no_grad():
        expected = by_hand(
            x,
            attention.self.value.weight.T,
            attention.self.value.bias,
            attention.output.dense.weight.T,
        )
    found = outputs.value_norms["attentions", layer]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 2])
def test_gpt2_by_hand(layer: int, tiny_backend: TinyBackend, tiny_folder: TinyFolder) -> None:
    backend = tiny_backend("gpt2")
    model = reference_model("gpt2", tiny_folder("gpt2"))
    attention = model.transformer.h[layer].attn
    x = layer_input(model, first_text(backend), f"transformer.h.{layer}.attn.c_attn")

    outputs = norms_of(backend)

    width = HEADS * DIM
    with torch.no_grad():
        expected = by_hand(
            x,
            attention.c_attn.weight[:, 2 * width :],
            attention.c_attn.bias[2 * width :],
            attention.c_proj.weight,
        )
    np.testing.assert_allclose(
        outputs.value_norms["attentions", layer][0], expected, rtol=1e-4, atol=1e-5
    )


def test_heads_that_share_values(tiny_backend: TinyBackend, tiny_folder: TinyFolder) -> None:
    # four query heads, two value heads: head 3 reads value head 1
    backend = tiny_backend("llama")
    model = reference_model("llama", tiny_folder("llama"))
    attention = model.model.layers[1].self_attn
    x = layer_input(model, first_text(backend), "model.layers.1.self_attn.v_proj")

    outputs = norms_of(backend, heads=(3,))

    with torch.no_grad():
        value = x @ attention.v_proj.weight.T[:, DIM:]
        expected = (value @ attention.o_proj.weight.T[3 * DIM :]).norm(dim=-1).numpy()
    found = outputs.value_norms["attentions", 1]
    assert found.shape[:2] == (1, 1)
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_every_stack(family: str, tiny_backend: TinyBackend) -> None:
    backend = tiny_backend(family)
    batch = batch_of(backend)
    assert batch.decoder_input_ids is not None

    _, outputs = capture(backend, batch, CaptureSpec(value_norms=True))

    lengths = {name: norms.shape[2] for (name, _), norms in outputs.value_norms.items()}
    assert lengths == {
        "encoder_attentions": batch.input_ids.shape[1],
        "decoder_attentions": batch.decoder_input_ids.shape[1],
        "cross_attentions": batch.input_ids.shape[1],
    }


def test_only_layers_asked_for(tiny_backend: TinyBackend) -> None:
    outputs = norms_of(tiny_backend("bert"), layers=(1,))

    assert set(outputs.value_norms) == {("attentions", 1)}


def test_gated_output_is_refused(tiny_backend: TinyBackend) -> None:
    with pytest.raises(NormWeightedUnavailable, match="layer 2: its output is changed"):
        norms_of(tiny_backend("qwen3_next"))


class Adapted(torch.nn.Linear):
    """A projection that does more than its weight says, as adapters do."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return super().forward(given) * 1.01


def test_projection_that_is_not_its_weight_is_found_out(tiny_folder: TinyFolder) -> None:
    loaded = load_transformer(source_of(tiny_folder("bert")), device="cpu", dtype="float32")
    model: Any = loaded.model
    model.encoder.layer[1].attention.output.dense.__class__ = Adapted
    probe = Probe(loaded, ModelInputs(model, device=loaded.device), 0)

    found = find_projections(probe, find_attention(probe).sites)

    assert set(found.projections) == {("attentions", 0), ("attentions", 2)}
    assert "the heads' parts miss its output by" in found.reasons["attentions", 1]


def test_attention_of_its_own_is_refused(tiny_backend: TinyBackend) -> None:
    with pytest.raises(NormWeightedUnavailable, match="value vectors"):
        norms_of(tiny_backend("mpnet"))
