"""The default model's graph, made as the server makes it, beside the model on torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from conftest import plain_settings
from embedding_reference import cosines, texts_of_all_lengths
from pellucid.models import openvino_backend
from pellucid.models.backend import Batch, Float32
from pellucid.models.openvino_backend import OpenVinoBackend
from pellucid.models.sources.locator import Locator
from pellucid.models.sources.source import ModelSource
from pellucid.models.transformers_backend import TransformersBackend

TEXTS = texts_of_all_lengths()[::8]


@pytest.fixture(scope="module")
def source() -> ModelSource:
    return Locator.of(plain_settings(offline=True)).locate()


@pytest.fixture(scope="module")
def graph(source: ModelSource) -> Iterator[OpenVinoBackend]:
    backend = OpenVinoBackend.load(source, graphs_dir=plain_settings().data_dir / "graphs")
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def batch(graph: OpenVinoBackend) -> Batch:
    return Batch.of(graph.tokenize_for_embedding(TEXTS), pad_id=graph.pad_id)


@pytest.fixture(scope="module")
def expected(source: ModelSource, batch: Batch) -> Float32:
    backend = TransformersBackend.load(source, device="cpu")
    vectors = backend.encode(batch)
    backend.close()
    return vectors


def test_it_passed_its_test_at_load(graph: OpenVinoBackend) -> None:
    embedding = graph.info.embedding
    assert embedding.runtime == "openvino"
    assert embedding.parity is not None
    assert embedding.parity.num_texts == 24
    assert embedding.parity.min_cosine > 0.9995
    assert embedding.reason is None


def test_vectors_are_torchs(graph: OpenVinoBackend, batch: Batch, expected: Float32) -> None:
    assert cosines(graph.encode(batch), expected).min() > 0.9999  # of one word, too
    np.testing.assert_allclose(graph.encode(batch, exact=True), expected, atol=1e-5)


def test_a_text_has_one_vector_in_whatever_batch(graph: OpenVinoBackend, batch: Batch) -> None:
    together = graph.encode(batch)
    alone = [graph.encode(Batch.of(graph.tokenize_for_embedding([text]))) for text in TEXTS]
    assert cosines(together, np.concatenate(alone)).min() > 0.9999


def test_memory_is_given_back(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading and closing again and again takes no more than doing it once."""
    monkeypatch.setattr(openvino_backend, "_WARM_UP_S", 0.1)

    def resident_after_closing() -> int:
        backend = OpenVinoBackend.load(source, graphs_dir=plain_settings().data_dir / "graphs")
        backend.close()
        return int(psutil.Process().memory_info().rss)

    resident_after_closing()
    first = resident_after_closing()
    assert resident_after_closing() < first + 30_000_000
