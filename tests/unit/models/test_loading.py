"""Loading: classes, types, missing weights, memory; and generation, which needs the right class."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from attention_capture import batch_of, capture
from pellucid.errors import GenerationUnavailable, ModelLoadFailed, ModelNotLoaded
from pellucid.models import loading, memory
from pellucid.models.attention.sites import SeenCall, SitesUnclear, name_sites
from pellucid.models.backend import CaptureSpec
from pellucid.models.loading import choose_device, choose_dtype
from tiny_backends import TinyBackend, TinyFolder, load_tiny
from tiny_models import FAMILIES, LONG_TEXT, SHORT_TEXT, build_tokenizer


@pytest.fixture
def copy_of(tiny_folder: TinyFolder, tmp_path: Path) -> Any:
    """A tiny model that a test may spoil."""

    def copy(family: str) -> Path:
        return Path(shutil.copytree(tiny_folder(family), tmp_path / family))

    return copy


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("family", "architecture", "kind"),
    [
        ("bert", "BertModel", "encoder"),
        ("gpt2", "GPT2LMHeadModel", "decoder"),
        ("t5", "T5ForConditionalGeneration", "encoder-decoder"),
        ("mamba", "MambaForCausalLM", "decoder"),
    ],
)
def test_class_follows_the_configuration(
    family: str, architecture: str, kind: str, tiny_backend: TinyBackend
) -> None:
    info = tiny_backend(family).info

    assert (info.architecture, info.kind) == (architecture, kind)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_info_tells_the_truth(family: str, tiny_backend: TinyBackend) -> None:
    info = tiny_backend(family).info

    assert info.model_type.replace("-", "_").removesuffix("_text") == family
    assert info.hidden_size == 32
    assert info.num_heads == (4 if FAMILIES[family].has_attention else 0)
    assert info.dtype == "float32"
    assert info.device == "cpu"
    assert info.memory_bytes >= 4 * info.num_parameters
    assert info.num_decoder_layers == (2 if info.kind == "encoder-decoder" else None)


def test_missing_weights_are_never_made_up(copy_of: Any) -> None:
    folder = copy_of("bert")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.attention.self.query.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ModelLoadFailed, match=r"1 of its weights .*layer\.1\.attention"):
        load_tiny(folder)


def test_a_missing_pooler_is_no_loss(copy_of: Any) -> None:
    folder = copy_of("bert")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    assert load_tiny(folder).info.architecture == "BertModel"


def test_causal_model_without_its_head_is_still_inspected(copy_of: Any) -> None:
    # as embedding models made of decoders are published
    folder = copy_of("qwen3")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    backend = load_tiny(folder)

    assert (backend.info.architecture, backend.info.kind) == ("Qwen3Model", "decoder")
    assert backend.info.attention.available
    with pytest.raises(GenerationUnavailable):
        backend.generate_greedily(backend.tokenize(SHORT_TEXT), max_new_tokens=2)


def test_encoder_half_of_t5(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    folder = tmp_path / "t5-encoder"
    model = transformers.T5EncoderModel.from_pretrained(tiny_folder("t5"))
    model.save_pretrained(folder)
    build_tokenizer("unigram").save_pretrained(folder)

    backend = load_tiny(folder)

    assert (backend.info.architecture, backend.info.kind) == ("T5EncoderModel", "encoder")
    assert backend.info.attention.layers == {"attentions": (0, 1, 2)}


def test_configuration_that_asks_for_everything_is_not_obeyed(copy_of: Any) -> None:
    folder = copy_of("bert")
    edit_json(folder / "config.json", output_attentions=True, output_hidden_states=True)

    backend = load_tiny(folder)

    ids = torch.as_tensor(backend.tokenize(SHORT_TEXT).input_ids)[None]
    assert set(backend._parts.loaded.model(input_ids=ids)) == {"last_hidden_state", "pooler_output"}
    assert backend.info.attention.method == "registered"


def test_last_hidden_state_is_normed_whatever_the_configuration_says(copy_of: Any) -> None:
    folder = copy_of("llama")
    plain = load_tiny(folder)
    batch = batch_of(plain)
    expected = plain.inspect(batch, CaptureSpec(hidden_states=True, logit_lens_top_k=1))
    edit_json(folder / "config.json", tie_last_hidden_states=False)
    untied = load_tiny(folder)

    found = untied.inspect(batch, CaptureSpec(hidden_states=True, logit_lens_top_k=1))

    np.testing.assert_array_equal(
        found.hidden_states["hidden_states"], expected.hidden_states["hidden_states"]
    )
    assert found.logit_lens is not None
    assert expected.logit_lens is not None
    np.testing.assert_array_equal(found.logit_lens.token_ids, expected.logit_lens.token_ids)


def test_broken_weights_are_a_load_failure(copy_of: Any) -> None:
    folder = copy_of("bert")
    (folder / "model.safetensors").write_bytes(b"not weights at all")

    with pytest.raises(ModelLoadFailed, match="could not be loaded"):
        load_tiny(folder)


def test_unknown_family_is_a_load_failure(copy_of: Any) -> None:
    folder = copy_of("bert")
    edit_json(folder / "config.json", model_type="nobody-knows-this")

    with pytest.raises(ModelLoadFailed):
        load_tiny(folder)


def test_model_of_images_is_a_load_failure(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=16,
    )  # fmt: skip
    config.vocab_size = 100
    transformers.ViTModel(config).save_pretrained(tmp_path)
    build_tokenizer("wordpiece").save_pretrained(tmp_path)

    with pytest.raises(ModelLoadFailed, match="ViTModel could not be run on a few tokens of text"):
        load_tiny(tmp_path)


def test_nothing_reaches_stdout(tiny_folder: TinyFolder, capfd: pytest.CaptureFixture[str]) -> None:
    backend = load_tiny(tiny_folder("gpt2"))
    backend.generate_greedily(backend.tokenize(SHORT_TEXT), max_new_tokens=2)

    assert capfd.readouterr().out == ""


def test_a_wrong_attention_is_found_out(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a family whose eager attention does something that the registered function does not
    from transformers.models.bert import modeling_bert

    original = modeling_bert.eager_attention_forward

    def twisted(*args: Any, scaling: float, **options: Any) -> Any:
        return original(*args, scaling=scaling * 1.01, **options)

    monkeypatch.setattr(modeling_bert, "eager_attention_forward", twisted)

    info = load_tiny(tiny_folder("bert")).info

    # nothing runs with it: neither the attention nor any other output
    assert info.attention.method == info.attention_implementation == "eager"
    assert info.attention.reason is not None
    assert "differed from the model's eager ones by" in info.attention.reason


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "gemma2", "gpt_oss", "qwen3_next"])
def test_half_precision_is_proved_too(family: str, dtype: str, tiny_folder: TinyFolder) -> None:
    backend = load_tiny(tiny_folder(family), dtype=dtype)

    captured, outputs = capture(
        backend, batch_of(backend), CaptureSpec(attentions=True, hidden_states=True)
    )

    assert backend.info.dtype == dtype
    assert backend.info.attention.available, backend.info.attention.reason
    assert backend.info.attention.max_error is not None
    assert backend.info.attention.max_error < 1e-5
    assert captured
    for weights in captured.values() if family != "gpt_oss" else ():
        # the softmax is in float32 whatever the model is in: no row loses a part to rounding
        np.testing.assert_allclose(weights[0].sum(axis=-1), 1.0, rtol=0, atol=1e-5)
    for state in outputs.hidden_states.values():
        assert state.dtype == np.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_eager_weights_are_no_sink(dtype: str, tiny_folder: TinyFolder) -> None:
    backend = load_tiny(tiny_folder("mpnet"), dtype=dtype)

    captured, _ = capture(backend, batch_of(backend), CaptureSpec(attentions=True))

    assert backend.info.attention.method == "eager"
    for weights in captured.values():
        np.testing.assert_allclose(weights[0].sum(axis=-1), 1.0, rtol=0, atol=1e-6)


def test_half_precision_finds_a_wrong_attention_too(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.bert import modeling_bert

    original = modeling_bert.eager_attention_forward

    def twisted(*args: Any, scaling: float, **options: Any) -> Any:
        return original(*args, scaling=scaling * 1.01, **options)

    monkeypatch.setattr(modeling_bert, "eager_attention_forward", twisted)

    assert load_tiny(tiny_folder("bert"), dtype="bfloat16").info.attention.method == "eager"


def test_automatic_type_by_device() -> None:
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("mps")) == torch.float32
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16


def test_automatic_device_prefers_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "mps"
    assert choose_device("cpu").type == "cpu"


def test_automatic_type_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert choose_dtype("auto", torch.device("cuda")) == torch.float16


# ------------------------------------------------------------------------------------ generation


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "gpt_oss", "qwen3_next", "mamba"])
def test_continuation_is_the_most_likely_one(family: str, tiny_backend: TinyBackend) -> None:
    backend = tiny_backend(family)
    encoding = backend.tokenize(SHORT_TEXT)

    found = backend.generate_greedily(encoding, max_new_tokens=4).tolist()

    ids = encoding.input_ids.tolist()
    for token_id in found:
        assert token_id == most_likely_next(backend, ids)
        ids.append(token_id)
    assert 1 <= len(found) <= 4


def most_likely_next(backend: Any, ids: list[int]) -> int:
    from pellucid.models.backend import Batch

    batch = Batch.of([backend.encoding_of(ids)], pad_id=backend.pad_id)
    logits = backend.inspect(batch, CaptureSpec(logits=True)).logits
    return int(logits[0, -1].argmax())


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_target_begins_with_the_start_token(family: str, tiny_backend: TinyBackend) -> None:
    backend = tiny_backend(family)
    start = backend.tokenize("x", target=True).input_ids[0]

    found = backend.generate_greedily(backend.tokenize(LONG_TEXT), max_new_tokens=5)

    assert found.dtype == np.int64
    assert found[0] == start
    assert 2 <= found.size <= 6


def test_tastes_of_the_model_are_left_out(copy_of: Any) -> None:
    folder = copy_of("gpt2")
    plain = load_tiny(folder)
    expected = plain.generate_greedily(plain.tokenize(SHORT_TEXT), max_new_tokens=6)
    edit_json(
        folder / "generation_config.json",
        do_sample=True,
        temperature=5.0,
        num_beams=3,
        repetition_penalty=9.0,
        min_new_tokens=6,
    )
    opinionated = load_tiny(folder)

    found = opinionated.generate_greedily(opinionated.tokenize(SHORT_TEXT), max_new_tokens=6)

    np.testing.assert_array_equal(found, expected)


def test_encoders_do_not_generate(tiny_backend: TinyBackend) -> None:
    backend = tiny_backend("bert")

    with pytest.raises(GenerationUnavailable, match="BertModel"):
        backend.generate_greedily(backend.tokenize(SHORT_TEXT), max_new_tokens=2)


# ---------------------------------------------------------------------------------------- memory


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def test_closing_returns_the_memory(tmp_path: Path) -> None:
    # 52 million weights: 207 MB
    config = transformers.BertConfig(
        vocab_size=400,
        hidden_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=4096,
    )
    model = transformers.BertModel(config)
    folder = tmp_path / "large"
    model.save_pretrained(folder)
    build_tokenizer("wordpiece").save_pretrained(folder)
    del model
    memory.give_back(torch.device("cpu"))
    before = resident_bytes()

    backend = load_tiny(folder)
    weights = backend.info.memory_bytes
    loaded = resident_bytes()
    backend.close()
    after = resident_bytes()

    assert weights > 200_000_000
    assert loaded - before > 0.8 * weights
    assert after - before < 0.15 * weights
    gc.collect()


def test_memory_goes_even_if_somebody_holds_the_model(tiny_folder: TinyFolder) -> None:
    backend = load_tiny(tiny_folder("bert"))
    model = backend._parts.loaded.model

    backend.close()

    assert sum(parameter.numel() for parameter in model.parameters()) == 0


def test_closed_model_says_so(tiny_folder: TinyFolder) -> None:
    backend = load_tiny(tiny_folder("bert"))
    batch = batch_of(backend)
    backend.close()
    backend.close()

    with pytest.raises(ModelNotLoaded):
        backend.inspect(batch, CaptureSpec())
    with pytest.raises(ModelNotLoaded):
        backend.encode(batch)
    assert backend.info.architecture == "BertModel"


def test_shared_weights_are_counted_once(tiny_backend: TinyBackend) -> None:
    # GPT-2's output matrix is its input table
    backend = tiny_backend("gpt2")
    model = backend._parts.loaded.model
    tied = model.get_input_embeddings().weight

    assert model.get_output_embeddings().weight is tied
    assert memory.memory_bytes(model) < 4 * backend.info.num_parameters + tied.numel()


# ----------------------------------------------------------------------------------------- sites


def seen(module: torch.nn.Module) -> SeenCall:
    return SeenCall(
        module=module,
        num_heads=1,
        query_len=3,
        key_len=3,
        beyond_sdpa=False,
        unknown_options=(),
    )


def test_layers_that_cannot_be_told_apart_are_not_guessed() -> None:
    shared = torch.nn.Linear(2, 2)
    model = torch.nn.ModuleDict({"attention": shared})

    with pytest.raises(SitesUnclear, match="cannot be assigned to one of 3 layers"):
        name_sites(model, [seen(shared), seen(shared)], num_layers={"attentions": 3}, encoder_len=3)


def test_a_shared_layer_is_told_by_the_order_of_its_calls() -> None:
    shared = torch.nn.Linear(2, 2)
    model = torch.nn.ModuleDict({"attention": shared})

    sites = name_sites(
        model, [seen(shared), seen(shared)], num_layers={"attentions": 2}, encoder_len=3
    )

    assert [site.layer for site in sites] == [0, 1]


def test_remote_code_is_not_taken_for_granted() -> None:
    config = transformers.BertConfig(architectures=["BertForMaskedLM"])

    assert loading.candidate_classes(config) == [(transformers.AutoModel, "encoder")]
