"""Costs reckoned before the run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import plain_settings
from pellucid.errors import EmptyText, TextTooLarge, TooLarge, TooManyInputs
from pellucid.inference.admission import (
    admit_inspection,
    check_embedding_inputs,
    check_inspection_text,
    inspection_cost,
    largest_fitting,
)
from pellucid.inference.engine import EmbeddingQuery, InspectionQuery
from pellucid.inference.inspection import inspect
from pellucid.inference.plan import InspectionPlan, plan_inspection
from pellucid.models.fake.backend import FakeBackend, FakeModel

EVERYTHING: frozenset[Any] = frozenset(
    {"attentions", "hidden_states", "statistics", "patterns", "projection", "rollout"}
    | {"norm_weighted"}
)


def plan_of(model: FakeModel | None = None, **query: Any) -> InspectionPlan:
    query.setdefault("text", "hello")
    return plan_inspection(FakeBackend(model).info, InspectionQuery(**query))


def cost(seq_len: int, **query: Any) -> tuple[int, int]:
    found = inspection_cost(plan_of(**query), seq_len=seq_len, target_len=0)
    return found.working_bytes, found.answer_bytes


def test_attention_of_the_whole_model_as_safetensors_is_exact() -> None:
    query: dict[str, Any] = {"include": frozenset({"attentions"}), "answer_format": "safetensors"}
    values = 2 * 2 * 10 * 10  # layers, heads, tokens, tokens
    for dtype, item_bytes in (("float32", 4), ("float16", 2), ("uint8", 1)):
        assert cost(10, **query, dtype=dtype)[1] == values * item_bytes


def test_fewer_layers_heads_and_bits_cost_less() -> None:
    whole = cost(50)
    for narrower in ({"layers": (0,)}, {"heads": (1,)}, {"dtype": "uint8"}):
        assert cost(50, **narrower) < whole
    assert cost(50, answer_format="safetensors")[1] < whole[1]


def test_refused_with_figures_and_what_would_fit() -> None:
    settings = plain_settings(max_answer_bytes=100_000)
    plan = plan_of(include=frozenset({"attentions"}))
    with pytest.raises(TooLarge) as caught:
        admit_inspection(plan, seq_len=1_000, target_len=0, settings=settings)
    facts = caught.value.facts
    assert facts["needed_bytes"] == 4 * 1_000 * 1_000 * 11
    assert facts["limit_bytes"] == 100_000
    assert facts["setting"] == "max_answer_bytes"
    assert facts["max_tokens"] == 47  # 4 * 47^2 * 11 = 97196, 4 * 48^2 * 11 = 101376
    assert "at most 47 tokens instead of 1000" in caught.value.detail
    admit_inspection(plan, seq_len=47, target_len=0, settings=settings)
    with pytest.raises(TooLarge):
        admit_inspection(plan, seq_len=48, target_len=0, settings=settings)


def test_working_memory_has_its_own_limit() -> None:
    settings = plain_settings(max_inspection_bytes=10_000)
    with pytest.raises(TooLarge, match="max_inspection_bytes"):
        admit_inspection(plan_of(), seq_len=60, target_len=0, settings=settings)


@given(st.integers(0, 3_000_000), st.sampled_from(["working_bytes", "answer_bytes"]))
def test_the_largest_that_fits_is_the_largest(limit: int, field: str) -> None:
    plan = plan_of(include=EVERYTHING)
    fitting = largest_fitting(plan, target_len=0, field=field, limit_bytes=limit)

    def needed(seq_len: int) -> int:
        return int(getattr(inspection_cost(plan, seq_len=seq_len, target_len=0), field))

    assert fitting == 0 or needed(fitting) <= limit
    assert needed(fitting + 1) > limit


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_real_tensors_take_no_more_than_was_reckoned(kind: Any, dtype: Any) -> None:
    backend = FakeBackend(FakeModel(kind=kind))
    query = InspectionQuery(
        text="one two three four five six seven eight",
        include=EVERYTHING,
        dtype=dtype,
        answer_format="safetensors",
    )
    found = inspect(backend, query, settings=plain_settings()).completed()
    plan = plan_inspection(backend.info, query)
    reckoned = inspection_cost(plan, seq_len=len(found.tokens), target_len=0)
    real = sum(tensor.values.nbytes for tensor in found.tensors.values())
    assert real <= reckoned.answer_bytes <= 3 * real
    assert real <= reckoned.working_bytes


def test_long_texts_are_refused_before_tokenising() -> None:
    settings = plain_settings(max_text_characters=10)
    for field in ("text", "text_pair", "target_text"):
        fields: dict[str, Any] = {"text": "a", field: "x" * 11}
        query = InspectionQuery(**fields)
        with pytest.raises(TextTooLarge, match=f"{field} has 11 characters"):
            check_inspection_text(query, settings=settings)
    messages = [{"role": "user", "content": "x" * 6}] * 2
    with pytest.raises(TextTooLarge, match="messages has 12"):
        check_inspection_text(InspectionQuery(messages=messages), settings=settings)


@pytest.mark.parametrize(
    ("inputs", "error", "match"),
    [
        (["a"] * 4, TooManyInputs, "4 inputs, the limit is 3"),
        (["a", "x" * 11], TextTooLarge, r"inputs\[1\] has 11"),
        (["a", " \n"], EmptyText, r"inputs\[1\]"),
        ([[]], EmptyText, r"inputs\[0\]"),
    ],
    ids=["many", "long", "blank", "no-ids"],
)
def test_embedding_inputs(inputs: list[Any], error: type[Exception], match: str) -> None:
    settings = plain_settings(max_text_characters=10, max_inputs=3)
    with pytest.raises(error, match=match):
        check_embedding_inputs(EmbeddingQuery(inputs=inputs), settings=settings)
