"""Rows in, embeddings out, batch by batch; a bad row costs only itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

from pellucid.bulk.rows import InputFile, Row, read_rows
from pellucid.errors import (
    EmptyText,
    InvalidText,
    NonFiniteValues,
    PellucidError,
    TextTooLarge,
    TooManyTokens,
)
from pellucid.inference.engine import EmbeddingQuery, Engine

BATCH_ROWS = 256  # enough to fill token batches sorted by length, little to lose in a kill

# What can be wrong with one text; every other error would meet all rows alike.
_ROW_ERRORS = (EmptyText, InvalidText, TextTooLarge, TooManyTokens, NonFiniteValues)

Record = dict[str, Any]


class ResultSink(Protocol):
    """Where results go. ``append`` gets each row once, in the order of ``index``."""

    def is_settled(self, index: int) -> bool: ...

    def append(
        self, results: Sequence[Mapping[str, Any]], errors: Sequence[Mapping[str, Any]]
    ) -> None: ...


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What one run did."""

    embedded: int = 0
    truncated: int = 0  # of these, cut at the model's limit
    settled_before: int = 0  # by earlier runs
    bad: int = 0


async def embed_files(
    engine: Engine,
    files: Sequence[InputFile],
    sink: ResultSink,
    *,
    query: EmbeddingQuery,
    on_rows: Callable[[int], None] = lambda count: None,
    batch_rows: int = BATCH_ROWS,
) -> Outcome:
    """Embed every row that the sink has not settled; ``query`` says how (its inputs are unused).

    ``on_rows`` hears how many rows are newly settled. Raises what concerns all rows.
    """
    outcome = Outcome()
    for rows in _batches(read_rows(files), batch_rows):
        new = [row for row in rows if not sink.is_settled(row.index)]
        outcome.settled_before += len(rows) - len(new)
        if new:
            results, errors = await _embed_rows(engine, new, query)
            errors += [_unreadable(row) for row in new if row.problem]
            sink.append(results, sorted(errors, key=lambda record: record["index"]))
            outcome.embedded += len(results)
            outcome.truncated += sum(record["truncated"] for record in results)
            outcome.bad += len(errors)
        on_rows(len(rows))
    return outcome


def count_rows(files: Sequence[InputFile]) -> int | None:
    """How many rows there are; None where only reading the stream would tell."""
    if any(file.is_stream for file in files):
        return None
    return sum(1 for _ in read_rows(files))


async def _embed_rows(
    engine: Engine, rows: Sequence[Row], query: EmbeddingQuery
) -> tuple[list[Record], list[Record]]:
    """Results and errors of readable rows; a batch with a bad row is halved until it is found."""
    readable = [row for row in rows if row.problem is None]
    if not readable:
        return [], []
    try:
        embeddings = await engine.embed(replace(query, inputs=[row.text for row in readable]))
    except _ROW_ERRORS as error:
        if len(readable) == 1:
            return [], [_refused(readable[0], error)]
        middle = len(readable) // 2
        first = await _embed_rows(engine, readable[:middle], query)
        second = await _embed_rows(engine, readable[middle:], query)
        return first[0] + second[0], first[1] + second[1]
    results = [
        {
            "index": row.index,
            "file": row.file,
            "line": row.line,
            "embedding": vector,
            "num_tokens": num_tokens,
            "truncated": truncated,
        }
        for row, vector, num_tokens, truncated in zip(
            readable,
            embeddings.vectors,
            embeddings.num_tokens,
            embeddings.truncated,
            strict=True,
        )
    ]
    return results, []


def _unreadable(row: Row) -> Record:
    return {
        "index": row.index,
        "file": row.file,
        "line": row.line,
        "code": "unreadable_row",
        "detail": row.problem,
    }


def _refused(row: Row, error: PellucidError) -> Record:
    # The engine speaks of its inputs; whoever reads this knows files and lines.
    facts = error.facts | {"field": f"{row.file}, line {row.line}"}
    return {
        "index": row.index,
        "file": row.file,
        "line": row.line,
        "code": error.code,
        "detail": type(error)(**facts).detail,
    }


def _batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while batch := list(islice(rows, size)):
        yield batch
