"""All attention of one text over HTTP: Pellucid against a plain service, in one run.

Both servers run side by side on this machine and are asked in turn, so that its drift touches both
alike. Printed: a table, then one JSON line for each figure. Quote the ratios.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import orjson
import safetensors.numpy
from rich.console import Console
from rich.table import Table

from benchmarks.machine import facts
from benchmarks.servers import Answer, Server, pellucid, plain_service
from pellucid.models.sources.default_encoder import DefaultEncoder

# 11 WordPiece tokens for all-MiniLM-L6-v2; [CLS] and [SEP] make two more a text.
SENTENCE = "The small boat sails past the old stone harbour today. "
TEXTS = {13: SENTENCE, 112: SENTENCE * 10, 465: SENTENCE * 42 + "Yes"}
PLAIN_ROUNDS = 3
ROUNDS = 9
SAFETENSORS = "application/vnd.safetensors"


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    ask: Callable[[str], Answer]
    rounds: int


def contenders(plain: Server, ours: Server) -> list[Contender]:
    """The yardstick first."""
    return [
        Contender("plain /process", lambda t: plain.post("/process", {"text": t}), PLAIN_ROUNDS),
        Contender(
            "pellucid /process",
            lambda t: ours.post("/process", {"text": t, "do_pca": True}),
            PLAIN_ROUNDS,
        ),
        Contender(
            "pellucid /v1/inspections uint8 safetensors",
            lambda t: ours.post(
                "/v1/inspections",
                {"text": t, "include": ["attentions"], "dtype": "uint8"},
                accept=SAFETENSORS,
            ),
            ROUNDS,
        ),
        Contender(
            "the same with statistics",
            lambda t: ours.post(
                "/v1/inspections", {"text": t, "dtype": "uint8"}, accept=SAFETENSORS
            ),
            ROUNDS,
        ),
    ]


def measure(contender: Contender, text: str) -> tuple[float, int]:
    """Median seconds over the rounds (one warm-up first) and bytes of the answer."""
    contender.ask(text)
    answers = [contender.ask(text) for _ in range(contender.rounds)]
    return statistics.median(answer.seconds for answer in answers), len(answers[0].body)


def check_same_numbers(plain: Server, ours: Server, text: str) -> float:
    """Largest difference between the two services' attention; both must see the same model."""
    import numpy as np

    theirs = np.array(json.loads(plain.post("/process", {"text": text}).body)["attention"])
    full = np.array(orjson.loads(ours.post("/process", {"text": text}).body)["attention"])
    body = {"text": text, "include": ["attentions"], "dtype": "uint8"}
    packed = safetensors.numpy.load(ours.post("/v1/inspections", body, accept=SAFETENSORS).body)
    if np.abs(packed["attentions"] / 255 - theirs).max() > 1 / 510 + 1e-4:
        raise RuntimeError("uint8 attention differs from the plain service's")
    difference = float(np.abs(full - theirs).max())
    if difference > 1e-4:
        raise RuntimeError(f"attention differs from the plain service's by {difference}")
    return difference


def main() -> None:
    console = Console(file=sys.stdout, width=110)
    table = Table("tokens", "answer of", "seconds", "times faster", "MB", "times smaller")
    lines = []
    with plain_service(str(DefaultEncoder().checked_folder())) as plain, pellucid() as ours:
        difference = check_same_numbers(plain, ours, SENTENCE * 10)
        for tokens, text in TEXTS.items():
            baseline: tuple[float, int] | None = None
            for contender in contenders(plain, ours):
                seconds, size = measure(contender, text)
                baseline = baseline or (seconds, size)
                faster, smaller = baseline[0] / seconds, baseline[1] / size
                table.add_row(
                    str(tokens),
                    contender.name,
                    f"{seconds:.4f}",
                    f"{faster:.1f}",
                    f"{size / 1e6:.2f}",
                    f"{smaller:.1f}",
                )
                lines.append(
                    {
                        "benchmark": "attention_over_http",
                        "contender": contender.name,
                        "tokens": tokens,
                        "seconds": round(seconds, 5),
                        "answer_bytes": size,
                        "times_faster": round(faster, 2),
                        "times_smaller": round(smaller, 2),
                        "rounds": contender.rounds,
                        "max_difference": difference,
                        **facts(),
                    }
                )
    console.print(table)
    for line in lines:
        print(orjson.dumps(line).decode())


if __name__ == "__main__":
    main()
