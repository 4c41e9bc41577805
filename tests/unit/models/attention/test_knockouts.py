"""Cut edges: equal to a hand-masked eager pass, for one call only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest
import torch

from attention_capture import Captured, Collector, batch_of, capture
from eager_reference import reference_model
from pellucid.errors import (
    CapabilityMissing,
    HeadOutOfRange,
    KnockoutInvalid,
    LayerOutOfRange,
    PositionOutOfRange,
)
from pellucid.models.backend import AttentionName, Batch, CaptureSpec, Knockout
from tiny_backends import TinyBackend, TinyFolder
from tiny_models import SHORT_TEXT

FAMILIES = [
    "gpt2",
    "bert",
    "distilbert",
    "albert",
    "llama",
    "granite",
    "gemma2",
    "gpt_oss",
    "qwen3_next",
]
Edges = Callable[[int], tuple[list[int], list[int], list[int]] | None]


def first_text(batch: Batch) -> Batch:
    return Batch(input_ids=batch.input_ids[:1], attention_mask=batch.attention_mask[:1])


@contextmanager
def eager_with_edges_cut(model: Any, edges: Edges) -> Iterator[None]:
    """The family's own eager function with -inf added at ``edges(call number)`` = (heads, queries,
    keys), by the mask that it is given. One number per attention, in the order of the pass."""
    module = sys.modules[type(model).__module__]
    original = module.eager_attention_forward
    calls = iter(range(1000))

    def cut(
        layer: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any
    ) -> Any:
        chosen = edges(next(calls))
        if chosen is not None:
            heads, queries, keys = (torch.tensor(part) for part in chosen)
            added = torch.zeros(1, query.shape[1], query.shape[2], key.shape[2]).to(query.dtype)
            added[:, heads[:, None, None], queries[:, None], keys] = float("-inf")
            attention_mask = added if attention_mask is None else attention_mask + added
        return original(layer, query, key, value, attention_mask, **options)

    module.eager_attention_forward = cut
    try:
        yield
    finally:
        module.eager_attention_forward = original


def expected_of(model: Any, batch: Batch, edges: Edges) -> Any:
    with torch.no_grad(), eager_with_edges_cut(model, edges):
        return model(
            input_ids=torch.as_tensor(batch.input_ids),
            output_attentions=True,
            output_hidden_states=True,
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_hand_masked_eager_pass(
    family: str, tiny_backend: TinyBackend, tiny_folder: TinyFolder
) -> None:
    backend = tiny_backend(family)
    batch = first_text(batch_of(backend))
    layers = backend.info.attention.layers["attentions"]
    cut_layer, heads, queries, keys = layers[1], [0, 3], [4, 5, 9], [1, 3]
    knockout = Knockout(
        layers=(cut_layer,),
        heads=tuple(heads),
        query_positions=tuple(queries),
        key_positions=tuple(keys),
    )

    captured, outputs = capture(
        backend,
        batch,
        CaptureSpec(
            attentions=True,
            hidden_states=True,
            logits=backend.info.kind != "encoder",
            knockouts=(knockout,),
        ),
    )

    expected = expected_of(
        reference_model(family, tiny_folder(family)),
        batch,
        lambda call: (heads, queries, keys) if call == 1 else None,
    )
    for layer, weights in zip(layers, expected.attentions, strict=True):
        np.testing.assert_allclose(
            captured["attentions", layer], weights.numpy(), rtol=0, atol=1e-5
        )
    assert not captured["attentions", cut_layer][0][np.ix_(heads, queries, keys)].any()
    np.testing.assert_allclose(
        outputs.hidden_states["hidden_states"][-1],
        expected.hidden_states[-1].numpy(),
        rtol=1e-4,
        atol=2e-4,
    )
    if outputs.logits is not None:
        np.testing.assert_allclose(outputs.logits, expected.logits.numpy(), rtol=1e-4, atol=5e-4)


@pytest.mark.parametrize("family", ["gpt2", "bert", "gpt_oss"])
def test_changes_the_answer(family: str, tiny_backend: TinyBackend) -> None:
    backend = tiny_backend(family)
    batch = first_text(batch_of(backend))
    knockout = Knockout(layers=(0,), query_positions=(9,), key_positions=(1, 2, 3))
    logits = backend.info.kind != "encoder"
    spec = CaptureSpec(logits=logits, pooled=True, attentions=True)
    whole, uncut = capture(backend, batch, spec)

    parts, cut = capture(
        backend,
        batch,
        CaptureSpec(logits=logits, pooled=True, attentions=True, knockouts=(knockout,)),
    )

    assert not np.allclose(whole["attentions", 1], parts["attentions", 1])
    assert uncut.pooled is not None
    assert cut.pooled is not None
    assert not np.allclose(cut.pooled, uncut.pooled, atol=1e-4)
    if uncut.logits is not None:
        assert cut.logits is not None
        assert not np.allclose(cut.logits, uncut.logits, atol=1e-4)


def test_applies_without_any_capture(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("gpt2")
    batch = first_text(batch_of(backend))
    knockout = Knockout(layers=(0,), query_positions=(9,), key_positions=(1, 2, 3))
    _, with_capture = capture(
        backend, batch, CaptureSpec(logits=True, attentions=True, knockouts=(knockout,))
    )

    silent = backend.inspect(batch, CaptureSpec(logits=True, knockouts=(knockout,)))

    assert with_capture.logits is not None
    np.testing.assert_array_equal(silent.logits, with_capture.logits)


def test_several_knockouts_add_up(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("bert")
    batch = first_text(batch_of(backend))
    cuts = (
        Knockout(layers=(1,), heads=(0,), key_positions=(2,)),
        Knockout(layers=(1,), heads=(2,), query_positions=(0,), key_positions=(5,)),
    )

    captured, _ = capture(backend, batch, CaptureSpec(attentions=True, knockouts=cuts))

    layer = captured["attentions", 1][0]
    assert not layer[0, :, 2].any()
    assert layer[2, 0, 5] == 0
    assert layer[2, 1, 5] > 0
    assert layer[1, :, 2].all()


def test_heads_shown_may_differ_from_heads_cut(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("llama")
    batch = first_text(batch_of(backend))
    knockout = Knockout(layers=(1,), heads=(2,), query_positions=(7,), key_positions=(3,))

    captured, _ = capture(
        backend, batch, CaptureSpec(attentions=True, heads=(3, 2), knockouts=(knockout,))
    )

    assert captured["attentions", 1][0, 1, 7, 3] == 0
    assert captured["attentions", 1][0, 0, 7, 3] > 0


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize(
    ("attention", "last_key"),
    [("encoder_attentions", 30), ("decoder_attentions", 1), ("cross_attentions", 30)],
)
def test_each_stack_can_be_cut(
    family: str, attention: AttentionName, last_key: int, tiny_backend: TinyBackend
) -> None:
    backend = tiny_backend(family)
    batch = batch_of(backend)
    knockout = Knockout(
        attention=attention, layers=(1,), query_positions=(3, 4), key_positions=(last_key,)
    )
    uncut, _ = capture(backend, batch, CaptureSpec(attentions=True))

    captured, _ = capture(backend, batch, CaptureSpec(attentions=True, knockouts=(knockout,)))

    assert uncut[attention, 1][0][:, 3:5, last_key].all()
    assert not captured[attention, 1][0][:, 3:5, last_key].any()
    np.testing.assert_array_equal(captured["encoder_attentions", 0], uncut["encoder_attentions", 0])


def test_other_calls_at_the_same_time_are_not_touched(tiny_backend: TinyBackend) -> None:
    # two threads run the same model at once, one of them with edges cut
    backend = tiny_backend("gpt2")
    batch = first_text(batch_of(backend))
    knockout = Knockout(query_positions=(9,), key_positions=(1, 2, 3))
    plain = CaptureSpec(logits=True, attentions=True)
    cutting = CaptureSpec(logits=True, attentions=True, knockouts=(knockout,))
    expected = {spec: capture(backend, batch, spec) for spec in (plain, cutting)}
    start, found = Barrier(2), {plain: [], cutting: []}  # type: dict[CaptureSpec, list[Any]]
    inspector = backend._parts.inspector

    def work(spec: CaptureSpec) -> None:
        start.wait()
        for _ in range(20):
            collector = Collector()
            outputs = inspector.inspect(batch, spec, sink=collector)
            found[spec].append((collector.layers, outputs.logits))

    threads = [Thread(target=work, args=(spec,)) for spec in (plain, cutting)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for spec, (layers, outputs) in expected.items():
        assert len(found[spec]) == 20
        for seen, logits in found[spec]:
            np.testing.assert_array_equal(logits, outputs.logits)
            require_same(seen, layers)


def require_same(found: Captured, expected: Captured) -> None:
    assert set(found) == set(expected)
    for key, weights in expected.items():
        np.testing.assert_array_equal(found[key], weights)


def run(backend: Any, knockout: Knockout) -> None:
    batch = Batch.of([backend.tokenize(SHORT_TEXT)], pad_id=backend.pad_id)
    backend.inspect(batch, CaptureSpec(knockouts=(knockout,)))


def test_the_last_key_of_a_query_may_not_go(tiny_backend: TinyBackend) -> None:
    # the first query of a causal model sees the first key only
    wanted = r"knockouts\[0\]: query 0 keeps no key in layer 1, head 0\. .*`query_positions` from 1"
    with pytest.raises(KnockoutInvalid, match=wanted):
        run(tiny_backend("gpt2"), Knockout(layers=(1,), key_positions=(0,)))


def test_the_first_token_can_be_hidden_from_all_others(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("gpt2")
    length = backend.tokenize(SHORT_TEXT).input_ids.size

    run(backend, Knockout(query_positions=tuple(range(1, length)), key_positions=(0,)))


def test_sinks_are_left_to_look_at(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("gpt_oss")
    batch = first_text(batch_of(backend))
    knockout = Knockout(layers=(1,), key_positions=(0,))

    captured, outputs = capture(
        backend, batch, CaptureSpec(attentions=True, logits=True, knockouts=(knockout,))
    )

    assert not captured["attentions", 1][0, :, 0].any()
    assert np.isfinite(outputs.logits).all()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("knockout", "error", "message"),
    [
        (Knockout(layers=(3,)), LayerOutOfRange, "Layer 3"),
        (Knockout(layers=(-1,)), LayerOutOfRange, "Layer -1"),
        (Knockout(heads=(4,)), HeadOutOfRange, "Head 4"),
        (Knockout(query_positions=(99,)), PositionOutOfRange, "query_positions 99"),
        (Knockout(key_positions=(-1,)), PositionOutOfRange, "key_positions -1"),
        (Knockout(attention="cross_attentions"), KnockoutInvalid, "has no cross_attentions"),
    ],
    ids=["layer", "negative-layer", "head", "query", "negative-key", "stack"],
)
def test_edges_that_do_not_exist(
    knockout: Knockout, error: type[Exception], message: str, tiny_backend: TinyBackend
) -> None:
    with pytest.raises(error, match=message):
        run(tiny_backend("bert"), knockout)


def test_layers_without_attention_cannot_be_cut(tiny_backend: TinyBackend) -> None:
    with pytest.raises(KnockoutInvalid, match="layer 0 cannot be cut"):
        run(tiny_backend("qwen3_next"), Knockout(layers=(0,)))


@pytest.mark.parametrize("family", ["mpnet", "mamba"])
def test_models_with_attention_of_their_own_are_refused(
    family: str, tiny_backend: TinyBackend
) -> None:
    with pytest.raises(CapabilityMissing, match="cannot be knocked out"):
        run(tiny_backend(family), Knockout(layers=(0,)))


def test_nothing_is_cut_by_an_empty_list(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("bert")
    batch = first_text(batch_of(backend))
    uncut, _ = capture(backend, batch, CaptureSpec(attentions=True))

    captured, _ = capture(
        backend,
        batch,
        CaptureSpec(attentions=True, knockouts=(Knockout(key_positions=()),)),
    )

    for key, weights in uncut.items():
        np.testing.assert_allclose(captured[key], weights, rtol=0, atol=1e-6)
