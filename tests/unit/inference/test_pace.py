"""What a model's batches tell about its speed."""

from __future__ import annotations

import pytest

from pellucid.inference.pace import Pace, retry_after_s


def bulk(pace: Pace, *, tokens: int, seconds: float, budget: int = 1_000, now: float = 0.0) -> None:
    pace.batch_ran(
        now, tokens=tokens, padded_tokens=tokens, seconds=seconds, budget=budget, is_bulk=True
    )


def test_bulk_batches_are_whole_while_nobody_is_in_a_hurry() -> None:
    pace = Pace()
    assert pace.bulk_tokens(1_000, now=5.0) == 1_000
    pace.interactive_came(10.0)
    assert pace.bulk_tokens(1_000, now=10.5) < 1_000
    assert pace.bulk_tokens(1_000, now=12.0) == 1_000


def test_bulk_batches_come_to_take_a_short_time_whatever_a_batch_costs_to_start() -> None:
    pace = Pace()
    pace.interactive_came(0.0)
    for _ in range(60):
        tokens = pace.bulk_tokens(10_000, now=0.1)
        seconds = 0.004 + tokens / 25_000
        bulk(pace, tokens=tokens, seconds=seconds, budget=10_000)
    assert seconds == pytest.approx(0.010, rel=0.05)


def test_a_slow_model_still_gets_something_to_do() -> None:
    pace = Pace()
    pace.interactive_came(0.0)
    bulk(pace, tokens=100, seconds=100.0)
    assert pace.bulk_tokens(1_000, now=0.1) == 32
    assert pace.bulk_tokens(10, now=0.1) == 10


def test_only_full_batches_tell_the_throughput() -> None:
    pace = Pace()
    for _ in range(10):
        bulk(pace, tokens=10, seconds=1.0)
    assert pace.throughput(0.0) is None
    for _ in range(3):
        assert pace.throughput(0.0) is None  # one slow moment is not believed
        bulk(pace, tokens=500, seconds=0.5)
    assert pace.throughput(0.0) == pytest.approx(1_000)
    bulk(pace, tokens=1_000, seconds=0.5)
    assert 1_000 < (pace.throughput(0.0) or 0) < 2_000


def test_an_old_throughput_is_forgotten() -> None:
    pace = Pace()
    for _ in range(3):
        bulk(pace, tokens=500, seconds=0.5, now=100.0)
    assert pace.throughput(150.0) is not None
    assert pace.throughput(161.0) is None
    bulk(pace, tokens=500, seconds=0.5, now=170.0)
    assert pace.throughput(170.0) is not None


@pytest.mark.parametrize(("wait_s", "seconds"), [(None, 1), (0.2, 1), (3.2, 4), (1e9, 60)])
def test_retry_after_is_a_whole_and_reasonable_number(wait_s: float | None, seconds: int) -> None:
    assert retry_after_s(wait_s) == seconds
