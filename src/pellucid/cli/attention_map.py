"""One head's rows as a map of coloured cells with their percentages."""

from __future__ import annotations

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.style import Style
from rich.text import Text

from pellucid.cli.inspection_view import ShownAttention
from pellucid.inference.engine import Token

_CELL_WIDTH = 3
_MAX_LABEL_WIDTH = 14
_MAX_ROWS = 200
# From the page of a terminal to a strong blue; one hue, so that it reads without colour vision.
_RAMP = ((24, 28, 38), (28, 58, 112), (36, 104, 172), (88, 164, 214), (206, 232, 246))


def attention_map(shown: ShownAttention, *, width: int) -> Text:
    """Rows are queries, columns keys, cells percent of the row; blank: below half a percent.

    What does not fit the width is left out, and the last line says so.
    """
    mean = shown.mean()
    labels = [_label(position, token) for position, token in enumerate(shown.queries)]
    label_width = min(_MAX_LABEL_WIDTH, max(cell_len(label) for label in labels))
    num_keys = min(len(shown.keys), max(1, (width - label_width - 1) // _CELL_WIDTH))
    num_rows = min(len(shown.queries), _MAX_ROWS)

    drawing = Text(no_wrap=True)
    drawing.append(f"{_title(shown)}\n\n")
    header = "".join(f"{position % 100:>{_CELL_WIDTH}d}" for position in range(num_keys))
    drawing.append(f"{'':<{label_width}} {header}\n", style="dim")
    for position in range(num_rows):
        drawing.append(set_cell_size(labels[position], label_width) + " ")
        for weight in mean[position, :num_keys]:
            drawing.append(*_cell(float(weight)))
        drawing.append("\n")
    left_out = _left_out(shown, num_rows=num_rows, num_keys=num_keys)
    if left_out:
        drawing.append(f"{left_out}\n", style="dim")
    return drawing


def _title(shown: ShownAttention) -> str:
    layers = ", ".join(map(str, shown.layers))
    if len(shown.heads) == 1:
        heads = f"head {shown.heads[0]}"
    else:
        heads = f"mean of {len(shown.heads)} heads"
    return f"{shown.name}, layer {layers}, {heads}. Rows look at columns; cells are percent."


def _label(position: int, token: Token) -> str:
    visible = token.text.replace("\n", "⏎").replace("\t", "⇥")
    return f"{position:>3} {visible}"


def _cell(weight: float) -> tuple[str, Style]:
    percent = round(weight * 100)
    text = f"{percent:>{_CELL_WIDTH}d}" if percent else " " * _CELL_WIDTH
    red, green, blue = _color(weight)
    ink = "black" if weight > 0.6 else "white"
    return text, Style(color=ink, bgcolor=f"rgb({red},{green},{blue})")


def _color(weight: float) -> tuple[int, int, int]:
    """Along the ramp by the square root, so that small weights can be told apart."""
    place = np.sqrt(min(max(weight, 0.0), 1.0)) * (len(_RAMP) - 1)
    below = min(int(place), len(_RAMP) - 2)
    share = place - below
    low, high = _RAMP[below], _RAMP[below + 1]
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _left_out(shown: ShownAttention, *, num_rows: int, num_keys: int) -> str:
    parts = []
    if num_keys < len(shown.keys):
        parts.append(f"columns {num_keys} to {len(shown.keys) - 1}")
    if num_rows < len(shown.queries):
        parts.append(f"rows {num_rows} to {len(shown.queries) - 1}")
    return (
        f"Left out: {' and '.join(parts)}. A wider terminal or --json shows them." if parts else ""
    )
