"""What is not text: nothing visible, or not Unicode."""

from __future__ import annotations

from pellucid.errors import EmptyText, InvalidText


def check_text(text: str, *, field: str) -> None:
    """Refuse text that is empty or is not Unicode. Raises EmptyText, InvalidText."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidText(field=field, problem="a lone surrogate", position=error.start) from error
    if (position := text.find("\0")) >= 0:
        raise InvalidText(field=field, problem="a NUL character", position=position)
    if not text or text.isspace():
        raise EmptyText(field=field)
