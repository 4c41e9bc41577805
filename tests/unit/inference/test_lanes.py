"""The order of embedding requests within one lane."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pellucid.inference.embedding_job import EmbeddingJob
from pellucid.inference.lanes import Lane
from pellucid.models.backend import EmbeddingInput


def job_of(*lengths: int) -> EmbeddingJob:
    job = EmbeddingJob("bulk", future=None, on_done=lambda: None, stops_at_error=True)
    job.give(
        [
            EmbeddingInput(input_ids=np.zeros(n, dtype=np.int64), num_tokens_untruncated=n)
            for n in lengths
        ]
    )
    return job


def lane_of(*jobs: EmbeddingJob) -> Lane:
    lane = Lane("bulk")
    for job in jobs:
        lane.add(job)
    return lane


def lengths(lane: Lane, *, max_tokens: int = 1_000) -> list[int]:
    return [given.input_ids.size for given in lane.next_batch(max_tokens=max_tokens).inputs]


def test_the_oldest_request_leads_and_others_fill_its_batch() -> None:
    old, new = job_of(30, 500), job_of(490, 28, 30)
    lane = lane_of(old, new)
    assert lengths(lane) == [500]  # 490 would not fit into 1000 tokens with it, padded to 512
    assert lengths(lane) == [30, 28, 30]
    assert lengths(lane) == [490]
    assert not lane.has_inputs


def test_a_lane_counts_the_tokens_that_wait() -> None:
    job = job_of(30, 500)
    lane = lane_of(job)
    assert (lane.waiting_tokens, job.is_waiting) == (530, True)
    lengths(lane)
    assert (lane.waiting_tokens, job.is_waiting) == (30, True)
    lengths(lane)
    assert (lane.waiting_tokens, job.is_waiting) == (0, False)


def test_a_request_that_is_gone_runs_no_more() -> None:
    gone, stays = job_of(30, 30), job_of(30)
    lane = lane_of(gone, stays)
    lane.discard(gone)
    gone.close()
    assert lane.waiting_tokens == 30
    batch = lane.next_batch(max_tokens=1_000)
    assert [job for job, _ in batch.pieces] == [stays]
    assert not gone.inputs  # nor are they kept in memory
    assert not lane.has_inputs


def test_requests_that_are_gone_take_no_memory() -> None:
    lane = lane_of(job_of(500))
    for _ in range(200):
        gone = job_of(*[8] * 100)
        lane.add(gone)
        lane.discard(gone)
        gone.close()
    assert lane._inputs.num_entries < 3_000


def test_waits_are_told_once_per_request() -> None:
    lane = lane_of(job_of(30, 500), job_of(30))
    waits = [len(lane.next_batch(max_tokens=1_000).waits) for _ in range(2)]
    assert waits == [1, 1]


@given(
    st.lists(st.lists(st.integers(1, 600), min_size=1, max_size=6), min_size=1, max_size=12),
    st.integers(8, 1_200),
)
def test_every_input_runs_once_and_the_oldest_is_always_served(
    requests: list[list[int]], budget: int
) -> None:
    jobs = [job_of(*given) for given in requests]
    lane, ran = lane_of(*jobs), []
    while lane.has_inputs:
        oldest = next(job for job in jobs if job.is_waiting)
        batch = lane.next_batch(max_tokens=budget)
        assert oldest in [job for job, _ in batch.pieces]
        ran += [(id(job), index) for job, index in batch.pieces]
    assert sorted(ran) == sorted((id(job), i) for job in jobs for i in range(len(job.inputs)))
