"""How fast texts become vectors, and what the server takes for it, against targets and peers.

Everything runs in one go, side by side and in turns, so that the drift of a shared machine touches
all alike; quote the ratios. A table, and a JSON file in ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from traceback import print_exception

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from benchmarks.bulk_speed import bulk_rows
from benchmarks.contenders import Contenders, embedding_info
from benchmarks.footprint import flat_memory_row, load_row, start_and_memory_rows
from benchmarks.http_client import ConnectionLost
from benchmarks.results import RESULTS_DIR, write_results
from benchmarks.servers import pellucid
from benchmarks.single_speed import busy_rows, single_rows
from benchmarks.sizes import SIZES, Size
from benchmarks.targets import PARTS, TARGETS, Row, not_measured
from benchmarks.texts import long_texts, short_texts
from pellucid.models.sources.default_encoder import DefaultEncoder

_MAX_TOKENS = 256  # all-MiniLM-L6-v2 cuts there
_MET = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}


def measure(
    size: Size, parts: Sequence[str], data_dir: Path, console: Console
) -> tuple[list[Row], dict[str, object]]:
    """The rows of these parts, and what took part."""
    with pellucid(data_dir) as first:  # makes and keeps the graph
        taking_part: dict[str, object] = {
            "first_start_s": round(first.ready_s, 2),
            "embedding": embedding_info(first),
        }
    rows: list[Row] = []
    with ExitStack() as stack:
        contenders = Contenders(stack, data_dir)
        taking_part["peers"] = contenders.versions_of_peers()
        beside_others: dict[str, Callable[[], list[Row]]] = {
            "bulk": lambda: bulk_rows(contenders, size),
            "single": lambda: single_rows(contenders, size),
            "busy": lambda: busy_rows(contenders, size),
        }
        rows += _measured(beside_others, parts, console)
    alone: dict[str, Callable[[], list[Row]]] = {
        "start": lambda: start_and_memory_rows(data_dir, size),
        "load": lambda: [load_row(data_dir, size)],
        "soak": lambda: [flat_memory_row(data_dir, size)],
    }
    rows += _measured(alone, parts, console)
    return rows, taking_part


def _measured(
    measurements: Mapping[str, Callable[[], list[Row]]], parts: Sequence[str], console: Console
) -> list[Row]:
    """Shown as they come: a long run tells early. One that fails does not take the others along."""
    rows: list[Row] = []
    for part, measurement in measurements.items():
        if part not in parts:
            continue
        try:
            found = measurement()
        except (RuntimeError, OSError, ConnectionLost) as error:
            print_exception(error)
            reason = f"{type(error).__name__}: {error}"
            found = [
                not_measured(each.name, reason) for each in TARGETS.values() if each.part == part
            ]
        show(found, console)
        rows += found
    return rows


def mean_tokens(texts: Sequence[str]) -> float:
    """As the model's tokenizer counts them, cut where the model cuts."""
    path = DefaultEncoder().checked_folder() / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(_MAX_TOKENS)
    return float(np.mean([len(each.ids) for each in tokenizer.encode_batch(list(texts))]))


def show(rows: Sequence[Row], console: Console) -> None:
    table = Table("figure", "target", "found", "least - most", "")
    for row in rows:
        if row.found is None:
            table.add_row(row.target.figure, row.target.text, row.note, "", "")
            continue
        spread = f"{row.least:.4g} - {row.most:.4g}" if row.least != row.most else ""
        found = f"{row.found:.4g} {row.target.unit}"
        table.add_row(row.target.figure, row.target.text, found, spread, _MET[row.is_met])
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="standard")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--suite", default="embedding", help="name in the result's file name")
    parser.add_argument("--results", type=Path, default=RESULTS_DIR, help="folder for the JSON")
    given = parser.parse_args()
    size = SIZES[given.size]
    console = Console(file=sys.stdout, width=120)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as data_dir:
        rows, taking_part = measure(size, given.parts, Path(data_dir), console)
    path = write_results(
        given.suite,
        size.name,
        rows,
        directory=given.results,
        seconds=round(time.perf_counter() - started),
        model="sentence-transformers/all-MiniLM-L6-v2",
        texts={
            name: {"count": len(texts), "mean_tokens": round(mean_tokens(texts), 1)}
            for name, texts in (("short", short_texts()), ("long", long_texts()))
        },
        **taking_part,
    )
    missed = sum(row.is_met is False for row in rows)
    unknown = sum(row.found is None for row in rows)
    console.print(f"{missed} missed, {unknown} not measured; {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
