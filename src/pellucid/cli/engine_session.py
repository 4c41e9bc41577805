"""An engine for one command, without a server."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pellucid.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from pellucid.inference.engine import Engine


@asynccontextmanager
async def engine_session(settings: Settings, console: Console) -> AsyncIterator[Engine]:
    """The engine that the settings mean, its model loaded, closed at the end.

    ``console`` shows what the wait is for; it is as before when the model is there or cannot be.
    """
    from pellucid.cli.download_bar import DownloadBar
    from pellucid.services import build_services

    bar = DownloadBar(console)
    services = build_services(settings, progress=bar)
    try:
        try:
            await services.engine.load()
        finally:
            bar.close()
        yield services.engine
    finally:
        await services.aclose()


def quiet_logs(settings: Settings) -> None:
    """Warnings only, unless a level was asked for: the answer is what a person reads."""
    from pellucid.telemetry import configure_logs

    asked = "log_level" in settings.model_fields_set
    configure_logs(
        level=settings.log_level if asked else "warning",
        format="text" if settings.log_format == "auto" else settings.log_format,
        categories=settings.log_categories,
    )
    if not asked:
        for handler in logging.getLogger().handlers:
            handler.addFilter(_has_no_traceback)


def _has_no_traceback(record: logging.LogRecord) -> bool:
    """What failed is said once, by the command's last line."""
    return not record.exc_info and not (isinstance(record.msg, dict) and record.msg.get("exc_info"))
