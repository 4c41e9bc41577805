"""One embedding request in the model's thread, on fake models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import plain_settings
from embedding_runs import embed
from pellucid.errors import (
    DimensionsUnsupported,
    EmptyText,
    InvalidInputIds,
    InvalidRequest,
    NonFiniteValues,
    PromptUnknown,
    TooManyTokens,
)
from pellucid.inference.embedding import normalized
from pellucid.inference.engine import EmbeddingQuery, Embeddings
from pellucid.models.backend import Batch, CaptureSpec
from pellucid.models.fake.backend import FakeBackend, FakeModel, Faults

PROMPTED = FakeModel(prompts={"query": "ask: ", "passage": "text: "})
TEXTS = ["a", "one two three four five six", "hello world", "x y z", "hello hello hello hello"]


def run(
    inputs: Sequence[str | Sequence[int]],
    backend: FakeBackend | FakeModel | None = None,
    *,
    settings: Mapping[str, Any] = {},
    **query: Any,
) -> Embeddings:
    if not isinstance(backend, FakeBackend):
        backend = FakeBackend(backend)
    return embed(
        backend, EmbeddingQuery(inputs=inputs, **query), settings=plain_settings(**settings)
    )


def test_vectors_are_the_backends_in_the_order_sent() -> None:
    backend = FakeBackend()
    found = run(TEXTS, backend, normalize=False)
    for text, vector in zip(TEXTS, found.vectors, strict=True):
        alone = backend.encode(Batch.of([backend.tokenize(text)]))[0]
        np.testing.assert_allclose(vector, alone, atol=1e-6)
    assert found.num_tokens == (3, 8, 4, 5, 6)


@given(
    st.permutations(range(len(TEXTS))),
    st.integers(1, 40),
)
def test_batch_composition_does_not_change_vectors(order: list[int], budget: int) -> None:
    reference = run(TEXTS).vectors
    found = run([TEXTS[index] for index in order], settings={"max_batch_tokens": budget})
    np.testing.assert_allclose(found.vectors, reference[order], atol=1e-6)


def test_the_budget_decides_the_batches() -> None:
    backend = FakeBackend()
    run(TEXTS, backend, settings={"max_batch_tokens": 10_000})
    assert backend.num_forwards == 1
    run(TEXTS, backend, settings={"max_batch_tokens": 1})
    assert backend.num_forwards == 1 + len(TEXTS)


def test_normalised_vectors_have_length_one() -> None:
    vectors = run(TEXTS).vectors
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


def test_a_vector_of_zeros_stays_one() -> None:
    assert normalized(np.zeros((1, 3), dtype=np.float32)).tolist() == [[0.0, 0.0, 0.0]]


def test_tiny_and_huge_vectors_are_normalised_too() -> None:
    vectors = np.array([[1e-30, 1e-30], [1e30, 1e30]], dtype=np.float32)
    np.testing.assert_allclose(normalized(vectors), np.full((2, 2), 0.5**0.5), rtol=1e-6)


def test_dimensions_are_cut_before_they_are_normalised() -> None:
    model = FakeModel(matryoshka_dimensions=(4, 8))
    whole = run(TEXTS, model, normalize=False).vectors
    found = run(TEXTS, model, dimensions=4).vectors
    np.testing.assert_allclose(found, normalized(whole[:, :4]), atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)


def test_native_width_may_be_named() -> None:
    assert run(["a"], dimensions=12).vectors.shape == (1, 12)


@pytest.mark.parametrize(
    ("model", "dimensions", "reason"),
    [
        (FakeModel(), 4, "it was not trained for other widths"),
        (FakeModel(matryoshka_dimensions=(4, 8)), 5, "it was trained for 4, 8"),
        (FakeModel(), 13, "it was not trained for other widths"),
    ],
    ids=["plain", "between", "wider"],
)
def test_other_dimensions_are_refused(model: FakeModel, dimensions: int, reason: str) -> None:
    with pytest.raises(
        DimensionsUnsupported, match=f"gives 12 dimensions, {dimensions} .*{reason}"
    ):
        run(["a"], model, dimensions=dimensions)


def test_truncation_is_told() -> None:
    long = "one two three four five six seven eight"
    model = FakeModel(max_embedding_tokens=6)
    found = run(["one two", long], model)
    assert (found.truncated, found.num_tokens) == ((False, True), (4, 6))
    with pytest.raises(TooManyTokens, match=r"inputs\[1\] has 10 tokens"):
        run(["one two", long], model, truncate="error")
    front, back = (run([long], model, truncate=end).vectors for end in ("end", "start"))
    assert np.abs(front - back).max() > 0.01


def test_prompts_by_kind_and_by_name() -> None:
    plain = run(["cat"], PROMPTED).vectors
    query = run(["cat"], PROMPTED, input_type="query").vectors
    document = run(["cat"], PROMPTED, input_type="document").vectors
    np.testing.assert_array_equal(query, run(["ask: cat"], PROMPTED).vectors)
    np.testing.assert_array_equal(document, run(["text: cat"], PROMPTED).vectors)
    np.testing.assert_array_equal(query, run(["cat"], PROMPTED, prompt_name="query").vectors)
    assert np.abs(plain - query).max() > 0.01


def test_an_unknown_prompt_is_refused_with_those_known() -> None:
    with pytest.raises(PromptUnknown, match="passage, query"):
        run(["cat"], PROMPTED, prompt_name="title")


def test_ids_are_embedded_as_they_are() -> None:
    backend = FakeBackend()
    ids = backend.tokenize("hello world").input_ids.tolist()
    found = run([ids, "hello world"], backend)
    np.testing.assert_allclose(found.vectors[0], found.vectors[1], atol=1e-6)
    assert found.num_tokens == (4, 4)


def test_ids_are_cut_and_checked_like_text() -> None:
    model = FakeModel(max_embedding_tokens=3)
    assert run([[5, 6, 7, 8]], model).truncated == (True,)
    with pytest.raises(TooManyTokens, match=r"inputs\[0\] has 4"):
        run([[5, 6, 7, 8]], model, truncate="error")
    with pytest.raises(InvalidInputIds, match="97"):
        run([[5, 97]])


def test_ids_take_no_prompt() -> None:
    with pytest.raises(InvalidRequest, match=r"inputs\[1\]"):
        run(["cat", [5]], PROMPTED, input_type="query")


def test_an_error_names_the_input() -> None:
    with pytest.raises(EmptyText, match=r"inputs\[1\]"):
        run(["a", " "])


def test_nothing_in_nothing_out() -> None:
    assert run([]).vectors.shape == (0, 12)


def test_vectors_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(NonFiniteValues, match=r"inputs\[0\]"):
        run(["a"], FakeBackend(faults=Faults(nan=True)))


def test_the_embedding_is_the_pooled_vector_of_an_inspection() -> None:
    backend = FakeBackend()
    batch = Batch.of([backend.tokenize("hello world")])
    pooled = backend.inspect(batch, CaptureSpec(pooled=True)).pooled
    assert pooled is not None
    np.testing.assert_array_equal(run(["hello world"], normalize=False).vectors, pooled)
