"""What a person waits for: a bar while a model comes down, a spinner while it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pellucid.progress import ProgressEvent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.status import Status


class DownloadBar:
    """A progress listener; nothing is drawn where the console is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._spinner: Status | None = None

    def __call__(self, event: ProgressEvent) -> None:
        if event.type == "model_cached":
            self._spin(f"loading {event.data['model']}")
        elif event.type == "model_converting":
            self._spin(f"converting {event.data['model']} for OpenVINO, once")
        elif event.type == "download_started":
            self._open(event.data["model"])
        elif event.type == "download_progress" and self._progress and self._task is not None:
            self._progress.update(
                self._task, completed=event.data["bytes"], total=event.data["total"]
            )

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def _spin(self, what: str) -> None:
        from rich.text import Text

        self.close()
        self._spinner = self._console.status(Text(what))
        self._spinner.start()

    def _open(self, model: str) -> None:
        from rich.markup import escape  # a folder's name may look like markup
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self.close()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(escape(model), total=None)
        self._progress.start()
