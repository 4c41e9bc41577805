"""The logit lens: the final norm once, the model's own caps, its own logits at the last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from attention_capture import batch_of, capture
from eager_reference import reference_model
from pellucid.errors import LogitLensUnavailable
from pellucid.models.backend import Batch, CaptureSpec, LogitLens
from pellucid.models.loading import load_transformer
from pellucid.models.logit_lens_capture import LogitLensReader, find_logit_lens
from pellucid.models.model_inputs import ModelInputs
from pellucid.models.probe import Probe
from pellucid.models.transformers_backend import TransformersBackend
from tiny_backends import TinyBackend, TinyFolder, source_of

NORMS: dict[str, Callable[[Any], Any]] = {
    "gpt2": lambda model: model.transformer.ln_f,
    "opt": lambda model: model.model.decoder.final_layer_norm,
    "llama": lambda model: model.model.norm,
    "qwen3": lambda model: model.model.norm,
    "granite": lambda model: model.model.norm,
    "gemma2": lambda model: model.model.norm,
    "gemma3": lambda model: model.model.norm,
    "gpt_oss": lambda model: model.model.norm,
    "qwen3_next": lambda model: model.model.norm,
    "mamba": lambda model: model.backbone.norm_f,
}


def first_text(backend: TransformersBackend) -> Batch:
    batch = batch_of(backend)
    return Batch(input_ids=batch.input_ids[:1], attention_mask=batch.attention_mask[:1])


def lens_of(backend: TransformersBackend, *, top_k: int = 5) -> LogitLens:
    _, outputs = capture(
        backend, first_text(backend), CaptureSpec(logit_lens_top_k=top_k, logits=True)
    )
    assert outputs.logit_lens is not None
    return outputs.logit_lens


def expected_probabilities(family: str, model: Any, batch: Batch) -> torch.Tensor:
    """[num_layers + 1, seq_len, vocab_size] in float64, written down per family."""
    with torch.no_grad():
        outputs = model(input_ids=torch.as_tensor(batch.input_ids), output_hidden_states=True)
        states = [state[0] for state in outputs.hidden_states]
        normed = [*(NORMS[family](model)(state) for state in states[:-1]), states[-1]]
        logits = model.lm_head(torch.stack(normed))
        if family == "gemma2":
            logits = 3.0 * torch.tanh(logits / 3.0)
        if family == "granite":
            logits = logits / 8.0
        own = outputs.logits[0].double()
        torch.testing.assert_close(logits[-1].double(), own, rtol=1e-5, atol=1e-5)
        return torch.softmax(logits, dim=-1)


@pytest.mark.parametrize("family", list(NORMS))
def test_equals_the_formula_in_float64(
    family: str, tiny_backend: TinyBackend, tiny_folder: TinyFolder
) -> None:
    backend = tiny_backend(family)
    expected = expected_probabilities(
        family, reference_model(family, tiny_folder(family)), first_text(backend)
    )

    lens = lens_of(backend)

    top = expected.topk(5, dim=-1)
    np.testing.assert_allclose(lens.probabilities[:, 0], top.values, rtol=2e-3, atol=1e-5)
    agree = lens.token_ids[:, 0] == top.indices.numpy()
    assert agree.mean() > 0.999  # neighbours nearly as likely may change places
    np.testing.assert_allclose(
        lens.entropy[:, 0], torch.special.entr(expected).sum(-1), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("family", list(NORMS))
def test_last_layer_is_what_the_model_says(family: str, tiny_backend: TinyBackend) -> None:
    backend = tiny_backend(family)
    _, outputs = capture(backend, first_text(backend), CaptureSpec(logit_lens_top_k=1, logits=True))

    assert outputs.logit_lens is not None
    assert outputs.logits is not None
    np.testing.assert_array_equal(
        outputs.logit_lens.token_ids[-1, 0, :, 0], outputs.logits[0].argmax(axis=-1)
    )


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_other_models_are_refused(family: str, tiny_backend: TinyBackend) -> None:
    backend = tiny_backend(family)

    with pytest.raises(LogitLensUnavailable, match="not a causal language model"):
        capture(backend, batch_of(backend), CaptureSpec(logit_lens_top_k=3))


def test_more_than_the_vocabulary_is_all_of_it(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("gpt2")

    lens = lens_of(backend, top_k=100_000)

    assert lens.token_ids.shape[-1] == backend.info.vocab_size
    np.testing.assert_allclose(lens.probabilities.sum(axis=-1), 1.0, rtol=0, atol=1e-5)


def test_a_factor_on_the_logits_is_found(tiny_backend: TinyBackend) -> None:
    # Granite divides its logits by eight here
    reader = tiny_backend("granite")._parts.inspector._capabilities.logit_lens

    assert isinstance(reader, LogitLensReader)
    assert reader.scale == pytest.approx(1 / 8, rel=1e-5)


def test_logits_of_another_origin_are_refused(tiny_folder: TinyFolder) -> None:
    loaded = load_transformer(source_of(tiny_folder("llama")), device="cpu", dtype="float32")

    def square(module: Any, args: Any, output: Any) -> None:
        output.logits = output.logits**2

    loaded.model.register_forward_hook(square)
    probe = Probe(loaded, ModelInputs(loaded.model, device=loaded.device), 2)

    found = find_logit_lens(probe)

    assert isinstance(found, str)
    assert "miss its own by" in found
