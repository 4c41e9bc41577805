"""``pellucid openapi``: the API's own description."""

from __future__ import annotations

from pellucid.stdout import reserve_stdout


def openapi() -> None:
    """Print the OpenAPI document."""
    stdout = reserve_stdout()
    from pellucid.api.openapi import openapi_text

    stdout.write(openapi_text())
    stdout.flush()
