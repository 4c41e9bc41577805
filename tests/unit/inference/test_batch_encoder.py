"""One batch on a backend that fails: who gets a vector, who an error, and at what cost."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest

from pellucid.errors import (
    EmbeddingUnavailable,
    ForwardOutOfMemory,
    InternalError,
    NonFiniteValues,
)
from pellucid.inference.batch_encoder import BatchEncoder, Outcome
from pellucid.models.backend import Batch
from pellucid.models.fake.backend import FakeBackend, FakeModel, Faults
from recorded_events import RecordedEvents

TEXTS = [f"text {number}" for number in range(20)]
MODEL = FakeModel(vocab_size=10_000)  # no two of the words share an id
BAD = 0  # the text that has the word "evil" in it: the last that the halvings come to alone


class Encoder:
    """A batch of texts on a backend with faults, one of the texts with a word of its own."""

    def __init__(self, faults: Faults, *, texts: list[str] | None = None) -> None:
        self.backend = FakeBackend(MODEL, faults=faults)
        self.texts = list(TEXTS) if texts is None else texts
        if texts is None:
            self.texts[BAD] = "evil"
        self.events = RecordedEvents()

    def only_the_bad_one(self) -> Encoder:
        self.backend.faults.only_with = self.backend.token_id_of("evil")
        return self

    def run(self) -> Outcome:
        faults, self.backend.faults = self.backend.faults, Faults()
        inputs = self.backend.tokenize_for_embedding(self.texts)
        self.backend.faults = faults
        return BatchEncoder(self.backend, events=self.events).encode(inputs)

    def expect_right(self, outcome: Outcome, *, but: set[int]) -> None:
        assert set(outcome.errors) == but
        fresh = FakeBackend(MODEL)
        for row, given in enumerate(fresh.tokenize_for_embedding(self.texts)):
            alone = fresh.encode(Batch.of([given]))[0]
            expected = np.zeros_like(alone) if row in but else alone
            np.testing.assert_allclose(outcome.vectors[row], expected, atol=1e-6)


def test_a_sound_batch_is_one_forward_pass() -> None:
    encoder = Encoder(Faults())
    encoder.expect_right(encoder.run(), but=set())
    assert encoder.backend.num_forwards == 1
    assert encoder.events.counts == Counter()


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt("panic")], ids=repr)
def test_one_input_that_raises_fails_alone(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Encoder(Faults(error=error)).only_the_bad_one()
    with caplog.at_level(logging.ERROR):
        outcome = encoder.run()
    encoder.expect_right(outcome, but={BAD})
    assert type(outcome.errors[BAD]) is InternalError
    assert outcome.errors[BAD].__cause__ is error
    assert outcome.blames_model
    assert encoder.backend.num_forwards == 2 * 4 + 1  # 20, 10, 5, 2, 1 and the sound halves
    assert encoder.events.counts["split_for_error"] == 4
    assert encoder.events.counts["input_failed"] == 1
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [error]


def test_a_model_that_always_raises_is_not_tried_with_every_input(
    caplog: pytest.LogCaptureFixture,
) -> None:
    texts = [f"text {number}" for number in range(500)]
    encoder = Encoder(Faults(error=RuntimeError("no")), texts=texts)
    outcome = encoder.run()
    assert set(outcome.errors) == set(range(500))
    assert outcome.blames_model
    assert not outcome.passes
    assert encoder.events.counts["split_for_error"] < 20


def test_an_error_of_the_request_is_not_the_models() -> None:
    unavailable = EmbeddingUnavailable(model_id="fake/tiny", reason="it is a decoder")
    encoder = Encoder(Faults(error=unavailable))
    outcome = encoder.run()
    assert set(outcome.errors.values()) == {unavailable}
    assert not outcome.blames_model
    assert encoder.events.counts["split_for_error"] == 0


def test_short_of_memory_it_is_halved_until_it_fits() -> None:
    encoder = Encoder(Faults(max_tokens=25))
    outcome = encoder.run()
    encoder.expect_right(outcome, but=set())
    assert max(inputs * tokens for inputs, tokens in encoder.backend.batches) <= 25
    assert max(outcome.out_of_memory) == 20 * 4
    assert encoder.events.counts["split_for_memory"] > 0


def test_what_does_not_fit_even_alone_is_told_so() -> None:
    texts = ["short", "one two three four five six seven eight nine"]
    encoder = Encoder(Faults(max_tokens=8), texts=texts)
    outcome = encoder.run()
    encoder.expect_right(outcome, but={1})
    error = outcome.errors[1]
    assert isinstance(error, ForwardOutOfMemory)
    assert error.facts["tokens"] == 11
    assert isinstance(error.__cause__, MemoryError)


def test_rows_that_are_not_numbers_are_computed_again_in_float32() -> None:
    encoder = Encoder(Faults(nan=True, exact_heals=True)).only_the_bad_one()
    encoder.expect_right(encoder.run(), but=set())
    assert encoder.backend.batches[1][0] == 1  # that row alone
    assert encoder.events.counts == Counter(retried_exact=1)


def test_rows_that_stay_without_numbers_fail_alone() -> None:
    encoder = Encoder(Faults(nan=True)).only_the_bad_one()
    outcome = encoder.run()
    encoder.expect_right(outcome, but={BAD})
    assert isinstance(outcome.errors[BAD], NonFiniteValues)
    assert encoder.backend.num_forwards == 2


def test_a_model_without_any_number_has_run_nothing() -> None:
    encoder = Encoder(Faults(nan=True))
    outcome = encoder.run()
    assert set(outcome.errors) == set(range(20))
    assert not outcome.passes
    assert outcome.blames_model


def test_what_nobody_waits_for_is_not_tried_again() -> None:
    backend = FakeBackend(faults=Faults(max_tokens=25))
    inputs = backend.tokenize_for_embedding(TEXTS)
    events = RecordedEvents()
    outcome = BatchEncoder(backend, events=events).encode(inputs, is_wanted=lambda row: row == 3)
    assert outcome.errors == {}
    assert backend.batches[-1][0] == 1
    assert np.flatnonzero(outcome.vectors.any(axis=1)).tolist() == [3]


def test_passes_tell_tokens_with_and_without_padding() -> None:
    encoder = Encoder(Faults(), texts=["one", "one two three"])
    (forward,) = encoder.run().passes
    assert (forward.inputs, forward.tokens, forward.padded_tokens) == (2, 3 + 5, 10)
    assert forward.seconds > 0
