"""``pellucid serve``: one server process, with progress on stdout for whoever started it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pellucid import listening
from pellucid.cli.options import (
    DataDir,
    Device,
    Host,
    LogLevel,
    Model,
    Port,
    Revision,
    export_flags,
    settings_from,
)
from pellucid.errors import PellucidError
from pellucid.progress import ProgressEvent
from pellucid.settings import Settings
from pellucid.stdout import reserve_stdout

if TYPE_CHECKING:
    import socket

    from pellucid.cli.announcement import Announcement


def serve(
    *,
    host: Host = None,
    port: Port = None,
    model: Model = None,
    revision: Revision = None,
    data_dir: DataDir = None,
    device: Device = None,
    log_level: LogLevel = None,
    exit_with_parent: Annotated[
        bool,
        typer.Option(
            "--exit-with-parent", help="End when the process that started this one is gone."
        ),
    ] = False,
    reload: Annotated[
        bool,
        typer.Option(
            "--reload", help="Start again when Pellucid's own code changes (development)."
        ),
    ] = False,
) -> None:
    """Start the server.

    On a terminal it says where it listens. Started by another process, stdout carries only
    PROGRESS:{json} lines. A token comes from PELLUCID_AUTH_TOKEN, never from an argument.
    """
    flags = {
        "host": host,
        "port": port,
        "model": model,
        "revision": revision,
        "data_dir": data_dir,
        "device": device,
        "log_level": log_level,
    }
    if reload:
        export_flags(**flags)
        _serve_with_reload(settings_from())
        return
    from pellucid.cli.announcement import announcement_on

    announcement = announcement_on(reserve_stdout())
    try:
        settings = settings_from(**flags)
        listener = listening.bind(settings.host, settings.port)
    except PellucidError as error:
        announcement(ProgressEvent("error", {"code": error.code, "message": error.detail}))
        announcement.close()
        raise
    _run(settings, listener, announcement, exit_with_parent=exit_with_parent)


def _run(
    settings: Settings,
    listener: socket.socket,
    announcement: Announcement,
    *,
    exit_with_parent: bool = False,
) -> None:
    # Slow to import; the port is bound by now and early callers wait in its backlog.
    from pellucid.cli.server import run_server

    run_server(settings, listener, announcement, exit_with_parent=exit_with_parent)


def _serve_with_reload(settings: Settings) -> None:
    import uvicorn
    from uvicorn.supervisors import ChangeReload

    listener = listening.bind(settings.host, settings.port)
    watched = str(Path(__file__).resolve().parent.parent)
    # uvicorn reloads only what it knows by name; the process itself starts at serve_reloaded.
    config = uvicorn.Config(
        "pellucid.api.app:create_app", reload=True, reload_dirs=[watched], log_config=None
    )
    ChangeReload(config, target=serve_reloaded, sockets=[listener]).run()


def serve_reloaded(sockets: list[socket.socket] | None = None) -> None:
    """What each process of ``--reload`` runs; its flags came through the environment."""
    from pellucid.cli.announcement import announcement_on

    assert sockets, "the reloader hands over the bound socket"
    _run(settings_from(), sockets[0], announcement_on(reserve_stdout()))
