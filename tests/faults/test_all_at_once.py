"""Every kind of fault, in any order, while clients come and go: no answer is lost or another's."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import httpx

from faults.conftest import EMBEDDINGS, FaultyServer, assert_problem, assert_vectors
from wire import Connection, asked, request_of

FAULTS: list[dict[str, object]] = [
    {},
    {"delay_s": 0.005},
    {"raises": "RuntimeError", "only_with": "poison"},
    {"raises": "RuntimeError"},
    {"nan": "unless_exact"},
    {"nan": "always", "only_with": "poison"},
    {"max_tokens": 80},
    {"hangs": True, "only_with": "poison"},
    {"dies": True},
    {"load_s": 0.05},
]
PROMISED = {
    "internal_error": 500,
    "non_finite_values": 422,
    "worker_replaced": 503,
    "forward_out_of_memory": 503,
}
NUM_CLIENTS = 12
DURATION_S = 2.5


def test_every_answer_is_its_own_or_says_what_went_wrong(impatient: FaultyServer) -> None:
    chance = random.Random(11)
    told: Counter[str] = Counter()
    port = impatient.server.port
    until = time.monotonic() + DURATION_S

    async def come_and_go(client: int) -> None:
        asked_for = 0
        while time.monotonic() < until:
            texts = [
                f"{chance.choice(['poison', 'client'])} {client} asks for {asked_for + place}"
                for place in range(chance.choice([1, 1, 2, 12]))
            ]
            asked_for += len(texts)
            if chance.random() < 0.1:
                connection = await Connection.open(port)
                await connection.send(request_of(EMBEDDINGS, {"input": texts}))
                connection.leave()
                continue
            check(texts, await asked(port, EMBEDDINGS, {"input": texts}))

    def check(texts: list[str], answer: httpx.Response) -> None:
        if answer.status_code == 200:
            assert_vectors(answer, texts)
            told["answered"] += 1
        else:
            code = answer.json()["code"]
            assert_problem(answer, PROMISED[code], code)
            told[code] += 1

    async def disturb() -> None:
        while time.monotonic() < until:
            for fault in chance.sample(FAULTS, len(FAULTS)):  # or some might never come
                impatient.faults.set(**fault)
                health = await asyncio.to_thread(impatient.client.get, "/health")
                assert health.status_code == 200
                await asyncio.sleep(chance.uniform(0.02, 0.2))
        impatient.faults.clear()

    async def everything() -> None:
        await asyncio.gather(disturb(), *(come_and_go(client) for client in range(NUM_CLIENTS)))

    asyncio.run(everything())
    assert told["answered"] > 100, told
    assert told["internal_error"], told
    assert told["worker_replaced"], told
    impatient.require_sound(within_s=5)
