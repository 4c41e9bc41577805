"""``pellucid embed``: files of texts to vectors, resumable."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pellucid.cli.options import Device, LogLevel, Model, Revision, settings_from
from pellucid.errors import OutputUnusable
from pellucid.stdout import reserve_stdout

if TYPE_CHECKING:
    from rich.console import Console

    from pellucid.bulk.job import Outcome, ResultSink
    from pellucid.bulk.output import Output
    from pellucid.bulk.rows import InputFile
    from pellucid.inference.engine import EmbeddingQuery, Engine
    from pellucid.settings import Settings

    BadRows = Sequence[Mapping[str, Any]]
    EmbedInto = Callable[[ResultSink], Awaitable[Outcome]]

EXIT_BAD_ROWS = 3
_STREAM = "-"
_MAX_SHOWN_ERRORS = 20


def embed(
    files: Annotated[
        list[str], typer.Argument(help="Files of texts (.txt, .jsonl, .csv, .tsv); - reads stdin.")
    ],
    *,
    output: Annotated[
        str,
        typer.Option("--output", "-o", help="Where to: a .jsonl or .npz file; - writes stdout."),
    ] = _STREAM,
    field: Annotated[
        str, typer.Option(help="Field or column of the text in JSONL, CSV and TSV.")
    ] = "text",
    format: Annotated[
        Literal["lines", "jsonl", "csv", "tsv"] | None,
        typer.Option(help="How rows are written, where the suffix does not tell."),
    ] = None,
    input_type: Annotated[
        Literal["query", "document"] | None,
        typer.Option(help="For models with a prompt for each."),
    ] = None,
    normalize: Annotated[bool, typer.Option(help="Vectors of length 1.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin the output anew.")] = False,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    log_level: LogLevel = None,
) -> None:
    """Embed every line or row of files.

    A run that was stopped goes on where it was when the same command is given again. Rows that
    cannot be embedded are listed at the end, the others are written; the exit code is then 3.
    """
    settings = settings_from(model=model, revision=revision, device=device, log_level=log_level)
    stdout = reserve_stdout()
    if output == _STREAM and stdout.isatty():
        raise OutputUnusable(
            output="stdout",
            reason="it is a terminal, and vectors are long",
            suggestion="Name a file with `--output vectors.jsonl` (or .npz).",
        )
    import asyncio

    from pellucid.bulk.output import Output
    from pellucid.bulk.rows import InputFile
    from pellucid.cli.engine_session import quiet_logs
    from pellucid.inference.engine import EmbeddingQuery

    query = EmbeddingQuery(inputs=(), normalize=normalize, input_type=input_type, priority="bulk")
    inputs = [InputFile.of(name, field=field, format=format) for name in files]
    quiet_logs(settings)
    target = Output.of(output, inputs=inputs, overwrite=overwrite)
    if asyncio.run(_run(settings, inputs, target, query)):
        raise typer.Exit(EXIT_BAD_ROWS)


async def _run(
    settings: Settings, inputs: Sequence[InputFile], output: Output, query: EmbeddingQuery
) -> int:
    """Returns how many rows have no result."""
    from rich.console import Console

    from pellucid.bulk.job import BATCH_ROWS, count_rows, embed_files
    from pellucid.cli.engine_session import engine_session
    from pellucid.cli.row_bar import row_bar

    num_rows = count_rows(inputs)  # first of all: it finds tables without the column
    console = Console(stderr=True, highlight=False)
    async with engine_session(settings, console) as engine:

        async def embed_into(sink: ResultSink) -> Outcome:
            with row_bar(console, total=num_rows) as on_rows:
                return await embed_files(
                    engine,
                    inputs,
                    sink,
                    query=query,
                    on_rows=on_rows,
                    batch_rows=min(BATCH_ROWS, settings.max_inputs),
                )

        if output.is_stream:
            outcome, bad = await _embed_to_stream(embed_into)
        else:
            outcome, bad = await _embed_to_file(engine, inputs, output, query, embed_into, num_rows)
    _report(console, outcome, bad)
    return len(bad)


async def _embed_to_stream(embed_into: EmbedInto) -> tuple[Outcome, BadRows]:
    from pellucid.bulk.output import StreamSink

    sink = StreamSink(reserve_stdout().buffer)
    return await embed_into(sink), sink.bad


async def _embed_to_file(
    engine: Engine,
    inputs: Sequence[InputFile],
    output: Output,
    query: EmbeddingQuery,
    embed_into: EmbedInto,
    num_rows: int | None,
) -> tuple[Outcome, BadRows]:
    from pellucid.bulk.archive import write_npz
    from pellucid.bulk.job import Outcome
    from pellucid.bulk.journal import JobFacts

    model = await engine.load()
    facts = JobFacts.of(
        inputs,
        model_id=model.model_id,
        revision=model.revision,
        options={"normalize": query.normalize, "input_type": query.input_type},
    )
    journal = output.journal()
    if output.is_whole(journal):
        journal.check_facts(facts)
        return Outcome(settled_before=num_rows or 0), journal.errors()
    journal.begin(facts, overwrite=output.overwrite)
    try:
        outcome = await embed_into(journal)
        bad = journal.errors()
        if output.is_archive:
            write_npz(journal.path, output.path, model_id=model.model_id, revision=model.revision)
            journal.path.unlink()
    finally:
        journal.close()
    return outcome, bad


def _report(console: Console, outcome: Outcome, bad: BadRows) -> None:
    done_before = outcome.settled_before - (len(bad) - outcome.bad)
    parts = [f"{outcome.embedded} embedded"]
    if outcome.truncated:
        parts.append(f"{outcome.truncated} of them cut at the model's limit")
    if done_before:
        parts.append(f"{done_before} done before")
    if bad:
        parts.append(f"{len(bad)} without a result")
    lines = [", ".join(parts)]
    lines += [
        f"  {record['file']}:{record['line']} {record['code']}: {record['detail']}"
        for record in bad[:_MAX_SHOWN_ERRORS]
    ]
    if len(bad) > _MAX_SHOWN_ERRORS:
        lines.append(f"  and {len(bad) - _MAX_SHOWN_ERRORS} more")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
