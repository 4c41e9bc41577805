"""``pellucid inspect``: one text through a model, readable in a terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer

from pellucid.cli.options import AsJson, Device, LogLevel, Model, Revision, settings_from
from pellucid.errors import InvalidText, OutputUnusable
from pellucid.stdout import reserve_stdout

if TYPE_CHECKING:
    from pellucid.inference.engine import Inspection, InspectionQuery
    from pellucid.settings import Settings

_STDIN = "-"


def inspect(
    text: Annotated[str, typer.Argument(help="The text; - reads it from stdin.")],
    *,
    layer: Annotated[int | None, typer.Option(help="Show one layer's rows as a map.")] = None,
    head: Annotated[
        int | None, typer.Option(help="Of that layer one head; left out: the mean of all.")
    ] = None,
    pair: Annotated[str | None, typer.Option(help="Second text, for models of pairs.")] = None,
    target: Annotated[
        str | None,
        typer.Option(help="For encoder-decoder models; left out: what the model generates."),
    ] = None,
    attention: Annotated[
        Literal["encoder", "decoder", "cross"] | None,
        typer.Option(help="Of an encoder-decoder model, which attention to show."),
    ] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut a text too long.")] = False,
    dtype: Annotated[
        Literal["float32", "float16", "uint8"],
        typer.Option(help="Of the tensors that --json and --save write."),
    ] = "float32",
    hidden_states: Annotated[
        bool, typer.Option("--hidden-states", help="Write them too with --json and --save.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write tensors and all else to a .safetensors file.")
    ] = None,
    as_json: AsJson = False,
    model: Model = None,
    revision: Revision = None,
    device: Device = None,
    log_level: LogLevel = None,
) -> None:
    """Show tokens, strongest heads, patterns, and who looks at whom."""
    settings = settings_from(model=model, revision=revision, device=device, log_level=log_level)
    stdout = reserve_stdout()
    if head is not None and layer is None:
        raise typer.BadParameter("a head is one of a layer: add --layer", param_hint="--head")
    if save is not None and not save.parent.is_dir():  # said before the work, not after it
        raise OutputUnusable(
            output=str(save), reason="there is no such folder", suggestion="Make it first."
        )
    import asyncio

    from pellucid.cli.engine_session import quiet_logs
    from pellucid.inference.engine import InspectionQuery

    quiet_logs(settings)
    include = {"attentions", "statistics", "patterns"}
    if hidden_states:
        include.add("hidden_states")
    query = InspectionQuery(
        text=_read(text),
        text_pair=pair,
        target_text=target,
        include=frozenset(include),  # type: ignore[arg-type]
        layers=None if layer is None else (layer,),
        heads=None if head is None else (head,),
        dtype=dtype,
        truncate="end" if truncate else "error",
    )
    inspection = asyncio.run(_inspect(settings, query))
    if save is not None:
        _save(inspection, save, dtype=dtype)
    if as_json:
        _write_json(inspection, stdout, dtype=dtype)
    elif save is None or stdout.isatty() or layer is not None:
        _show(inspection, stdout, attention=attention, as_map=layer is not None)
    if save is not None:
        sys.stderr.write(f"{save}: {', '.join(inspection.tensors)}\n")


def _read(text: str) -> str:
    if text != _STDIN:
        return text
    content = sys.stdin.buffer.read()
    try:
        return content.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        problem = "a byte that is not UTF-8"
        raise InvalidText(field="stdin", problem=problem, position=error.start) from error


async def _inspect(settings: Settings, query: InspectionQuery) -> Inspection:
    from rich.console import Console

    from pellucid.cli.engine_session import engine_session

    # Nothing is embedded, so that no graph needs to be made for it.
    settings = settings.model_copy(update={"embedding_runtime": "torch"})
    async with engine_session(settings, Console(stderr=True)) as engine:
        return await engine.inspect(query)


def _show(inspection: Inspection, stdout: TextIO, *, attention: str | None, as_map: bool) -> None:
    from rich.console import Console

    from pellucid.cli.attention_map import attention_map
    from pellucid.cli.inspection_view import attention_named, overview

    console = Console(file=stdout, highlight=False, markup=False)
    shown = attention_named(inspection, attention)
    parts = [attention_map(shown, width=console.width)] if as_map else overview(inspection, shown)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))  # tables fold, sentences do not
    stdout.flush()


def _write_json(inspection: Inspection, stdout: TextIO, *, dtype: str) -> None:
    from pellucid.api.inspections import inspection_fields
    from pellucid.api.tensors import json_pieces

    fields = inspection_fields(inspection, dtype=dtype)
    arrays = {name: tensor.values for name, tensor in inspection.tensors.items()}
    for piece in json_pieces(fields, arrays):
        stdout.buffer.write(piece)
    stdout.buffer.write(b"\n")
    stdout.buffer.flush()


def _save(inspection: Inspection, path: Path, *, dtype: str) -> None:
    from pellucid.api.inspections import inspection_fields
    from pellucid.api.tensors import safetensors_pieces

    fields = inspection_fields(inspection, dtype=dtype)
    pieces, _ = safetensors_pieces(inspection.tensors, metadata={"inspection": fields})
    aside = path.with_name(path.name + ".new")
    try:
        with aside.open("wb") as content:
            content.writelines(pieces)
        os.replace(aside, path)
    except OSError as error:
        raise OutputUnusable(
            output=str(path),
            reason=error.strerror or str(error),
            suggestion="Name another file with `--save`.",
        ) from error
