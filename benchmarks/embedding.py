"""How fast texts become vectors, and what the server takes for it, against targets and peers.

Everything runs in one go, side by side and in turns, so that the drift of a shared machine touches
all alike; quote the ratios. A table, and a JSON file in ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from benchmarks.bulk_speed import bulk_rows
from benchmarks.contenders import Contenders, embedding_info
from benchmarks.footprint import flat_memory_row, load_row, start_and_memory_rows
from benchmarks.load import ceiling
from benchmarks.results import RESULTS_DIR, write_results
from benchmarks.servers import pellucid
from benchmarks.single_speed import busy_rows, single_rows
from benchmarks.sizes import SIZES, Size
from benchmarks.targets import Row
from benchmarks.texts import long_texts, short_texts
from pellucid.models.sources.default_encoder import DefaultEncoder

_MAX_TOKENS = 256  # all-MiniLM-L6-v2 cuts there
_MET = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}


def measure(size: Size, *, only_peers: bool) -> tuple[list[Row], dict[str, object]]:
    """All rows (or those with peers in them), and what took part."""
    with tempfile.TemporaryDirectory() as data_dir, ExitStack() as stack:
        with pellucid(Path(data_dir)) as first:  # makes and keeps the graph
            taking_part: dict[str, object] = {
                "first_start_s": round(first.ready_s, 2),
                "embedding": embedding_info(first),
            }
        contenders = Contenders(stack, Path(data_dir))
        rows: list[Row] = []
        if not only_peers:
            rows += start_and_memory_rows(Path(data_dir), size)
        parts: list[Callable[[Contenders, Size], list[Row]]] = [bulk_rows, single_rows]
        if not only_peers:
            parts.append(busy_rows)
        for part in parts:
            rows += part(contenders, size)
        taking_part["peers"] = contenders.versions_of_peers()
        stack.close()  # what is idle takes memory still
        if not only_peers:
            taking_part["load_generator_ceiling_per_s"] = round(ceiling(connections=200))
            rows += [load_row(Path(data_dir), size), flat_memory_row(Path(data_dir), size)]
    return rows, taking_part


def mean_tokens(texts: Sequence[str]) -> float:
    """As the model's tokenizer counts them, cut where the model cuts."""
    path = DefaultEncoder().checked_folder() / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(_MAX_TOKENS)
    return float(np.mean([len(each.ids) for each in tokenizer.encode_batch(list(texts))]))


def show(rows: Sequence[Row], console: Console) -> None:
    table = Table("figure", "target", "found", "least - most", "", title="all-MiniLM-L6-v2")
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
    parser.add_argument("--only-peers", action="store_true", help="only rows with peers in them")
    parser.add_argument("--results", type=Path, default=RESULTS_DIR, help="folder for the JSON")
    given = parser.parse_args()
    size = SIZES[given.size]
    rows, taking_part = measure(size, only_peers=given.only_peers)
    path = write_results(
        "peers" if given.only_peers else "embedding",
        rows,
        directory=given.results,
        size=size.name,
        model="sentence-transformers/all-MiniLM-L6-v2",
        texts={
            "short": {"count": len(short_texts()), "mean_tokens": mean_tokens(short_texts())},
            "long": {"count": len(long_texts()), "mean_tokens": mean_tokens(long_texts())},
        },
        **taking_part,
    )
    show(rows, Console(file=sys.stdout, width=120))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
