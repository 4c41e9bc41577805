"""The fake model behaves like a model: its users may rely on that."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pellucid.errors import (
    AttentionUnavailable,
    ChatTemplateMissing,
    EmptyText,
    GenerationUnavailable,
    InvalidInputIds,
    LogitLensUnavailable,
    TargetRequired,
    TooManyTokens,
)
from pellucid.models.backend import (
    AttentionName,
    AttentionSupport,
    Backend,
    Batch,
    CaptureSpec,
    Float32,
    Knockout,
    ModelOutputs,
)
from pellucid.models.fake.backend import FakeBackend, FakeModel, Faults

TEXT = "hello wonderful world"


def inspect(
    backend: Backend, batch: Batch, **spec: Any
) -> tuple[ModelOutputs, dict[tuple[AttentionName, int], Float32]]:
    taken: dict[tuple[AttentionName, int], Float32] = {}

    def sink(name: AttentionName, layer: int, weights: Float32) -> None:
        taken[name, layer] = weights

    outputs = backend.inspect(batch, CaptureSpec(attentions=True, **spec), sink=sink)
    return outputs, taken


def test_it_is_a_backend() -> None:
    backend: Backend = FakeBackend()
    assert backend.info.dimensions == 12


def test_offsets_point_into_the_text() -> None:
    encoding = FakeBackend().tokenize(TEXT)
    assert encoding.tokens == ("[CLS]", "hello", "wonde", "##rful", "world", "[SEP]")
    for token, (start, end) in zip(encoding.tokens[1:-1], encoding.offsets[1:-1], strict=True):
        assert TEXT[start:end] == token.removeprefix("##")
    assert encoding.special.tolist() == [True, False, False, False, False, True]


def test_the_same_text_gives_the_same_vector_in_every_process_and_batch() -> None:
    backend = FakeBackend()
    encodings = [backend.tokenize(text) for text in (TEXT, "hi", "a b c d e f g h")]
    together = backend.encode(Batch.of(encodings))
    for encoding, vector in zip(encodings, together, strict=True):
        np.testing.assert_allclose(FakeBackend().encode(Batch.of([encoding]))[0], vector, atol=1e-6)
    np.testing.assert_allclose(together[1][:3], [0.1469, -0.210185, -0.852202], atol=1e-5)


def test_padding_on_the_left_changes_nothing() -> None:
    backend = FakeBackend(FakeModel(kind="decoder"))
    batch = Batch.of([backend.tokenize(TEXT)])
    padded = Batch(
        input_ids=np.pad(batch.input_ids, ((0, 0), (3, 0))),
        attention_mask=np.pad(batch.attention_mask, ((0, 0), (3, 0))),
    )
    _, plain = inspect(backend, batch)
    _, shifted = inspect(backend, padded)
    for key, weights in plain.items():
        np.testing.assert_allclose(shifted[key][:, :, 3:, 3:], weights, atol=1e-6)
        assert np.isfinite(shifted[key]).all()
        assert not shifted[key][..., :3].any()
    np.testing.assert_allclose(backend.encode(padded), backend.encode(batch), atol=1e-6)


def test_decoders_are_causal_and_encoders_are_not() -> None:
    for kind, is_causal in (("decoder", True), ("encoder", False)):
        backend = FakeBackend(FakeModel(kind=kind))  # type: ignore[arg-type]
        _, taken = inspect(backend, Batch.of([backend.tokenize(TEXT)]))
        for weights in taken.values():
            np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-6)
            assert bool(np.triu(weights, 1).any()) != is_causal


def test_layers_and_heads_asked_for() -> None:
    backend = FakeBackend(FakeModel(heads_per_layer=(2, 3)))
    batch = Batch.of([backend.tokenize(TEXT)])
    _, whole = inspect(backend, batch)
    assert {key: weights.shape[1] for key, weights in whole.items()} == {
        ("attentions", 0): 2,
        ("attentions", 1): 3,
    }
    _, one = inspect(backend, batch, layers=(1,), heads=(0,))
    assert list(one) == [("attentions", 1)]
    np.testing.assert_array_equal(one["attentions", 1], whole["attentions", 1][:, :1])


def test_knockouts_change_what_comes_after_them() -> None:
    backend = FakeBackend()
    batch = Batch.of([backend.tokenize(TEXT)])
    cut = Knockout(layers=(1,), heads=(0,), query_positions=(2,), key_positions=(3,))
    before, whole = inspect(backend, batch, pooled=True)
    after, taken = inspect(backend, batch, pooled=True, knockouts=(cut,))
    np.testing.assert_array_equal(taken["attentions", 0], whole["attentions", 0])
    assert taken["attentions", 1][0, 0, 2, 3] == 0
    assert whole["attentions", 1][0, 0, 2, 3] > 0
    assert before.pooled is not None
    assert after.pooled is not None
    assert np.abs(after.pooled - before.pooled).max() > 1e-4


def test_an_encoder_decoder_needs_a_target() -> None:
    backend = FakeBackend(FakeModel(kind="encoder-decoder"))
    batch = Batch.of([backend.tokenize(TEXT)])
    with pytest.raises(TargetRequired):
        inspect(backend, batch)
    target = backend.generate_greedily(backend.tokenize(TEXT), max_new_tokens=4)
    _, taken = inspect(backend, replace(batch, decoder_input_ids=target[None]))
    names = ("encoder_attentions", "decoder_attentions", "cross_attentions")
    shapes = [taken[name, 0].shape[2:] for name in names]  # type: ignore[index]
    assert shapes == [(5, 5), (target.size, target.size), (target.size, 5)]


def test_the_lens_at_the_end_is_the_models_own_prediction() -> None:
    backend = FakeBackend(FakeModel(kind="decoder"))
    encoding = backend.tokenize(TEXT)
    outputs, _ = inspect(backend, Batch.of([encoding]), logits=True, logit_lens_top_k=3)
    assert outputs.logits is not None
    assert outputs.logit_lens is not None
    best = outputs.logits.argmax(axis=-1)
    np.testing.assert_array_equal(outputs.logit_lens.token_ids[-1, ..., 0], best)
    assert backend.generate_greedily(encoding, max_new_tokens=1).tolist() == best[0, -1:].tolist()


def test_what_it_cannot_do_it_refuses() -> None:
    backend = FakeBackend(
        FakeModel(attention=AttentionSupport(available=False, reason="none"), max_tokens=3)
    )
    batch = Batch.of([backend.tokenize("hi")])
    with pytest.raises(AttentionUnavailable):
        inspect(backend, batch)
    with pytest.raises(LogitLensUnavailable):
        backend.inspect(batch, CaptureSpec(logit_lens_top_k=1))
    with pytest.raises(GenerationUnavailable):
        backend.generate_greedily(backend.tokenize("hi"), max_new_tokens=1)
    with pytest.raises(ChatTemplateMissing):
        backend.tokenize_messages([{"role": "user", "content": "hi"}])
    with pytest.raises(TooManyTokens):
        backend.tokenize("one two")
    with pytest.raises(EmptyText):
        backend.tokenize(" ")
    with pytest.raises(InvalidInputIds):
        backend.encoding_of([97])


def test_faults() -> None:
    backend = FakeBackend(faults=Faults(nan=True))
    batch = Batch.of([backend.tokenize("hi")])
    assert np.isnan(backend.encode(batch)).all()
    backend.faults.error = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        backend.encode(batch)
    backend.close()
    backend.faults.error = None
    with pytest.raises(RuntimeError, match="used after close"):
        backend.encode(batch)


def test_two_threads_at_once_are_noticed() -> None:
    hang = threading.Event()
    backend = FakeBackend(faults=Faults(hang=hang))
    batch = Batch.of([backend.tokenize("hi")])
    with ThreadPoolExecutor(1) as other:
        running = other.submit(backend.encode, batch)
        while not backend.num_forwards:
            pass
        with pytest.raises(RuntimeError, match="two threads"):
            backend.encode(batch)
        with pytest.raises(RuntimeError, match="closed while at work"):
            backend.close()
        hang.set()
        assert running.result(5).shape == (1, 12)


def test_faults_may_strike_one_word_only() -> None:
    backend = FakeBackend(FakeModel(vocab_size=10_000))
    batch = Batch.of(backend.tokenize_for_embedding(["good", "evil"]))
    backend.faults.only_with = backend.token_id_of("evil")
    backend.faults.nan = True
    assert np.isnan(backend.encode(batch)).all(axis=1).tolist() == [False, True]
    assert np.isnan(backend.encode(batch, exact=True)).any()
    backend.faults.exact_heals = True
    assert not np.isnan(backend.encode(batch, exact=True)).any()
    backend.faults.error = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        backend.encode(batch)
    assert backend.encode(Batch.of(backend.tokenize_for_embedding(["good"]))).shape == (1, 12)


def test_memory_runs_out_above_a_number_of_tokens() -> None:
    backend = FakeBackend(faults=Faults(max_tokens=6))
    inputs = backend.tokenize_for_embedding(["one", "two", "three"])
    assert backend.encode(Batch.of(inputs[:2])).shape == (2, 12)
    with pytest.raises(MemoryError, match="9 tokens"):
        backend.encode(Batch.of(inputs))
    assert list(backend.batches) == [(2, 3)]


def test_faults_come_as_json_too() -> None:
    backend = FakeBackend()
    batch = Batch.of([backend.tokenize("hi")])
    backend.faults.change('{"error": "boom", "delay_s": 0.0, "nan": true}')
    with pytest.raises(RuntimeError, match="boom"):
        backend.encode(batch)
    backend.faults.change('{"error": null}')
    assert np.isnan(backend.encode(batch)).all()
    with pytest.raises(ValueError, match="no such fault: errro"):
        backend.faults.change('{"errro": "boom"}')
    backend.faults.change('{"hang": true, "nan": false}')
    with ThreadPoolExecutor(1) as other:
        running = other.submit(backend.encode, batch)
        while backend.num_forwards < 2:
            pass
        assert not running.done()
        backend.faults.change('{"hang": false}')
        assert not np.isnan(running.result(5)).any()


def test_texts_are_cut_into_pieces_with_nothing_left_out() -> None:
    backend = FakeBackend(FakeModel(max_embedding_tokens=6))
    text = "one two three four five six seven eight nine"
    ((first, second, third),) = backend.chunk_for_embedding([text])
    whole = backend.tokenize(text).input_ids
    pieces = [piece.input_ids[1:-1] for piece in (first, second, third)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole[1:-1])
    assert [piece.num_added_tokens for piece in (first, second, third)] == [2, 2, 2]


def test_tokenising_for_embeddings_may_run_beside_a_forward_pass() -> None:
    hang = threading.Event()
    backend = FakeBackend(faults=Faults(hang=hang))
    batch = Batch.of([backend.tokenize("hi")])
    with ThreadPoolExecutor(1) as other:
        running = other.submit(backend.encode, batch)
        while not backend.num_forwards:
            pass
        assert backend.tokenize_for_embedding(["hi"])[0].input_ids.size == 3
        assert backend.ids_for_embedding([5, 6]).input_ids.tolist() == [5, 6]
        assert len(backend.chunk_for_embedding(["hi"])) == 1
        hang.set()
        running.result(5)
