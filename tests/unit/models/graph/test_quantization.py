"""int8 graphs: near to torch, with padding too; and the texts that they are calibrated on."""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_reference import cosines
from pellucid.errors import EmptyText, GraphUnavailable
from pellucid.models.backend import Batch
from pellucid.models.graph import entry, quantization
from pellucid.models.graph.conversion import ConversionRequest, convert
from pellucid.models.graph.feed import feed
from pellucid.models.graph.quantization import calibration_texts, quantize
from pellucid.models.graph.reference import TEXTS
from pellucid.models.graph.runtime import ov
from tiny_backends import TinyBackend, TinyFolder, source_of
from tiny_models import SENTENCES

NAMES = ("input_ids", "attention_mask")


@pytest.fixture(scope="module")
def quantized(
    tiny_folder: TinyFolder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ov.Model, ov.Model]:
    """The graph of a tiny BERT in float32 and in int8, calibrated on every eighth text."""
    folder = tmp_path_factory.mktemp("int8")
    texts = calibration_texts()[::8]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "calibration_texts", lambda: texts)
        convert(
            ConversionRequest(
                source=replace(source_of(tiny_folder("bert")), revision="a" * 40),
                folder=folder,
                quantization="int8",
                trust_remote_code=False,
                num_threads=None,
            )
        )
    core = ov.Core()
    return core.read_model(folder / entry.FLOAT32), core.read_model(folder / entry.INT8)


@pytest.fixture(scope="module")
def compiled(quantized: tuple[ov.Model, ov.Model]) -> Any:
    """The int8 graph, ready to run."""
    return ov.Core().compile_model(quantized[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@pytest.mark.parametrize("together", [True, False], ids=["padded", "alone"])
def test_int8_is_near_torch(compiled: Any, tiny_backend: TinyBackend, together: bool) -> None:
    backend = tiny_backend("bert")
    inputs = backend.tokenize_for_embedding(["fox", *SENTENCES])
    expected = backend.encode(Batch.of(inputs, pad_id=backend.pad_id))
    groups = [inputs] if together else [[one] for one in inputs]
    batches = [Batch.of(group, pad_id=backend.pad_id) for group in groups]
    given = [compiled(feed(batch, NAMES, pad_id=backend.pad_id))[0].copy() for batch in batches]
    found = cosines(np.concatenate(given), expected)
    assert found.mean() > 0.98  # random weights are harder than real ones
    assert 0.9 < found.min() < 0.99999  # and it is int8


def test_the_encoders_products_are_int8_but_for_the_most_sensitive_one(
    quantized: tuple[ov.Model, ov.Model],
) -> None:
    whole, small = (_products(graph) for graph in quantized)
    assert whole.keys() == small.keys()
    assert not any(whole.values())
    exact = [name for name, is_int8 in small.items() if not is_int8]
    (sensitive,) = exact
    assert "encoder.layer.0.output.dense" in sensitive
    assert len(exact) < len(small) / 2


def _products(graph: ov.Model) -> dict[str, bool]:
    """Matrix products by name: whether their inputs were rounded to 256 levels."""
    products = (node for node in graph.get_ordered_ops() if node.get_type_name() == "MatMul")
    return {
        node.get_friendly_name(): node.input_value(0).get_node().get_type_name() == "FakeQuantize"
        for node in products
    }


def test_texts_that_the_tokenizer_drops_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def feed_of(texts: list[str]) -> dict[str, Any]:
        if not texts[0].isascii():
            raise EmptyText(field="text")
        return {"text": texts[0]}

    monkeypatch.setattr(quantization, "calibration_texts", lambda: ["one", "два", "three"])
    assert quantization._feeds(feed_of) == [{"text": "one"}, {"text": "three"}]


def test_without_nncf_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(GraphUnavailable, match=r"pip install 'pellucid\[int8\]'") as caught:
        quantize(ov.Model([], [], "empty"), lambda texts: {}, model_id="some/model")
    assert caught.value.facts["model_id"] == "some/model"


def test_calibration_texts_are_varied() -> None:
    texts = calibration_texts()
    words = [len(text.split()) for text in texts]
    scripts = {unicodedata.name(letter).split()[0] for letter in "".join(texts) if letter.isalpha()}
    assert len(texts) == len(set(texts)) > 100
    assert not any(text.isspace() or not text for text in texts)
    assert min(words) == 1
    assert 150 < max(words) <= 250
    assert {"LATIN", "CYRILLIC", "GREEK", "HEBREW", "ARABIC", "DEVANAGARI", "THAI"} < scripts
    assert {"CJK", "HIRAGANA", "HANGUL"} < scripts
    assert not set(texts) & set(TEXTS)  # parity is measured on others


def test_calibration_texts_are_part_of_the_package() -> None:
    assert (Path(quantization.__file__).parent / "calibration.txt").is_file()
