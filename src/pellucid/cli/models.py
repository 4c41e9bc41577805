"""``pellucid models``: what is on this machine, what another would take, and getting it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from pellucid.cli.options import AsJson, LogLevel, Revision, settings_from
from pellucid.settings import Settings
from pellucid.stdout import reserve_stdout
from pellucid.units import format_bytes

_ASK_SERVER_S = 1.0

app = typer.Typer(help="List models, estimate one before it is fetched, fetch it.")

ModelId = Annotated[str, typer.Argument(help="A name as on the Hub, or a local folder.")]


@app.callback(invoke_without_command=True)
def list_models(ctx: typer.Context, *, as_json: AsJson = False) -> None:
    """List the models on this machine, and what a running server has loaded."""
    if ctx.invoked_subcommand is not None:
        return
    settings = settings_from()
    stdout = reserve_stdout()
    loaded = _loaded_by_server(settings)
    rows = _rows(settings, loaded or {})
    if as_json:
        stdout.write(json.dumps(rows, indent=2) + "\n")
        stdout.flush()
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(file=stdout, highlight=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "revision", "on disk", "state"):
        # A name in one piece can be copied; the state wraps between words.
        table.add_column(heading, overflow="fold", no_wrap=heading != "state")
    for row in rows:
        size = format_bytes(row["size_bytes"]) if row["size_bytes"] is not None else "unknown"
        table.add_row(row["model_id"], (row["revision"] or "")[:12], size, ", ".join(row["state"]))
    console.print(table)
    if loaded is None:
        console.print(f"No server answers on port {settings.port}, so nothing is loaded there.")


@app.command("estimate")
def estimate(
    model_id: ModelId,
    *,
    revision: Revision = None,
    log_level: LogLevel = None,
    as_json: AsJson = False,
) -> None:
    """Say what a model would take, before anything is downloaded."""
    # Whoever types the command is the operator, who may name folders.
    settings = settings_from(model=model_id, revision=revision, log_level=log_level)
    stdout = reserve_stdout()
    from pellucid.models.sources.locator import Locator

    size = Locator.of(settings).estimate()
    fits = size.weights_bytes <= settings.max_model_bytes
    facts = {
        "model_id": size.model_id,
        "revision": size.revision,
        "weights_bytes": size.weights_bytes,
        "download_bytes": size.download_bytes,
        "num_parameters": size.num_parameters,
        "limit_bytes": settings.max_model_bytes,
        "fits": fits,
    }
    if as_json:
        stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        stdout.write(_estimate_sentences(facts))
    stdout.flush()


@app.command("pull")
def pull(model_id: ModelId, *, revision: Revision = None, log_level: LogLevel = None) -> None:
    """Download a model, so that it loads without the network."""
    settings = settings_from(model=model_id, revision=revision, log_level=log_level)
    stdout = reserve_stdout()
    from rich.console import Console

    from pellucid.cli.download_bar import DownloadBar
    from pellucid.models.sources.locator import Locator

    bar = DownloadBar(Console(stderr=True))
    try:
        source = Locator.of(settings).locate(progress=bar)
    finally:
        bar.close()
    verb = "downloaded" if source.origin == "hub" else "already on this machine"
    stdout.write(f"{source.model_id} at {source.revision}: {verb}, {source.folder}\n")
    stdout.flush()


def _estimate_sentences(facts: Mapping[str, Any]) -> str:
    parameters = facts["num_parameters"]
    counted = f", {parameters / 1e6:.1f} million parameters" if parameters else ""
    download = facts["download_bytes"]
    fetch = f"{format_bytes(download)} to download" if download else "nothing to download"
    verdict = "within" if facts["fits"] else "over"
    way_out = "" if facts["fits"] else " Raise `PELLUCID_MAX_MODEL_BYTES`, or choose a smaller one."
    return (
        f"{facts['model_id']} at {facts['revision']}\n"
        f"{format_bytes(facts['weights_bytes'])} of weights{counted}; {fetch}\n"
        f"{verdict} the limit of {format_bytes(facts['limit_bytes'])}.{way_out}\n"
    )


def _rows(settings: Settings, loaded: Mapping[str, str]) -> list[dict[str, Any]]:
    from pellucid.errors import PellucidError
    from pellucid.models.sources.cache_listing import cached_models
    from pellucid.models.sources.locator import Locator

    rows: dict[str, dict[str, Any]] = {}

    def row(model_id: str) -> dict[str, Any]:
        empty: dict[str, Any] = {
            "model_id": model_id,
            "revision": None,
            "size_bytes": None,
            "state": [],
        }
        return rows.setdefault(model_id, empty)

    locator = Locator.of(settings.model_copy(update={"offline": True}))
    default = row(locator.default.model_id)
    default["state"].append("default")
    try:
        size = locator.estimate()
        default |= {"revision": size.revision, "size_bytes": size.weights_bytes}
        default["state"].append("on this machine")
    except PellucidError as error:
        default["state"].append(error.code)
    for cached in cached_models(settings.hub_cache_dir):
        found = row(cached.model_id)
        found["size_bytes"] = found["size_bytes"] or cached.size_bytes
        found["revision"] = found["revision"] or next(iter(cached.revisions), None)
        if "default" not in found["state"]:
            found["state"].append("on this machine" if cached.revisions else "incomplete")
    for model_id, state in loaded.items():
        row(model_id)["state"].append(f"{state} by the server")
    return list(rows.values())


def _loaded_by_server(settings: Settings) -> dict[str, str] | None:
    """What the server on the configured port says; None if none answers as ours does."""
    from urllib.request import Request, urlopen

    from pellucid.listening import base_url

    request = Request(f"{base_url(settings.host, settings.port)}/v1/models")
    if settings.auth_token is not None:
        request.add_header("Authorization", f"Bearer {settings.auth_token.get_secret_value()}")
    try:
        with urlopen(request, timeout=_ASK_SERVER_S) as response:
            listing = json.load(response)
        return {
            model["id"]: model["state"]
            for model in listing["data"]
            if model["state"] in ("loaded", "loading")
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
