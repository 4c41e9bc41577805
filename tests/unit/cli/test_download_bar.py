"""What a person sees while a model comes."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from rich.console import Console

import pellucid.services
from conftest import plain_settings
from pellucid.cli.download_bar import DownloadBar
from pellucid.cli.engine_session import engine_session
from pellucid.errors import ModelOffline
from pellucid.progress import ProgressEvent
from stub_engine import StubEngine

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


def terminal() -> tuple[Console, io.StringIO]:
    screen = io.StringIO()
    return Console(file=screen, force_terminal=True, width=100), screen


@pytest.mark.parametrize("type", ["model_cached", "model_converting", "download_started"])
def test_names_the_model_as_it_is_written(type: Any) -> None:
    console, screen = terminal()
    bar = DownloadBar(console)
    bar(ProgressEvent(type, {"model": "./[red]folder"}))
    bar(ProgressEvent("download_progress", {"bytes": 1, "total": 2, "eta": 1.0}))
    bar.close()
    assert "./[red]folder" in screen.getvalue()


@pytest.mark.parametrize("type", ["model_cached", "model_converting", "download_started"])
def test_draws_nothing_where_no_terminal_is(type: Any) -> None:
    screen = io.StringIO()
    bar = DownloadBar(Console(file=screen))
    bar(ProgressEvent(type, {"model": "m"}))
    bar.close()
    assert screen.getvalue() == ""


class FailingEngine(StubEngine):
    """Begins to download, then cannot."""

    progress: Any = None

    async def load(self, *arguments: Any, **options: Any) -> Any:
        FailingEngine.progress(ProgressEvent("download_started", {"model": "m"}))
        raise ModelOffline(model_id="m")


def test_the_terminal_is_as_before_when_the_model_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(settings: Any, progress: Any, **_: Any) -> FailingEngine:
        FailingEngine.progress = progress
        return FailingEngine()

    monkeypatch.setattr(pellucid.services, "build_engine", build)
    console, screen = terminal()

    async def session() -> None:
        async with engine_session(plain_settings(), console):
            raise AssertionError("there is no model")

    with pytest.raises(ModelOffline):
        asyncio.run(session())
    assert screen.getvalue().rfind(SHOW_CURSOR) > screen.getvalue().rfind(HIDE_CURSOR) >= 0
