"""Whole inspections of real architectures, tiny and random."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import plain_settings
from embedding_runs import embed
from pellucid.errors import AttentionUnavailable, CapabilityMissing, NormWeightedUnavailable
from pellucid.inference.engine import EmbeddingQuery, Inspection, InspectionQuery
from pellucid.inference.inspection import inspect
from pellucid.models.backend import Knockout
from pellucid.models.transformers_backend import TransformersBackend
from tiny_backends import load_tiny
from tiny_models import build

TEXT = "The cat sat on the mat and the cat slept again today."
SETTINGS = plain_settings(max_target_tokens=8)

Tiny = Callable[[str], TransformersBackend]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("families")
    return cache(lambda family: load_tiny(build(family, root / family)))


def look(backend: TransformersBackend, *include: str, **query: Any) -> Inspection:
    wanted: Any = frozenset(include)
    seen = inspect(
        backend, InspectionQuery(**({"text": TEXT} | query), include=wanted), settings=SETTINGS
    )
    found = seen.completed()
    plain = (found.statistics, found.patterns, found.projection, found.logit_lens, found.change)
    json.dumps(plain, allow_nan=False)
    return found


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "mistral", "gpt_oss", "mpnet"])
def test_everything_about_attention(tiny: Tiny, family: str) -> None:
    found = look(tiny(family), "attentions", "statistics", "patterns", "rollout", "projection")
    for name, tensor in found.tensors.items():
        sums = tensor.values.sum(axis=-1)
        if family == "gpt_oss" and name == "attentions":
            assert (sums < 1).all()  # what is missing went to the learned sinks
        else:
            np.testing.assert_allclose(sums, 1.0, atol=1e-5)
    assert found.statistics is not None
    for name, quantities in found.statistics.items():
        shape = found.tensors[name].values.shape
        assert np.shape(quantities["entropy"]) == shape[:2]
        assert np.shape(quantities["received"]) == (shape[0], shape[3])
        assert np.shape(quantities["given"]) == (shape[0], shape[2])
        assert any(quantities["entropy_renormalized"]) == (family == "gpt_oss")


def test_a_window_counts_for_what_a_token_receives(tiny: Tiny) -> None:
    backend = tiny("mistral")
    found = look(backend, "attentions", "statistics")
    weights = found.tensors["attentions"].values[0]
    length = weights.shape[-1]
    last_seen = [int(np.flatnonzero(weights[0, :, key]).max()) for key in range(length)]
    assert last_seen[0] < length - 1  # there is a window, and the text is longer
    viewers = np.array([last - key + 1 for key, last in enumerate(last_seen)])
    expected = weights.sum(axis=1).mean(axis=0) / viewers
    assert found.statistics is not None
    received = found.statistics["attentions"]["received"][0]
    np.testing.assert_allclose(received, expected, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_oss"])
def test_the_lens_ends_in_the_models_own_prediction(tiny: Tiny, family: str) -> None:
    backend = tiny(family)
    found = look(backend, "logit_lens").logit_lens
    assert found is not None
    encoding = backend.tokenize(TEXT)
    following = backend.generate_greedily(encoding, max_new_tokens=1)
    assert found["token_ids"][-1][-1][0] == found["final_token_ids"][-1] == following[0]


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "mistral"])
def test_a_knockout_is_seen_and_felt(tiny: Tiny, family: str) -> None:
    backend = tiny(family)
    name: Any = "encoder_attentions" if family == "t5" else "attentions"
    cut = Knockout(layers=(1,), query_positions=(5,), key_positions=(4,), attention=name)
    found = look(backend, "attentions", knockouts=(cut,))
    weights = found.tensors[name].values
    assert not weights[1, :, 5, 4].any()
    assert weights[0, :, 5, 4].all()
    assert found.change is not None
    if family == "bert":
        assert found.change["distance"] > 0
    else:
        assert max(found.change["divergence"]) > 0


def test_a_decoder_without_its_head_compares_vectors(tmp_path: Path) -> None:
    import transformers

    folder = build("gpt2", tmp_path)
    transformers.GPT2Model.from_pretrained(folder).save_pretrained(folder)
    backend = load_tiny(folder)
    assert (backend.info.architecture, backend.info.kind) == ("GPT2Model", "decoder")
    found = look(backend, knockouts=(Knockout(query_positions=(5,), key_positions=(4,)),))
    assert found.change is not None
    assert found.change["of"] == "embedding"
    assert found.change["distance"] > 0


def test_a_translator_shows_what_it_wrote(tiny: Tiny) -> None:
    found = look(tiny("t5"), "attentions", "norm_weighted", "rollout", layers=(1,), heads=(0,))
    assert found.target_generated
    assert found.target_tokens is not None
    queries, keys = len(found.target_tokens), len(found.tokens)
    assert found.tensors["cross_attentions"].values.shape == (1, 1, queries, keys)
    assert found.tensors["cross_norm_weighted"].values.shape == (1, 1, queries, keys)
    assert found.tensors["encoder_rollout"].values.shape == (keys, keys)


def test_a_hybrid_gives_what_it_has(tiny: Tiny) -> None:
    backend = tiny("qwen3_next")
    found = look(backend, "attentions", "hidden_states")
    assert found.layers == (2, 4)
    assert found.tensors["attentions"].values.shape[0] == 2
    assert found.tensors["hidden_states"].values.shape[0] == 6
    with pytest.raises(AttentionUnavailable, match="layer 0"):
        look(backend, "attentions", layers=(0,))
    with pytest.raises(CapabilityMissing, match="rollout"):
        look(backend, "rollout")
    assert look(backend, "hidden_states", layers=(0,)).layers == (0,)


def test_a_model_without_attention_gives_the_rest(tiny: Tiny) -> None:
    backend = tiny("mamba")
    assert look(backend, "hidden_states", "projection").tensors["hidden_states"].values.size
    for query in ({}, {"heads": (0,)}):
        with pytest.raises(AttentionUnavailable, match="no softmax attention"):
            look(backend, "attentions", **query)
    vectors = embed(backend, EmbeddingQuery(inputs=["a cat"]), settings=SETTINGS).vectors
    assert np.linalg.norm(vectors) == pytest.approx(1.0, abs=1e-6)


def test_what_mpnet_does_not_show_is_refused(tiny: Tiny) -> None:
    backend = tiny("mpnet")
    with pytest.raises(NormWeightedUnavailable):
        look(backend, "norm_weighted")
    with pytest.raises(CapabilityMissing, match="knocked out"):
        look(backend, knockouts=(Knockout(query_positions=(1,), key_positions=(2,)),))
