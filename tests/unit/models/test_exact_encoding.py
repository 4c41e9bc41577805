"""Embeddings in float32 on demand, running out of memory, and tokenising meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from pellucid.errors import ForwardOutOfMemory, InvalidInputIds, InvalidRequest
from pellucid.models.backend import Batch
from pellucid.models.transformers_backend import TransformersBackend
from tiny_backends import TinyBackend, TinyFolder, load_tiny
from tiny_models import LONG_TEXT, SENTENCES


def batch_of(backend: TransformersBackend) -> Batch:
    return Batch.of(backend.tokenize_for_embedding(SENTENCES[:3]), pad_id=backend.pad_id)


def encoder_of(backend: TransformersBackend) -> Any:
    return backend.embedding_parts.encoder


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_exact_is_what_a_float32_model_of_these_weights_gives(
    tiny_folder: TinyFolder, family: str, dtype: str
) -> None:
    half = load_tiny(tiny_folder(family), dtype=dtype)
    whole = load_tiny(tiny_folder(family))
    rounded = encoder_of(half).parameters()
    for parameter, source in zip(encoder_of(whole).parameters(), rounded, strict=True):
        parameter.data = source.float()
    batch = batch_of(half)
    before = half.encode(batch)
    exact = half.encode(batch, exact=True)
    np.testing.assert_allclose(exact, whole.encode(batch), atol=1e-6, rtol=1e-5)
    assert not np.array_equal(exact, before)
    np.testing.assert_array_equal(half.encode(batch), before)  # as it was


def test_exact_changes_nothing_in_float32(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("bert")
    batch = batch_of(backend)
    np.testing.assert_array_equal(backend.encode(batch, exact=True), backend.encode(batch))


@contextmanager
def failing(backend: TransformersBackend, fail: Callable[..., Any]) -> Iterator[None]:
    handle = encoder_of(backend).register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


def too_large(*_: Any) -> None:
    torch.empty(10**15)  # the allocator's own words


def cuda_words(*_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA error")


def of_python(*_: Any) -> None:
    raise MemoryError


@pytest.mark.parametrize("fail", [too_large, cuda_words, of_python])
@pytest.mark.parametrize("exact", [False, True], ids=["as set", "exact"])
def test_running_out_of_memory_is_told_with_its_batch(
    tiny_folder: TinyFolder, fail: Callable[..., Any], exact: bool
) -> None:
    backend = load_tiny(tiny_folder("bert"), dtype="bfloat16")
    batch = batch_of(backend)
    before = backend.encode(batch)
    tokens = int(batch.attention_mask.sum())
    with (
        failing(backend, fail),
        pytest.raises(ForwardOutOfMemory, match=f"batch of 3 inputs of {tokens} tokens"),
    ):
        backend.encode(batch, exact=exact)
    np.testing.assert_array_equal(backend.encode(batch), before)


def test_other_failures_stay_what_they_are(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("bert")

    def fail(*_: Any) -> None:
        raise RuntimeError("something else")

    with failing(backend, fail), pytest.raises(RuntimeError, match="something else"):
        backend.encode(batch_of(backend))


def test_threads_may_tokenise_while_the_model_runs(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("gpt2")
    batch = batch_of(backend)
    expected = [one.input_ids.tolist() for one in backend.tokenize_for_embedding(SENTENCES)]
    vectors = backend.encode(batch)

    def tokenize(_: int) -> list[list[int]]:
        return [one.input_ids.tolist() for one in backend.tokenize_for_embedding(SENTENCES)]

    with ThreadPoolExecutor(4) as threads:
        given = threads.map(tokenize, range(100))
        for _ in range(20):
            np.testing.assert_array_equal(backend.encode(batch), vectors)
        assert list(given) == [expected] * 100


def test_given_ids_are_those_of_the_text(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("bert")
    (text,) = backend.tokenize_for_embedding([LONG_TEXT])
    ids = backend.ids_for_embedding(text.input_ids.tolist())
    np.testing.assert_array_equal(backend.encode(Batch.of([ids])), backend.encode(Batch.of([text])))
    with pytest.raises(InvalidInputIds):
        backend.ids_for_embedding([10**9])


def test_messages_cannot_be_cut_in_pieces(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("llama")
    (one,) = backend.tokenize_for_embedding(["fox"])
    assert (
        one.input_ids.tolist()
        == backend.ids_for_embedding(one.input_ids.tolist()).input_ids.tolist()
    )
    with pytest.raises(InvalidRequest, match="chat template, which cannot be cut"):
        backend.chunk_for_embedding([LONG_TEXT])
