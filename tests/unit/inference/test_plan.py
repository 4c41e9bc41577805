"""Queries checked against the model before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from pellucid.errors import (
    AttentionUnavailable,
    CapabilityMissing,
    HeadOutOfRange,
    InputsConflict,
    InvalidRequest,
    LayerOutOfRange,
    LogitLensUnavailable,
    PairUnsupported,
    TargetUnsupported,
)
from pellucid.inference.engine import InspectionQuery, ProjectionQuery
from pellucid.inference.plan import InspectionPlan, plan_inspection
from pellucid.models.backend import AttentionSupport, Knockout
from pellucid.models.fake.backend import FakeBackend, FakeModel

HYBRID = FakeModel(
    heads_per_layer=(2, 2, 2, 2),
    attention=AttentionSupport(
        available=True,
        layers={"attentions": (1, 3)},
        reason="linear attention",
        method="registered",
    ),
)
WITHOUT = FakeModel(attention=AttentionSupport(available=False, reason="a state space model"))
SEQ2SEQ = FakeModel(kind="encoder-decoder", heads_per_layer=(2, 2, 2), num_decoder_layers=2)


def plan_of(model: FakeModel | None = None, **query: Any) -> InspectionPlan:
    if not {"text", "input_ids", "messages"} & set(query):
        query["text"] = "hello"
    if "include" in query:
        query["include"] = frozenset(query["include"])
    return plan_inspection(FakeBackend(model).info, InspectionQuery(**query))


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ({"text": "a", "input_ids": [5]}, InputsConflict),
        ({"input_ids": [5], "text_pair": "b"}, PairUnsupported),
        ({"target_text": "b"}, TargetUnsupported),
        ({"max_tokens": 0}, InvalidRequest),
        ({"layers": ()}, InvalidRequest),
        ({"heads": ()}, InvalidRequest),
        ({"layers": (2,)}, LayerOutOfRange),
        ({"layers": (-1,)}, LayerOutOfRange),
        ({"heads": (0, 2)}, HeadOutOfRange),
        ({"include": {"logit_lens"}}, LogitLensUnavailable),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_wrong_queries_are_refused(query: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        plan_of(**query)


def test_no_input_at_all_is_refused() -> None:
    with pytest.raises(InputsConflict, match="none"):
        plan_inspection(FakeBackend().info, InspectionQuery())


def test_figures_are_in_the_error() -> None:
    with pytest.raises(LayerOutOfRange, match=r"Layer 40 .* layers 0 to 1"):
        plan_of(layers=(40,))


@pytest.mark.parametrize("layer", [-3, -1, 0, 2, "all"])
def test_projection_layers_in_range(layer: Any) -> None:
    plan_of(include={"projection"}, projection=ProjectionQuery(layer=layer))


@pytest.mark.parametrize("layer", [-4, 3])
def test_projection_layers_out_of_range(layer: int) -> None:
    with pytest.raises(LayerOutOfRange):
        plan_of(include={"projection"}, projection=ProjectionQuery(layer=layer))


@pytest.mark.parametrize("name", ["attentions", "statistics", "patterns", "rollout"])
def test_a_model_without_attention_says_why(name: str) -> None:
    with pytest.raises(AttentionUnavailable, match="a state space model"):
        plan_of(WITHOUT, include={name})


def test_a_model_without_attention_has_no_heads_either() -> None:
    with pytest.raises(AttentionUnavailable):
        plan_of(WITHOUT, include={"hidden_states"}, heads=(0,))


def test_a_model_without_attention_still_gives_hidden_states() -> None:
    assert plan_of(WITHOUT, include={"hidden_states"}).needs_forward


def test_knockouts_need_attention_too() -> None:
    with pytest.raises(AttentionUnavailable):
        plan_of(WITHOUT, include={"hidden_states"}, knockouts=(Knockout(key_positions=(0,)),))


def test_a_hybrid_answers_for_its_attention_layers() -> None:
    plan = plan_of(HYBRID)
    assert plan.answered_layers == (1, 3)
    assert plan.kept_layers(plan.stacks[0]) == (1, 3)


def test_a_hybrid_refuses_its_other_layers_by_number() -> None:
    with pytest.raises(AttentionUnavailable, match="in layer 2: linear attention"):
        plan_of(HYBRID, layers=(1, 2))


def test_rollout_over_missing_layers_would_be_wrong() -> None:
    with pytest.raises(CapabilityMissing, match=r"\[0, 2\]"):
        plan_of(HYBRID, include={"rollout"})


def test_layers_of_an_encoder_decoder_must_exist_in_both() -> None:
    plan_of(SEQ2SEQ, layers=(1,))
    with pytest.raises(LayerOutOfRange, match="layers 0 to 1"):
        plan_of(SEQ2SEQ, layers=(2,))


def test_layers_and_heads_are_named_once_in_order() -> None:
    plan = plan_of(layers=(1, 0, 1), heads=(1, 1))
    assert (plan.layers, plan.heads) == ((0, 1), (1,))


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ({"include": {"hidden_states"}}, None),
        ({"include": {"hidden_states"}, "layers": (1,)}, (2,)),
        ({"include": {"hidden_states"}, "hidden_layers": (-1,)}, (2,)),
        ({"include": {"projection"}}, (2,)),
        ({"include": {"projection"}, "projection": ProjectionQuery(layer="all")}, None),
        (
            {
                "include": {"hidden_states", "projection"},
                "layers": (1,),
                "projection": ProjectionQuery(layer=0),
            },
            (0, 2),
        ),
    ],
    ids=["all", "layer", "last", "projection", "projection-all", "both"],
)
def test_only_the_hidden_states_needed_are_kept(query: dict[str, Any], kept: Any) -> None:
    assert plan_of(**query).spec().hidden_layers == kept


@pytest.mark.parametrize("index", [3, -4])
def test_hidden_states_must_exist(index: int) -> None:
    with pytest.raises(LayerOutOfRange):
        plan_of(include={"hidden_states"}, hidden_layers=(index,))


def test_rollout_captures_all_that_the_answer_leaves_out() -> None:
    spec = plan_of(include={"rollout", "attentions"}, layers=(0,), heads=(1,)).spec()
    assert (spec.layers, spec.heads) == (None, None)
