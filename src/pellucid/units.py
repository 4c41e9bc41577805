"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping


def rounded_ms(timing: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds to the microsecond: what a clock tells beyond that is noise."""
    return {name: round(value, 3) for name, value in timing.items()}


def format_bytes(count: int) -> str:
    """Bytes with a decimal unit, as disks and downloads are labelled: 6000000000 -> '6.0 GB'."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{int(value)} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
