from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from conftest import plain_settings
from pellucid.cli.attention_map import attention_map
from pellucid.cli.inspection_view import attention_named, overview
from pellucid.errors import InvalidRequest
from pellucid.inference.engine import Inspection, InspectionQuery, Tensor
from pellucid.inference.inspection import inspect
from pellucid.models.fake.backend import FakeBackend, FakeModel

TEXT = "the cat sat on the mat and the cat slept"


def inspected(model: FakeModel | None = None, text: str = TEXT, **query: Any) -> Inspection:
    include = frozenset({"attentions", "statistics", "patterns"})
    asked = InspectionQuery(text=text, include=include, **query)  # type: ignore[arg-type]
    return inspect(FakeBackend(model), asked, settings=plain_settings()).inspection


def drawn(*parts: Any, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    for part in parts:
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row_of(page: str, start: str) -> list[str]:
    return next(line for line in page.splitlines() if line.split()[:2] == start.split()).split()


def with_attention(inspection: Inspection, weights: np.ndarray[Any, Any]) -> Inspection:
    axes = ("layer", "head", "query_position", "key_position")
    tensor = Tensor(values=weights.astype(np.float32), axes=axes)
    return replace(inspection, tensors={"attentions": tensor})


def test_says_which_token_looks_at_which() -> None:
    inspection = inspected()
    length = len(inspection.tokens)
    weights = np.zeros((2, 2, length, length))
    weights[..., 0] = 0.25  # on [CLS]
    weights[..., 6] = 0.75
    page = drawn(*overview(inspection, attention_named(with_attention(inspection, weights), None)))
    assert row_of(page, "3 sat")[3:] == ["25%", "mat(6)", "75%"]


def test_the_strongest_head_comes_first_with_its_edge() -> None:
    inspection = inspected()
    length = len(inspection.tokens)
    weights = np.full((2, 2, length, length), 1 / length)
    weights[1, 0] = 0
    weights[1, 0, :, 0] = 1  # rests on [CLS]: strong only by special tokens
    weights[0, 1] = np.roll(np.eye(length), 1, axis=0)
    shown = attention_named(with_attention(inspection, weights), None)
    page = drawn(*overview(inspection, shown))
    lines = page.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("layer")) + 1
    assert lines[first].split()[:3] == ["0", "1", "0.90"]  # the row of token 1 sees [CLS] only
    assert lines[first].split()[-3:] == ["→", "the(1)", "1.00"]
    assert lines[first + 3].split()[:3] == ["1", "0", "0.00"]


def test_patterns_are_named_with_layer_and_head() -> None:
    inspection = inspected()
    pattern = {
        "dominant": [["none", "previous_token"], ["none", "previous_token"]],
        "scores": {"previous_token": [[0.1, 0.7], [0.2, 0.9]]},
    }
    told = replace(inspection, patterns={"attentions": pattern})
    page = drawn(*overview(told, attention_named(told, None)))
    assert row_of(page, "previous token")[2:] == ["1.1", "0.90", "0.1", "0.70"]


def test_many_heads_of_a_pattern_fit_eighty_columns() -> None:
    inspection = inspected()
    length = len(inspection.tokens)
    wide = replace(
        with_attention(inspection, np.full((9, 12, length, length), 1 / length)),
        layers=tuple(range(9)),
        heads=tuple(range(12)),
        patterns={
            "attentions": {
                "dominant": [["previous_token"] * 12] * 9,
                "scores": {"previous_token": [[0.9] * 12] * 9},
            }
        },
        statistics=None,
    )
    model = replace(wide.model, attention=replace(wide.model.attention, layers={}))
    wide = replace(wide, model=model)
    page = drawn(*overview(wide, attention_named(wide, None)), width=80)
    row = row_of(page, "previous token")
    assert row[2:6] == ["0.0", "0.90", "0.1", "0.90"]
    assert row[-2:] == ["+103", "more"]


def test_a_layer_and_head_chosen_keep_their_numbers() -> None:
    inspection = inspected(layers=(1,), heads=(1,))
    shown = attention_named(inspection, None)
    assert shown.layers == (1,)
    assert shown.heads == (1,)
    assert "layer 1, head 1" in drawn(attention_map(shown, width=80))


def test_uint8_weights_are_scaled_back() -> None:
    shown = attention_named(inspected(dtype="uint8"), None)
    exact = attention_named(inspected(), None)
    np.testing.assert_allclose(shown.mean(), exact.mean(), atol=1 / 510)


def test_an_encoder_decoder_shows_cross_attention_first() -> None:
    inspection = inspected(FakeModel(kind="encoder-decoder"), target_text="le chat")
    shown = attention_named(inspection, None)
    assert shown.name == "cross_attentions"
    assert len(shown.queries) == len(inspection.target_tokens or ())
    assert len(shown.keys) == len(inspection.tokens)
    assert "target (given)" in drawn(*overview(inspection, shown))
    for kind in ("encoder", "decoder"):
        of_kind = attention_named(inspection, kind)
        assert of_kind.weights[0].shape[1:] == (len(of_kind.queries), len(of_kind.keys))
        drawn(*overview(inspection, of_kind))


def test_an_attention_that_is_not_there() -> None:
    with pytest.raises(InvalidRequest, match="no cross attention, but attentions"):
        attention_named(inspected(), "cross")


def test_layers_with_unlike_heads_are_shown() -> None:
    inspection = inspected(FakeModel(heads_per_layer=(2, 3)))
    shown = attention_named(inspection, None)
    assert [len(layer) for layer in shown.weights] == [2, 3]
    drawn(*overview(inspection, shown))


def test_one_token_and_only_special_tokens_can_be_shown() -> None:
    inspection = inspected(text="a")
    special = replace(
        inspection, tokens=tuple(replace(token, special=True) for token in inspection.tokens)
    )
    for told in (inspection, special):
        drawn(*overview(told, attention_named(told, None)))


def test_the_map_s_cells_are_percent_and_blank_when_small() -> None:
    inspection = inspected(layers=(0,), heads=(0,))
    length = len(inspection.tokens)
    weights = np.zeros((1, 1, length, length))
    weights[..., 2] = 0.996
    weights[..., 3] = 0.004
    shown = attention_named(with_attention(inspection, weights), None)
    page = drawn(attention_map(shown, width=80))
    row = next(line for line in page.splitlines() if line.startswith("  3 sat"))
    assert row.split() == ["3", "sat", "100"]
    assert row.index("100") == page.splitlines()[2].index("  2")


def test_what_does_not_fit_is_said() -> None:
    shown = attention_named(inspected(layers=(0,), heads=(0,)), None)
    page = drawn(attention_map(shown, width=30))
    assert max(len(line) for line in page.splitlines()[2:-2]) <= 30
    assert "Left out: columns 6 to 11" in page
    assert "Left out" not in drawn(attention_map(shown, width=120))


def test_wide_and_odd_tokens_keep_the_columns() -> None:
    inspection = inspected(layers=(0,), heads=(0,))
    odd = ("日本語日本語日本語", "a\nb\tc", "👩‍👩‍👧", "", "[bold]x[/bold]")
    tokens = tuple(
        replace(token, text=odd[position % len(odd)])
        for position, token in enumerate(inspection.tokens)
    )
    shown = attention_named(replace(inspection, tokens=tokens), None)
    page = drawn(attention_map(shown, width=80))
    assert "[bold]x" in page
    assert len(page.splitlines()) == 3 + len(tokens) + 1
