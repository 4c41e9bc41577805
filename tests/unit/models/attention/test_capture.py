"""Captured attention and hidden states equal those of an independent float64 eager pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from attention_capture import Captured, batch_of, capture, encodings, masks, targets
from eager_reference import Reference, reference
from pellucid.errors import (
    AttentionUnavailable,
    HeadOutOfRange,
    LayerOutOfRange,
    NonFiniteValues,
    TargetRequired,
)
from pellucid.models.backend import (
    AttentionName,
    Batch,
    CaptureSpec,
)
from pellucid.models.transformers_backend import TransformersBackend
from tiny_backends import TinyBackend, TinyFolder, load_tiny
from tiny_models import FAMILIES, WINDOW

EXACT = 1e-5
WITH_ATTENTION = [family for family, made in FAMILIES.items() if made.has_attention]
TWO_STACKS = ["t5", "bart"]
# BART counts positions from the first column, padding or not, and takes no others.
LEFT_PADDABLE = [family for family in WITH_ATTENTION if family != "bart"]


def references(backend: TransformersBackend, family: str, folder: TinyFolder) -> list[Reference]:
    two_stacks = backend.info.kind == "encoder-decoder"
    return [
        reference(
            family,
            folder(family),
            encoding.input_ids.tolist(),
            target_ids=target.input_ids.tolist() if two_stacks else None,
        )
        for encoding, target in zip(
            encodings(backend), targets(backend) if two_stacks else encodings(backend), strict=True
        )
    ]


def require_equal(
    captured: Captured, expected: list[Reference], backend: TransformersBackend, batch: Batch
) -> None:
    """Every layer of every stack, on real tokens; nothing on padding."""
    for name, layers in backend.info.attention.layers.items():
        for row, wanted in enumerate(expected):
            queries, keys = masks(name, batch, row)
            assert len(wanted.attentions[name]) == len(layers)
            for layer, weights in zip(layers, wanted.attentions[name], strict=True):
                found = captured[name, layer][row]
                assert np.isfinite(found).all()
                np.testing.assert_allclose(
                    found[:, queries][:, :, keys], weights, rtol=0, atol=EXACT
                )
                assert not found[:, :, ~keys].any()


@pytest.mark.parametrize("family", WITH_ATTENTION)
def test_attention_equals_eager_float64(
    family: str, tiny_backend: TinyBackend, tiny_folder: TinyFolder
) -> None:
    backend = tiny_backend(family)
    batch = batch_of(backend)

    captured, _ = capture(backend, batch, CaptureSpec(attentions=True))

    require_equal(captured, references(backend, family, tiny_folder), backend, batch)
    assert len(captured) == sum(map(len, backend.info.attention.layers.values()))


@pytest.mark.parametrize("family", LEFT_PADDABLE)
def test_left_padding_changes_nothing(
    family: str, tiny_backend: TinyBackend, tiny_folder: TinyFolder
) -> None:
    backend = tiny_backend(family)
    batch = batch_of(backend, side="left")

    captured, _ = capture(backend, batch, CaptureSpec(attentions=True))

    require_equal(captured, references(backend, family, tiny_folder), backend, batch)


@pytest.mark.parametrize("family", WITH_ATTENTION)
def test_single_text_without_padding(
    family: str, tiny_backend: TinyBackend, tiny_folder: TinyFolder
) -> None:
    # without padding the model hands over no mask at all, and causality is told otherwise
    backend = tiny_backend(family)
    batch = batch_of(backend)
    first = Batch(
        input_ids=batch.input_ids[:1],
        attention_mask=batch.attention_mask[:1],
        decoder_input_ids=None if batch.decoder_input_ids is None else batch.decoder_input_ids[:1],
    )

    captured, _ = capture(backend, first, CaptureSpec(attentions=True))

    require_equal(captured, references(backend, family, tiny_folder)[:1], backend, first)


@pytest.mark.parametrize("family", WITH_ATTENTION)
def test_some_layers_and_heads(family: str, tiny_backend: TinyBackend) -> None:
    backend = tiny_backend(family)
    batch = batch_of(backend)
    everything, _ = capture(backend, batch, CaptureSpec(attentions=True))
    first_name = next(iter(backend.info.attention.layers))
    layer = backend.info.attention.layers[first_name][-1]

    some, _ = capture(backend, batch, CaptureSpec(attentions=True, layers=(layer,), heads=(1, 0)))

    wanted = {key for key in everything if key[1] == layer}
    assert set(some) == wanted
    for key in wanted:
        np.testing.assert_allclose(some[key], everything[key][:, [1, 0]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", [*WITH_ATTENTION, "mamba"])
def test_hidden_states_equal_eager_float64(
    family: str, tiny_backend: TinyBackend, tiny_folder: TinyFolder
) -> None:
    backend = tiny_backend(family)
    batch = batch_of(backend)

    _, outputs = capture(backend, batch, CaptureSpec(hidden_states=True))

    for row, expected in enumerate(references(backend, family, tiny_folder)):
        assert set(outputs.hidden_states) == set(expected.hidden_states)
        for name, wanted in expected.hidden_states.items():
            stack: AttentionName = (
                "decoder_attentions" if name == "decoder_hidden_states" else "attentions"
            )
            queries, _ = masks(stack, batch, row)
            found = outputs.hidden_states[name][:, row][:, queries]
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bart"])
def test_capture_leaves_outputs_alone(family: str, tiny_backend: TinyBackend) -> None:
    backend = tiny_backend(family)
    batch = batch_of(backend)
    _, plain = capture(backend, batch, CaptureSpec(logits=True))

    _, observed = capture(backend, batch, CaptureSpec(attentions=True, logits=True))

    assert plain.logits is not None
    np.testing.assert_array_equal(observed.logits, plain.logits)


@pytest.mark.parametrize("family", [f for f in WITH_ATTENTION if f != "gpt_oss"])
def test_rows_sum_to_one(family: str, tiny_backend: TinyBackend) -> None:
    backend = tiny_backend(family)
    batch = batch_of(backend)

    captured, _ = capture(backend, batch, CaptureSpec(attentions=True))

    for (name, _), weights in captured.items():
        queries, _ = masks(name, batch, 1)
        np.testing.assert_allclose(weights[1][:, queries].sum(axis=-1), 1.0, rtol=0, atol=1e-6)


def test_sinks_take_a_share(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("gpt_oss")

    captured, _ = capture(backend, batch_of(backend), CaptureSpec(attentions=True))

    for weights in captured.values():
        sums = weights[0].sum(axis=-1)
        assert sums.max() < 1.0
        assert sums.min() < 0.9


@pytest.mark.parametrize(
    ("family", "windowed"),
    [
        ("mistral", (0, 1, 2)),
        ("gemma2", (0, 2)),
        ("gemma3", (0, 1, 3)),
        ("gpt_oss", (0, 2)),
    ],
)
def test_windows_hide_what_is_far(
    family: str, windowed: tuple[int, ...], tiny_backend: TinyBackend
) -> None:
    backend = tiny_backend(family)
    batch = batch_of(backend)
    assert batch.input_ids.shape[1] > 3 * WINDOW

    captured, _ = capture(backend, batch, CaptureSpec(attentions=True))

    far = np.tri(batch.input_ids.shape[1], k=-WINDOW, dtype=bool)
    for (_, layer), weights in captured.items():
        assert (not weights[0][:, far].any()) == (layer in windowed)


def test_hybrid_keeps_true_layer_numbers(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("qwen3_next")

    captured, _ = capture(backend, batch_of(backend), CaptureSpec(attentions=True))

    assert sorted(layer for _, layer in captured) == [2, 4]
    assert backend.info.attention.layers == {"attentions": (2, 4)}
    assert backend.info.num_layers == 5


def test_hybrid_refuses_layers_without_attention(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("qwen3_next")

    with pytest.raises(AttentionUnavailable, match=r"layer 1: .*linear_attention.* 2, 4"):
        capture(backend, batch_of(backend), CaptureSpec(attentions=True, layers=(1, 2)))


def test_hybrid_gives_hidden_states_of_any_layer(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("qwen3_next")

    _, outputs = capture(backend, batch_of(backend), CaptureSpec(hidden_states=True, layers=(1,)))

    assert outputs.hidden_states["hidden_states"].shape[0] == 1


def test_model_without_attention_is_refused_with_the_reason(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("mamba")

    with pytest.raises(AttentionUnavailable, match="MambaForCausalLM has no softmax attention"):
        capture(backend, batch_of(backend), CaptureSpec(attentions=True))


def test_mpnet_is_captured_from_its_own_eager_path(tiny_backend: TinyBackend) -> None:
    info = tiny_backend("mpnet").info

    assert info.attention.method == "eager"
    assert info.attention_implementation == "eager"


@pytest.mark.parametrize("family", [f for f in WITH_ATTENTION if f != "mpnet"])
def test_self_test_has_proved_the_numbers(family: str, tiny_backend: TinyBackend) -> None:
    support = tiny_backend(family).info.attention

    assert support.method == "registered"
    assert support.max_error is not None
    assert support.max_error < EXACT


@pytest.mark.parametrize("layer", [-1, 3])
def test_layers_out_of_range(layer: int, tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("bert")

    with pytest.raises(LayerOutOfRange, match=f"Layer {layer} .* 0 to 2"):
        capture(backend, batch_of(backend), CaptureSpec(attentions=True, layers=(layer,)))


@pytest.mark.parametrize("head", [-1, 4])
def test_heads_out_of_range(head: int, tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("bert")

    with pytest.raises(HeadOutOfRange, match=f"Head {head} .* 0 to 3"):
        capture(backend, batch_of(backend), CaptureSpec(attentions=True, heads=(head,)))


@pytest.mark.parametrize("family", TWO_STACKS)
def test_layers_mean_both_stacks(family: str, tiny_backend: TinyBackend) -> None:
    # three encoder layers, two decoder layers
    backend = tiny_backend(family)
    spec = CaptureSpec(attentions=True, hidden_states=True, layers=(0, 2))

    captured, outputs = capture(backend, batch_of(backend), spec)

    assert set(captured) == {
        ("encoder_attentions", 0),
        ("encoder_attentions", 2),
        ("decoder_attentions", 0),
        ("cross_attentions", 0),
    }
    assert outputs.hidden_states["encoder_hidden_states"].shape[0] == 2
    assert outputs.hidden_states["decoder_hidden_states"].shape[0] == 1


@pytest.mark.parametrize("family", TWO_STACKS)
def test_encoder_decoder_needs_a_target(family: str, tiny_backend: TinyBackend) -> None:
    backend = tiny_backend(family)
    batch = replace(batch_of(backend), decoder_input_ids=None, decoder_attention_mask=None)

    with pytest.raises(TargetRequired):
        capture(backend, batch, CaptureSpec(attentions=True))


def test_some_hidden_states_in_the_order_asked_for(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("bert")
    batch = batch_of(backend)
    _, whole = capture(backend, batch, CaptureSpec(hidden_states=True))

    _, some = capture(backend, batch, CaptureSpec(hidden_states=True, hidden_layers=(3, 0)))

    everything = whole.hidden_states["hidden_states"]
    np.testing.assert_array_equal(some.hidden_states["hidden_states"], everything[[3, 0]])


def test_values_that_are_not_numbers_are_refused(tiny_folder: TinyFolder) -> None:

    backend = load_tiny(tiny_folder("bert"))
    model = backend._parts.loaded.model
    with torch.no_grad():
        model.get_parameter("encoder.layer.1.attention.self.query.weight")[0, 0] = float("inf")

    with pytest.raises(NonFiniteValues, match="attentions of layer 1"):
        capture(backend, batch_of(backend), CaptureSpec(attentions=True))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_logits_that_nobody_asked_for_are_not_computed(
    family: str, tiny_backend: TinyBackend
) -> None:
    backend = tiny_backend(family)
    batch = batch_of(backend)
    rows: list[int] = []
    head = backend._parts.loaded.model.get_output_embeddings()
    watch = head.register_forward_hook(lambda _, given, __: rows.append(given[0].shape[1]))
    try:
        _, spared = capture(backend, batch, CaptureSpec(attentions=True, hidden_states=True))
        _, asked = capture(backend, batch, CaptureSpec(hidden_states=True, logits=True))
    finally:
        watch.remove()
    assert rows == [1, batch.input_ids.shape[1]]
    assert spared.logits is None
    np.testing.assert_array_equal(
        spared.hidden_states["hidden_states"], asked.hidden_states["hidden_states"]
    )
