"""How ``serve`` tells its progress: lines for a parent process, sentences for a person."""

from __future__ import annotations

import sys
from typing import Any, Protocol, TextIO

from pellucid.listening import base_url
from pellucid.progress import ProgressEvent, ProgressLines


class Announcement(Protocol):
    """A progress listener that can be closed, and can be told a secret once."""

    def __call__(self, event: ProgressEvent) -> None: ...

    def show_token(self, token: str) -> None: ...

    def close(self) -> None: ...


def announcement_on(stdout: TextIO) -> Announcement:
    """Sentences where a person reads, else ``PROGRESS:`` lines and nothing besides."""
    return TerminalAnnouncement(stdout) if stdout.isatty() else LineAnnouncement(stdout)


class LineAnnouncement:
    """Contract lines on stdout; everything else, the token included, on stderr."""

    def __init__(self, stdout: TextIO) -> None:
        self._lines = ProgressLines(stdout.fileno())

    def __call__(self, event: ProgressEvent) -> None:
        if event.type != "model_converting":  # no word of the contract; GET /ready has it
            self._lines(event)

    def show_token(self, token: str) -> None:
        sys.stderr.write(_token_sentence(token) + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        self._lines.close()


class TerminalAnnouncement:
    """What happens, in sentences, with a bar while a model comes down."""

    def __init__(self, stdout: TextIO) -> None:
        from rich.console import Console

        from pellucid.cli.download_bar import DownloadBar

        self._console = Console(file=stdout, highlight=False)
        self._bar = DownloadBar(self._console)
        self._token: str | None = None

    def __call__(self, event: ProgressEvent) -> None:
        if event.type in ("download_started", "download_progress"):
            self._bar(event)
            return
        self._bar.close()
        for line in self._sentences(event):
            self._console.print(line, soft_wrap=True)  # so that commands can be copied

    def show_token(self, token: str) -> None:
        self._token = token
        self._console.print(_token_sentence(token), markup=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.close()

    def _sentences(self, event: ProgressEvent) -> list[Any]:
        from rich.markup import escape  # a folder's name may look like markup

        data: dict[str, Any] = {
            key: escape(value) if isinstance(value, str) else value
            for key, value in event.data.items()
        }
        match event.type:
            case "model_cached":
                return [f"{data['model']} is on this machine, loading it"]
            case "model_converting":
                lasts = "takes from ten seconds to a few minutes"
                return [f"{data['model']} is converted for OpenVINO, once; that {lasts}"]
            case "model_loaded":
                return [f"[green]ready:[/] {data['model']}, {data['dimensions']} dimensions"]
            case "server_ready":
                return self._first_steps(base_url(data["host"], data["port"]))
            case "error":
                return [f"[red]{data['code']}:[/] {data['message']}"]
            case _:
                return []

    def _first_steps(self, url: str) -> list[str]:
        sign_in = " -H 'Authorization: Bearer TOKEN'" if self._token else ""
        return [
            f"[bold]Pellucid listens on {url}[/]   (Ctrl-C ends it)",
            f"Documentation: {url}/docs",
            "Try:",
            f"  curl -s {url}/v1/inspections{sign_in} "
            """-H 'Content-Type: application/json' -d '{"text": "The cat sat on the mat."}'""",
        ]


def _token_sentence(token: str) -> str:
    return (
        f"Every request needs this token (shown once): {token}\n"
        "Send it as `Authorization: Bearer TOKEN`. Set PELLUCID_AUTH_TOKEN to choose your own."
    )
