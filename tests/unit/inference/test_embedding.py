"""One embedding request in the model's thread, on fake models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

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


# ----------------------------------------------------------------------- errors of single inputs


def test_bad_inputs_are_reported_beside_the_vectors_of_the_others() -> None:
    long = "one two three four five six seven eight"
    model = FakeModel(max_embedding_tokens=6)
    inputs = ["fine", " ", [5, 97], [5, 6], long]
    found = run(inputs, model, on_error="report", truncate="error")
    kinds = {index: type(error) for index, error in found.errors.items()}
    assert kinds == {1: EmptyText, 2: InvalidInputIds, 4: TooManyTokens}
    assert [error.facts["field"] for error in found.errors.values()] == [
        f"inputs[{index}]" for index in found.errors
    ]
    assert found.vectors.any(axis=1).tolist() == [True, False, False, True, False]
    assert found.num_tokens == (3, 0, 0, 2, 0)
    for index in (0, 3):
        alone = run([inputs[index]], model)
        np.testing.assert_allclose(found.vectors[index], alone.vectors[0], atol=1e-6)


def test_nothing_but_bad_inputs_is_still_an_answer() -> None:
    found = run([" "], on_error="report")
    assert (found.vectors.tolist(), set(found.errors)) == ([[0.0] * 12], {0})


def test_a_bad_vector_is_the_error_of_its_input() -> None:
    backend = FakeBackend(FakeModel(vocab_size=10_000), faults=Faults(nan=True))
    backend.faults.only_with = backend.token_id_of("evil")
    with pytest.raises(NonFiniteValues, match=r"the embedding of texts\[1\]"):
        run(["good", "evil"], backend, input_name="texts[{index}]")
    found = run(["good", "evil"], backend, on_error="report")
    assert found.errors[1].facts["where"] == "the embedding of inputs[1]"
    assert found.vectors.any(axis=1).tolist() == [True, False]
    assert np.isfinite(found.vectors).all()


# ---------------------------------------------------------------------------- texts in pieces


def test_a_long_text_is_the_mean_of_its_pieces_by_their_tokens() -> None:
    model = FakeModel(max_embedding_tokens=6)  # four of the text in each piece
    pieces = ["one two three four", "five six seven eight", "nine"]
    found = run(["short", " ".join(pieces)], model, truncate="chunk", normalize=False)
    of_pieces = run(pieces, model, normalize=False).vectors
    expected = (4 * of_pieces[0] + 4 * of_pieces[1] + of_pieces[2]) / 9
    np.testing.assert_allclose(found.vectors[1], expected, atol=1e-6)
    np.testing.assert_allclose(
        found.vectors[0], run(["short"], normalize=False).vectors[0], atol=1e-6
    )
    assert (found.num_chunks, found.num_tokens) == ((1, 3), (3, 6 + 6 + 3))
    assert found.truncated == (False, False)
    unit = run([" ".join(pieces)], model, truncate="chunk").vectors
    np.testing.assert_allclose(unit, normalized(expected[None]), atol=1e-6)


def test_every_piece_has_the_prompt_which_weighs_nothing() -> None:
    model = FakeModel(max_embedding_tokens=8, prompts={"query": "ask: "})
    found = run(["one two three four five six"], model, truncate="chunk", input_type="query")
    assert found.num_chunks == (2,)
    pieces = run(
        ["one two three four", "five six"], model, input_type="query", normalize=False
    ).vectors
    expected = normalized(((4 * pieces[0] + 2 * pieces[1]) / 6)[None])
    np.testing.assert_allclose(found.vectors, expected, atol=1e-6)


def test_ids_are_read_in_pieces_too() -> None:
    model = FakeModel(max_embedding_tokens=4)
    found = run([[5, 6, 7, 8, 9, 10]], model, truncate="chunk", normalize=False)
    pieces = run([[5, 6, 7, 8], [9, 10]], model, normalize=False).vectors
    np.testing.assert_allclose(found.vectors[0], (4 * pieces[0] + 2 * pieces[1]) / 6, atol=1e-6)
    assert (found.num_chunks, found.num_tokens, found.truncated) == ((2,), (6,), (False,))


def test_a_bad_piece_is_the_error_of_its_text() -> None:
    backend = FakeBackend(
        FakeModel(vocab_size=10_000, max_embedding_tokens=4), faults=Faults(nan=True)
    )
    backend.faults.only_with = backend.token_id_of("evil")
    found = run(["a b c d e", "f g h evil"], backend, truncate="chunk", on_error="report")
    assert set(found.errors) == {1}
    assert found.vectors.any(axis=1).tolist() == [True, False]
