"""The commands, put together. Nothing heavy is imported: ``--help`` answers at once."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pellucid import __version__
from pellucid.cli import doctor, embed, inspect, models, openapi, serve, settings
from pellucid.errors import InvalidInput, PellucidError

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells expect

_LOG = logging.getLogger(__name__)


class _Commands(TyperGroup):
    """Reports our errors as one line with the way out; tracebacks are for ``--log-level debug``."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PellucidError as error:
            _LOG.debug("the command failed", exc_info=True)
            typer.echo(f"pellucid: {error.code}: {_in_flags(error.detail)}", err=True)
            bad_input = isinstance(error, InvalidInput)
            raise typer.Exit(EXIT_BAD_INPUT if bad_input else EXIT_FAILED) from error
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except Exception as error:
            if _is_typers_own(error):
                raise
            _LOG.debug("the command failed", exc_info=True)
            typer.echo(
                f"pellucid: {PellucidError.code}: {type(error).__name__}: {error}\n"
                "This is a defect. `--log-level debug` shows where it happened.",
                err=True,
            )
            raise typer.Exit(EXIT_FAILED) from error


# Ways out speak of a request's fields; at a prompt these are options.
_FLAGS = {
    'send `"truncate": "end"`': "add `--truncate`",
    "Send `target_text`": "Add `--target`",
    "`target_text`": "`--target`",
    "`text_pair`": "`--pair`",
}


def _in_flags(detail: str) -> str:
    for field, flag in _FLAGS.items():
        detail = detail.replace(field, flag)
    return detail


def _is_typers_own(error: Exception) -> bool:
    """Wrong usage, an exit code, an abort, and a reader of stdout that is gone."""
    return isinstance(error, (typer.Abort, BrokenPipeError)) or hasattr(error, "exit_code")


app = typer.Typer(
    cls=_Commands,
    name="pellucid",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help, whose paragraphs wrap
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pellucid {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """See through any transformer: embed text, inspect hidden states and attention."""


app.command("serve")(serve.serve)
app.command("inspect")(inspect.inspect)
app.command("embed")(embed.embed)
app.add_typer(models.app, name="models")
app.command("doctor")(doctor.doctor)
app.command("settings")(settings.settings)
app.command("openapi")(openapi.openapi)
