"""Many connections that ask at once, and check every answer.

A connection sends, waits, checks, sends again (a closed loop), until the time or the requests are
spent. What can go wrong has a name each: ``lost`` (no complete answer), ``server_error`` (5xx),
``wrong`` (not the answer to this request), ``refused`` (429 with Retry-After: no failure, and the
connection waits as told).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httptools

from benchmarks.alternating import percentiles_ms
from benchmarks.http_client import AsyncConnection, ConnectionLost, Reply

_TIMEOUT_S = 60.0
_PAUSE_AFTER_LOSS_S = 0.1  # a server that is gone is not asked in a tight loop
_COMPLAINTS = 20  # kept in words; all are counted
_LONGEST_LEAVE_S = 0.05


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, and what is wrong with an answer to it (None = nothing)."""

    request: bytes
    complaint: Callable[[Reply], str | None]


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests of one kind, and how often one of them is sent."""

    name: str
    weight: float
    exchanges: Sequence[Exchange]
    leaves: bool = False  # the client goes away before the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadShape:
    """How many connections for how long; they come one by one during ``ramp_s``."""

    connections: int
    seconds: float = float("inf")
    requests: float = float("inf")
    ramp_s: float = 0.0
    seed: int = 0


@dataclass(slots=True)
class LoadSummary:
    """What happened. ``num_failures`` 0 is what every run must end with."""

    seconds: float = 0.0
    generator_cpu_s: float = 0.0  # of this process: what the server did not get
    sent: Counter[str] = field(default_factory=Counter)  # by kind; those that left not counted
    answered: Counter[str] = field(default_factory=Counter)
    left: int = 0
    refused: int = 0
    lost: int = 0
    server_errors: int = 0
    wrong: int = 0
    complaints: list[str] = field(default_factory=list)
    latencies_s: dict[str, list[float]] = field(default_factory=dict)

    @property
    def num_failures(self) -> int:
        unaccounted = self.sent.total() - self.answered.total() - self.refused - self.lost
        return self.lost + self.server_errors + self.wrong + abs(unaccounted)

    @property
    def requests_per_s(self) -> float:
        return self.answered.total() / self.seconds

    def as_json(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 2),
            "requests": self.sent.total(),
            "answered": self.answered.total(),
            "requests_per_s": round(self.requests_per_s, 1),
            "generator_cpu_share": round(self.generator_cpu_s / self.seconds, 3),
            "left_by_the_client": self.left,
            "refused": self.refused,
            "lost": self.lost,
            "server_errors": self.server_errors,
            "wrong": self.wrong,
            "failures": self.num_failures,
            "complaints": self.complaints,
            "latency": {name: percentiles_ms(each) for name, each in self.latencies_s.items()},
        }

    def complain(self, kind: Kind, complaint: str) -> None:
        if len(self.complaints) < _COMPLAINTS:
            self.complaints.append(f"{kind.name}: {complaint}")


async def generate_load(port: int, kinds: Sequence[Kind], shape: LoadShape) -> LoadSummary:
    """Send until the time or the requests are spent and every answer has come."""
    summary = LoadSummary()
    started, cpu_started = time.perf_counter(), time.process_time()
    numbers = count()

    def may_go_on() -> bool:
        return time.perf_counter() - started < shape.seconds and next(numbers) < shape.requests

    async def connect(number: int) -> None:
        await asyncio.sleep(shape.ramp_s * number / shape.connections)
        draw = random.Random(f"{shape.seed} {number}")
        first = kinds[number % len(kinds)]  # so that each comes once, however short the run
        await _Client(port, kinds, summary, draw).run(first, may_go_on)

    await asyncio.gather(*(connect(number) for number in range(shape.connections)))
    summary.seconds = time.perf_counter() - started
    summary.generator_cpu_s = time.process_time() - cpu_started
    return summary


class _Client:
    """One connection's loop."""

    def __init__(
        self, port: int, kinds: Sequence[Kind], summary: LoadSummary, draw: random.Random
    ) -> None:
        self._port = port
        self._kinds = kinds
        self._weights = [kind.weight for kind in kinds]
        self._summary = summary
        self._draw = draw
        self._connection: AsyncConnection | None = None

    async def run(self, kind: Kind, may_go_on: Callable[[], bool]) -> None:
        try:
            while may_go_on():
                exchange = self._draw.choice(kind.exchanges)
                if kind.leaves:
                    await self._leave(kind, exchange)
                else:
                    await self._ask(kind, exchange)
                (kind,) = self._draw.choices(self._kinds, self._weights)
        finally:
            self._close()

    async def _ask(self, kind: Kind, exchange: Exchange) -> None:
        summary = self._summary
        summary.sent[kind.name] += 1
        try:
            connection = await self._open()
            reply = await connection.exchange(exchange.request, timeout_s=_TIMEOUT_S)
        except (ConnectionLost, TimeoutError, OSError, httptools.HttpParserError) as error:
            summary.lost += 1
            summary.complain(kind, repr(error))
            self._close()
            await asyncio.sleep(_PAUSE_AFTER_LOSS_S)
            return
        if reply.headers.get(b"connection") == b"close":
            self._close()
        if reply.status == 429 and b"retry-after" in reply.headers:
            summary.refused += 1
            await asyncio.sleep(float(reply.headers[b"retry-after"]))
            return
        summary.answered[kind.name] += 1
        summary.latencies_s.setdefault(kind.name, []).append(reply.seconds)
        if reply.status >= 500:
            summary.server_errors += 1
            summary.complain(kind, f"status {reply.status}: {reply.body[:200]!r}")
        elif complaint := exchange.complaint(reply):
            summary.wrong += 1
            summary.complain(kind, complaint)

    async def _leave(self, kind: Kind, exchange: Exchange) -> None:
        """Send, go away a moment later, and come back on a new connection."""
        try:
            (await self._open()).send(exchange.request)
        except (ConnectionLost, OSError) as error:
            self._summary.lost += 1
            self._summary.complain(kind, repr(error))
        await asyncio.sleep(self._draw.random() * _LONGEST_LEAVE_S)
        self._close()
        self._summary.left += 1

    async def _open(self) -> AsyncConnection:
        if self._connection is None:
            self._connection = await AsyncConnection.open(self._port)
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
