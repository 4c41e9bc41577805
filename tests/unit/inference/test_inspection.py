"""One inspection in the model's thread, on fake models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import plain_settings
from pellucid.errors import (
    CaptureIncomplete,
    ChatTemplateMissing,
    EmptyText,
    KnockoutInvalid,
    NonFiniteValues,
    TooFewTokens,
    TooLarge,
    TooManyTokens,
)
from pellucid.inference.engine import Inspection, InspectionQuery, ProjectionQuery
from pellucid.inference.inspection import inspect
from pellucid.inference.worker import Abandoned
from pellucid.models.backend import (
    AttentionName,
    AttentionSink,
    AttentionSupport,
    Batch,
    CaptureSpec,
    Float32,
    Knockout,
    ModelOutputs,
)
from pellucid.models.fake.backend import FakeBackend, FakeModel, Faults

TEXT = "the cat sat on the mat and the cat purrs"
SEQ2SEQ = FakeModel(kind="encoder-decoder")
ALL = {"attentions", "hidden_states", "statistics", "patterns", "projection", "rollout"}


def run(
    backend: FakeBackend | FakeModel | None = None,
    *,
    settings: Mapping[str, Any] = {},
    **query: Any,
) -> Inspection:
    if not isinstance(backend, FakeBackend):
        backend = FakeBackend(backend)
    if not {"input_ids", "messages"} & set(query):
        query.setdefault("text", TEXT)
    if "include" in query:
        query["include"] = frozenset(query["include"])
    seen = inspect(backend, InspectionQuery(**query), settings=plain_settings(**settings))
    return seen.completed()


def attention_of(
    backend: FakeBackend, text: str = TEXT, **spec: Any
) -> dict[AttentionName, NDArray[Any]]:
    """[num_layers, num_heads, query_len, key_len] by name, straight from the backend."""
    layers: dict[AttentionName, list[Float32]] = {}

    def keep(name: AttentionName, layer: int, weights: Float32) -> None:
        layers.setdefault(name, []).append(weights[0])

    batch = Batch.of([backend.tokenize(text)])
    backend.inspect(batch, CaptureSpec(attentions=True, **spec), sink=keep)
    return {name: np.stack(weights) for name, weights in layers.items()}


def finite_numbers(value: Any) -> int:
    """How many numbers stand in plain data; fails on one that JSON does not have."""
    text = json.dumps(value, allow_nan=False)
    return text.count(".")


def test_attention_is_what_the_backend_gave() -> None:
    backend = FakeBackend()
    found = run(backend)
    tensor = found.tensors["attentions"]
    assert tensor.axes == ("layer", "head", "query_position", "key_position")
    np.testing.assert_array_equal(tensor.values, attention_of(backend)["attentions"])
    assert [token.text for token in found.tokens][:3] == ["[CLS]", "the", "cat"]
    assert found.tokens[0].special
    assert TEXT[found.tokens[2].start : found.tokens[2].end] == "cat"
    assert (found.layers, found.heads) == ((0, 1), (0, 1))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2**-11), ("uint8", 1 / 510 + 1e-7)])
def test_smaller_dtypes_are_within_their_error(dtype: Any, tolerance: float) -> None:
    exact = run(include={"attentions"}).tensors["attentions"].values
    tensor = run(include={"attentions"}, dtype=dtype).tensors["attentions"]
    assert tensor.values.dtype == dtype
    np.testing.assert_allclose(
        tensor.values.astype(np.float64) * (tensor.scale or 1.0), exact, atol=tolerance
    )


def test_what_is_no_attention_goes_as_float16_and_says_so() -> None:
    found = run(include=ALL | {"norm_weighted"}, dtype="uint8")
    for name in ("hidden_states", "rollout", "norm_weighted"):
        assert found.tensors[name].values.dtype == np.float16
        assert "uint8 was asked for, sent as float16" in (found.tensors[name].note or "")
    assert found.tensors["attentions"].values.dtype == np.uint8


def test_values_too_large_for_float16_go_as_float32_and_say_so() -> None:
    class Huge(FakeBackend):
        def inspect(
            self, batch: Batch, spec: CaptureSpec, *, sink: AttentionSink | None = None
        ) -> ModelOutputs:
            outputs = super().inspect(batch, spec, sink=sink)
            scaled = {name: states * 1e6 for name, states in outputs.hidden_states.items()}
            return ModelOutputs(hidden_states=scaled)

    tensor = run(Huge(), include={"hidden_states"}, dtype="float16").tensors["hidden_states"]
    assert tensor.values.dtype == np.float32
    assert "sent as float32" in (tensor.note or "")


def test_layers_and_heads_are_those_named() -> None:
    backend = FakeBackend()
    whole = attention_of(backend)["attentions"]
    found = run(backend, layers=(1,), heads=(1,), include={"attentions", "statistics"})
    assert (found.layers, found.heads) == ((1,), (1,))
    np.testing.assert_array_equal(found.tensors["attentions"].values, whole[1:, 1:])
    assert np.shape(found.statistics["attentions"]["entropy"]) == (1, 1)  # type: ignore[index]


def test_rollout_mixes_all_layers_even_when_one_is_asked_for() -> None:
    backend = FakeBackend()
    mixed = np.eye(12)
    for layer in attention_of(backend)["attentions"]:
        mixed = (0.5 * np.eye(12) + 0.5 * layer.mean(axis=0)) @ mixed
    found = run(backend, include={"rollout", "attentions"}, layers=(1,), heads=(0,))
    np.testing.assert_allclose(found.tensors["rollout"].values, mixed, atol=1e-6)
    assert found.tensors["attentions"].values.shape == (1, 1, 12, 12)


@pytest.mark.parametrize("narrow", [{}, {"layers": (1,), "heads": (1,)}], ids=["all", "one"])
@pytest.mark.parametrize("also", [set(), {"rollout"}], ids=["alone", "with-rollout"])
def test_norm_weighted_attention(narrow: dict[str, Any], also: set[str]) -> None:
    backend = FakeBackend()
    weights = attention_of(backend)["attentions"]
    batch = Batch.of([backend.tokenize(TEXT)])
    norms = backend.inspect(batch, CaptureSpec(value_norms=True)).value_norms
    expected = weights * np.stack([norms["attentions", layer][0] for layer in (0, 1)])[:, :, None]
    if narrow:
        expected = expected[1:, 1:]
    found = run(backend, include={"norm_weighted", *also}, **narrow)
    np.testing.assert_allclose(found.tensors["norm_weighted"].values, expected, rtol=1e-6)


def test_layers_with_unlike_heads_come_one_by_one() -> None:
    model = FakeModel(heads_per_layer=(2, 3, 2))
    found = run(model, include={"attentions", "statistics", "norm_weighted"}, dtype="uint8")
    for name in ("attentions", "norm_weighted"):
        shapes = [found.tensors[f"{name}.{layer}"].values.shape[0] for layer in range(3)]
        assert shapes == [2, 3, 2]
        assert found.tensors[f"{name}.1"].axes == ("head", "query_position", "key_position")
    assert found.tensors["attentions.1"].scale == pytest.approx(1 / 255)
    assert [len(layer) for layer in found.statistics["attentions"]["entropy"]] == [2, 3, 2]  # type: ignore[index]


def test_hidden_states_whole_and_by_layer() -> None:
    backend = FakeBackend()
    batch = Batch.of([backend.tokenize(TEXT)])
    states = backend.inspect(batch, CaptureSpec(hidden_states=True)).hidden_states["hidden_states"]
    whole = run(backend, include={"hidden_states"}).tensors["hidden_states"]
    np.testing.assert_array_equal(whole.values, states[:, 0])
    one = run(backend, include={"hidden_states", "projection"}, layers=(1,)).tensors
    np.testing.assert_array_equal(one["hidden_states"].values, states[2:, 0])
    assert set(one) == {"hidden_states"}
    ends = run(backend, include={"hidden_states"}, hidden_layers=(-1, 0), layers=(1,)).tensors
    np.testing.assert_array_equal(ends["hidden_states"].values, states[[2, 0], 0])
    assert "here [2, 0]" in (ends["hidden_states"].note or "")


@pytest.mark.parametrize("num_decoder_layers", [2, 3])
def test_the_last_hidden_state_of_each_stack(num_decoder_layers: int) -> None:
    backend = FakeBackend(FakeModel(kind="encoder-decoder", num_decoder_layers=num_decoder_layers))
    whole = run(backend, include={"hidden_states"}).tensors
    last = run(backend, include={"hidden_states"}, hidden_layers=(-1,)).tensors
    for name in ("encoder_hidden_states", "decoder_hidden_states"):
        np.testing.assert_array_equal(last[name].values, whole[name].values[-1:])


@pytest.mark.parametrize(
    ("layer", "shape"), [(-1, (12, 2)), (0, (12, 2)), ("all", (3, 12, 2))], ids=str
)
def test_projection(layer: Any, shape: tuple[int, ...]) -> None:
    found = run(include={"projection"}, projection=ProjectionQuery(layer=layer))
    assert found.projection is not None
    assert np.shape(found.projection["coordinates"]) == shape
    assert found.projection["layer"] == {-1: 2, 0: 0, "all": "all"}[layer]
    assert found.tensors == {}


def test_umap_of_too_few_tokens_is_refused() -> None:
    with pytest.raises(TooFewTokens, match="umap needs at least 4 tokens, the text has 3"):
        run(text="hi", include={"projection"}, projection=ProjectionQuery(method="umap"))


def test_plain_data_is_json_without_nan() -> None:
    for text in ("a", TEXT):
        for model in (FakeModel(), FakeModel(kind="decoder"), SEQ2SEQ):
            found = run(model, text=text, include=ALL)
            for part in (found.statistics, found.patterns, found.projection):
                assert finite_numbers(part) > 0


def test_statistics_have_one_value_per_layer_and_head_or_token() -> None:
    statistics = run().statistics
    assert statistics is not None
    of = statistics["attentions"]
    for name in ("entropy", "maximum", "sink_share", "distance", "self_share"):
        assert np.shape(of[name]) == (2, 2), name
    for name in ("received", "received_relative", "given"):
        assert np.shape(of[name]) == (2, 12), name
    assert np.shape(of["maximum_position"]) == (2, 2, 2)


def test_received_is_corrected_for_the_causal_mask_and_for_cuts() -> None:
    backend = FakeBackend(FakeModel(kind="decoder"))
    # Query 3 of layer 0 may no longer see key 1, which leaves it to queries 1, 2, 4 .. 9.
    cut = Knockout(layers=(0,), heads=(0,), query_positions=(3,), key_positions=(1,))
    weights = attention_of(backend, knockouts=(cut,))["attentions"][0]
    found = run(backend, include={"statistics"}, layers=(0,), heads=(0,), knockouts=(cut,))
    assert found.statistics is not None
    received = found.statistics["attentions"]["received"][0]
    assert received[1] == pytest.approx(weights[0, :, 1].sum() / 8, abs=1e-5)
    assert received[2] == pytest.approx(weights[0, :, 2].sum() / 8, abs=1e-5)


def test_patterns_name_layers_heads_and_support() -> None:
    patterns = run(FakeModel(kind="decoder"), include={"patterns"}).patterns
    assert patterns is not None
    of = patterns["attentions"]
    assert np.shape(of["scores"]["previous_token"]) == (2, 2)
    assert np.shape(of["dominant"]) == (2, 2)
    assert of["support"] == {
        "previous_token": 9,
        "first_token": 9,
        "self": 9,
        "duplicate": 3,
        "induction": 3,
    }


def test_patterns_not_in_this_text_have_no_score() -> None:
    patterns = run(text="one two", include={"patterns"}).patterns
    assert patterns is not None
    assert patterns["attentions"]["scores"]["duplicate"] is None


def test_logit_lens() -> None:
    found = run(FakeModel(kind="decoder"), include={"logit_lens"}).logit_lens
    assert found is not None
    assert np.shape(found["token_ids"]) == (3, 10, 5)
    assert np.shape(found["entropy"]) == (3, 10)
    named = {str(token_id) for token_id in np.unique(found["token_ids"])}
    assert set(found["tokens"]) == named
    json.dumps(found, allow_nan=False)


# ------------------------------------------------------------------------------ encoder-decoder


def test_encoder_decoder_has_three_attentions() -> None:
    found = run(SEQ2SEQ, target_text="le chat", include=ALL | {"norm_weighted"})
    shapes = {name: tensor.values.shape for name, tensor in found.tensors.items()}
    assert shapes == {
        "encoder_attentions": (2, 2, 11, 11),
        "decoder_attentions": (2, 2, 3, 3),
        "cross_attentions": (2, 2, 3, 11),
        "encoder_norm_weighted": (2, 2, 11, 11),
        "decoder_norm_weighted": (2, 2, 3, 3),
        "cross_norm_weighted": (2, 2, 3, 11),
        "encoder_rollout": (11, 11),
        "decoder_rollout": (3, 3),
        "encoder_hidden_states": (3, 11, 12),
        "decoder_hidden_states": (3, 3, 12),
    }
    assert found.target_tokens is not None
    assert [token.text for token in found.target_tokens] == ["[START]", "le", "chat"]
    assert not found.target_generated
    assert found.statistics is not None
    assert found.statistics["cross_attentions"]["distance"] is None
    assert set(found.patterns or {}) == {"encoder_attentions", "decoder_attentions"}


def test_without_a_target_the_model_writes_one() -> None:
    found = run(SEQ2SEQ, settings={"max_target_tokens": 4})
    assert found.target_generated
    assert found.target_tokens is not None
    assert len(found.target_tokens) <= 4
    assert found.target_tokens[0].text == "[START]"


def test_an_error_in_the_target_names_the_target() -> None:
    with pytest.raises(EmptyText, match="target_text is empty"):
        run(SEQ2SEQ, target_text=" ")
    with pytest.raises(TooManyTokens, match="target_text has 3 tokens"):
        run(SEQ2SEQ, text="a", target_text="le chat", settings={"max_inspection_tokens": 2})


# -------------------------------------------------------------------------------------- inputs


def test_ids_are_taken_as_they_are() -> None:
    found = run(input_ids=[7, 8, 9])
    assert [token.id for token in found.tokens] == [7, 8, 9]
    assert not found.truncated


def test_too_many_ids_are_refused_or_cut_like_text() -> None:
    with pytest.raises(TooManyTokens, match="has 3 tokens, fake/tiny takes at most 2"):
        run(input_ids=[7, 8, 9], max_tokens=2)
    found = run(input_ids=[7, 8, 9], max_tokens=2, truncate="end")
    assert [token.id for token in found.tokens] == [7, 8]
    assert (found.truncated, found.num_tokens_untruncated) == (True, 3)


@pytest.mark.parametrize(
    "limits",
    [{"max_tokens": 5}, {"settings": {"max_inspection_tokens": 5}}],
    ids=["request", "server"],
)
def test_text_over_a_limit_is_refused_or_cut(limits: dict[str, Any]) -> None:
    with pytest.raises(TooManyTokens, match="12 tokens"):
        run(**limits)
    found = run(**limits, truncate="end")
    assert (len(found.tokens), found.truncated, found.num_tokens_untruncated) == (5, True, 12)


def test_messages_need_a_template() -> None:
    messages = [{"role": "user", "content": "hi there"}]
    with pytest.raises(ChatTemplateMissing):
        run(messages=messages)
    model = FakeModel(kind="decoder", has_chat_template=True)
    assert run(model, messages=messages).tokens[0].text == "user"


def test_a_pair_says_which_text_a_token_is_of() -> None:
    found = run(text="one", text_pair="two")
    assert [token.text_index for token in found.tokens] == [-1, 0, -1, 1, -1]


def test_nothing_asked_runs_nothing() -> None:
    backend = FakeBackend()
    assert len(run(backend, include=set()).tokens) == 12
    assert backend.num_forwards == 0


# --------------------------------------------------------------------- knock-outs and refusals


@pytest.mark.parametrize(("kind", "of"), [("encoder", "embedding"), ("decoder", "logits")])
def test_a_knockout_cuts_and_tells_what_changed(kind: Any, of: str) -> None:
    backend = FakeBackend(FakeModel(kind=kind))
    cut = Knockout(layers=(0,), query_positions=(5,), key_positions=(2, 3))
    found = run(backend, include={"attentions"}, knockouts=(cut,))
    assert found.tensors["attentions"].values[0, :, 5, 2:4].max() == 0.0
    assert found.tensors["attentions"].values[1, :, 5, 2:4].min() > 0.0
    assert found.change is not None
    assert found.change["of"] == of
    if of == "embedding":
        batch = Batch.of([backend.tokenize(TEXT)])
        before = backend.inspect(batch, CaptureSpec(pooled=True)).pooled
        after = backend.inspect(batch, CaptureSpec(pooled=True, knockouts=(cut,))).pooled
        assert before is not None
        assert after is not None
        distance = float(np.linalg.norm(after - before))
        assert found.change["distance"] == pytest.approx(distance, rel=1e-5)
    else:
        divergence = found.change["divergence"]
        assert divergence[:5] == [0.0] * 5  # positions before the cut cannot have changed
        assert min(divergence[5:]) > 0
        assert len(found.change["likeliest_after"]) == 10
        assert set(found.change["movers"][0]) >= {"id", "text", "probability_after"}
    json.dumps(found.change, allow_nan=False)


def test_an_impossible_knockout_is_refused_before_any_forward_pass() -> None:
    backend = FakeBackend()
    with pytest.raises(KnockoutInvalid):
        run(backend, knockouts=(Knockout(query_positions=(1,)),))
    assert backend.num_forwards == 0


@pytest.mark.parametrize("model", [FakeModel(), SEQ2SEQ], ids=["encoder", "encoder-decoder"])
def test_too_large_is_refused_before_any_forward_pass(model: FakeModel) -> None:
    backend = FakeBackend(model)
    with pytest.raises(TooLarge):
        run(backend, settings={"max_answer_bytes": 1_000})
    assert backend.num_forwards == 0


def test_a_missing_layer_is_told_not_hidden() -> None:
    class Forgetful(FakeBackend):
        def inspect(
            self, batch: Batch, spec: CaptureSpec, *, sink: AttentionSink | None = None
        ) -> ModelOutputs:
            def lose(name: AttentionName, layer: int, weights: Float32) -> None:
                if layer != 1 and sink is not None:
                    sink(name, layer, weights)

            return super().inspect(batch, spec, sink=lose)

    for include in ({"attentions"}, {"statistics"}, {"rollout"}):
        with pytest.raises(CaptureIncomplete, match=r"\[1\]"):
            run(Forgetful(), include=include)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_attention_that_is_not_a_number_is_refused(value: float) -> None:
    class Broken(FakeBackend):
        def inspect(
            self, batch: Batch, spec: CaptureSpec, *, sink: AttentionSink | None = None
        ) -> ModelOutputs:
            def spoil(name: AttentionName, layer: int, weights: Float32) -> None:
                weights[0, 0, 0, 0] = value
                if sink is not None:
                    sink(name, layer, weights)

            return super().inspect(batch, spec, sink=spoil)

    with pytest.raises(NonFiniteValues, match="attentions of layer 0"):
        run(Broken(), dtype="uint8")


def test_hidden_states_that_are_not_numbers_are_refused() -> None:
    backend = FakeBackend(faults=Faults(nan=True))
    with pytest.raises(NonFiniteValues, match="in hidden_states"):
        run(backend, include={"hidden_states"})


def test_a_hybrid_answers_with_its_attention_layers() -> None:
    support = AttentionSupport(available=True, layers={"attentions": (1, 3)}, reason="linear")
    found = run(
        FakeModel(heads_per_layer=(2, 2, 2, 2), attention=support), include=ALL - {"rollout"}
    )
    assert found.layers == (1, 3)
    assert found.tensors["attentions"].values.shape[0] == 2
    assert found.tensors["hidden_states"].values.shape[0] == 5


def test_an_abandoned_inspection_ends_before_its_forward_pass() -> None:
    backend = FakeBackend()

    def gone() -> None:
        raise Abandoned

    with pytest.raises(Abandoned):
        inspect(backend, InspectionQuery(text=TEXT), settings=plain_settings(), still_wanted=gone)
    assert backend.num_forwards == 0
