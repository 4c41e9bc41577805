"""How long to measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    name: str
    bulk_rounds: int
    single_rounds: int
    calls_per_round: int  # one after another
    busy_s: float
    starts: int
    load_s: float
    soak_requests: int


SIZES = {
    size.name: size
    for size in (
        Size(
            name="quick",
            bulk_rounds=2,
            single_rounds=4,
            calls_per_round=50,
            busy_s=6,
            starts=3,
            load_s=15,
            soak_requests=4_000,
        ),
        Size(
            name="standard",
            bulk_rounds=5,
            single_rounds=10,
            calls_per_round=100,
            busy_s=20,
            starts=5,
            load_s=60,
            soak_requests=20_000,
        ),
        Size(
            name="full",
            bulk_rounds=9,
            single_rounds=20,
            calls_per_round=100,
            busy_s=30,
            starts=9,
            load_s=60,
            soak_requests=100_000,
        ),
    )
}
