"""Configurations that families allow and few models use: exact too, or on their own eager path."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tiny_models
from attention_capture import batch_of, capture, encodings, masks, targets
from pellucid.errors import CapabilityMissing, EmbeddingUnavailable
from pellucid.models.backend import Batch, CaptureSpec
from tiny_backends import TinyBackend, TinyFolder, load_tiny

EXACT = 1e-5
_ENCODER = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 256,
}  # fmt: skip
_DECODER = {**_ENCODER, "num_key_value_heads": 2}
_GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 256}
_T5 = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
_WINDOWED = {
    **_DECODER, "head_dim": 8, "sliding_window": tiny_models.WINDOW, "query_pre_attn_scalar": 12,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip


@dataclass(frozen=True)
class Odd:
    """One model: its class, its configuration's class, and the settings that make it odd."""

    model: str
    config: str
    settings: Mapping[str, Any] = field(default_factory=dict)


REGISTERED: Mapping[str, Odd] = {
    "one layer, one head": Odd(
        "GPT2LMHeadModel", "GPT2Config", {**_GPT2, "n_layer": 1, "n_head": 1}
    ),
    "dropout": Odd("LlamaForCausalLM", "LlamaConfig", {**_DECODER, "attention_dropout": 0.5}),
    "tied words": Odd("LlamaForCausalLM", "LlamaConfig", {**_DECODER, "tie_word_embeddings": True}),
    "unscaled": Odd("GPT2LMHeadModel", "GPT2Config", {**_GPT2, "scale_attn_weights": False}),
    "scaled by layer": Odd(
        "GPT2LMHeadModel", "GPT2Config", {**_GPT2, "scale_attn_by_inverse_layer_idx": True}
    ),
    "encoder as decoder, with unused cross attention": Odd(
        "BertLMHeadModel", "BertConfig",
        {**_ENCODER, "is_decoder": True, "add_cross_attention": True},
    ),
    "two groups of shared layers": Odd(
        "AlbertModel", "AlbertConfig",
        {**_ENCODER, "num_hidden_layers": 4, "num_hidden_groups": 2, "embedding_size": 16},
    ),
    "rotations by layer": Odd(
        "Gemma3ForCausalLM", "Gemma3TextConfig",
        {
            **_WINDOWED,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "window in some layers": Odd(
        "Qwen2ForCausalLM", "Qwen2Config",
        {**_DECODER, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "window both ways": Odd(
        "ModernBertModel", "ModernBertConfig",
        {**_ENCODER, "local_attention": 8, "global_attn_every_n_layers": 2},
    ),
    "latent attention": Odd(
        "DeepseekV3ForCausalLM", "DeepseekV3Config",
        {
            **_DECODER, "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8,
            "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4,
            "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "chunks, inner part under another name": Odd(
        "Llama4ForCausalLM", "Llama4TextConfig",
        {
            **_DECODER, "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48,
            "attention_chunk_size": 8,
        },
    ),
    "gated T5": Odd(
        "MT5ForConditionalGeneration", "MT5Config", {**_T5, "feed_forward_proj": "gated-gelu"}
    ),
    "more decoder than encoder": Odd(
        "T5ForConditionalGeneration", "T5Config", {**_T5, "num_layers": 1, "num_decoder_layers": 3}
    ),
}  # fmt: skip
# SDPA is wrong for it (it never says that it looks both ways), so its own eager path is served.
SPLINTER = Odd("SplinterModel", "SplinterConfig", _ENCODER)


def make(odd: Odd, folder: Path) -> Path:
    """The model with a tokenizer, as the Hub holds them."""
    ids = {"vocab_size": 400, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    torch.manual_seed(0)
    config = getattr(transformers, odd.config)(**ids, **odd.settings)
    return _save(getattr(transformers, odd.model)(config), folder)


def _save(model: Any, folder: Path) -> Path:
    model.eval()
    tiny_models._liven(model)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tiny_models.build_tokenizer("roberta").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("odd")
    models = {**REGISTERED, "splinter": SPLINTER}
    return cache(lambda name: make(models[name], root / name.replace(" ", "_")))


def eager(odd: Odd, folder: Path, ids: Any, target_ids: Any) -> Any:
    """One text through the model's own eager attention in float64."""
    model_class = getattr(transformers, odd.model)
    model = model_class.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64)
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # the others know no float64
    inputs = {"input_ids": torch.tensor(ids[None])}
    if target_ids is not None:
        inputs["decoder_input_ids"] = torch.tensor(target_ids[None])
    with torch.no_grad():
        return model.eval()(**inputs, output_attentions=True)


@pytest.mark.parametrize("name", [*REGISTERED, "splinter"])
def test_odd_configurations_are_exact(name: str, odd_folder: Callable[[str], Path]) -> None:
    odd = {**REGISTERED, "splinter": SPLINTER}[name]
    backend = load_tiny(odd_folder(name))
    batch = batch_of(backend)
    has_target = batch.decoder_input_ids is not None

    captured, outputs = capture(
        backend, batch, CaptureSpec(attentions=True, hidden_states=not has_target)
    )

    support = backend.info.attention
    assert support.method == ("eager" if odd is SPLINTER else "registered"), support.reason
    for row, encoding in enumerate(encodings(backend)):
        target_ids = targets(backend)[row].input_ids if has_target else None
        wanted = eager(odd, odd_folder(name), encoding.input_ids, target_ids)
        for stack, layers in support.layers.items():
            queries, keys = masks(stack, batch, row)
            assert len(layers) == len(wanted[stack])
            for layer, weights in zip(layers, wanted[stack], strict=True):
                found = captured[stack, layer][row][:, queries][:, :, keys]
                np.testing.assert_allclose(found, weights[0], rtol=0, atol=EXACT)
        if (state := wanted.get("last_hidden_state")) is not None and not has_target:
            queries, _ = masks("attentions", batch, row)
            found = outputs.hidden_states["hidden_states"][-1, row, queries]
            np.testing.assert_allclose(found, state[0], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_family_that_sdpa_gets_wrong_is_run_eagerly(
    dtype: str, odd_folder: Callable[[str], Path]
) -> None:
    # Splinter looks both ways, and SDPA takes it for causal: seen in half precision, too
    info = load_tiny(odd_folder("splinter"), dtype=dtype).info

    assert info.attention_implementation == "eager"
    assert info.attention.method == "eager"
    assert info.attention.reason is not None
    assert "taken from its own eager attention: in a self-test" in info.attention.reason


def test_a_start_token_that_is_also_the_padding_is_seen(tmp_path: Path) -> None:
    # T5Gemma, not told which tokens of the target are real, would hide the first
    stack = {**_WINDOWED, "attn_logit_softcapping": 2.0, "pad_token_id": 0}
    config = transformers.T5GemmaConfig(encoder=stack, decoder=dict(stack), vocab_size=400)
    torch.manual_seed(0)
    model = transformers.T5GemmaForConditionalGeneration(config)
    backend = load_tiny(_save(model, tmp_path))
    source, target = np.array([[5, 6, 7]]), np.array([[0, 8, 9]])
    batch = Batch(input_ids=source, attention_mask=np.ones_like(source), decoder_input_ids=target)

    captured, _ = capture(backend, batch, CaptureSpec(attentions=True))

    assert (captured["decoder_attentions", 0][0, :, :, 0] > 0).all()


def test_states_of_several_streams_are_refused_but_not_the_attention(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    settings = {
        **_WINDOWED, "layer_types": kinds, "num_hidden_layers": 4, "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 400, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 4,
    }  # fmt: skip
    del settings["query_pre_attn_scalar"]
    backend = load_tiny(make(Odd("Gemma3nForCausalLM", "Gemma3nTextConfig", settings), tmp_path))
    batch = batch_of(backend)

    captured, _ = capture(backend, batch, CaptureSpec(attentions=True))

    assert len(captured) == 4
    for spec in (CaptureSpec(hidden_states=True), CaptureSpec(logit_lens_top_k=3)):
        with pytest.raises(CapabilityMissing):
            capture(backend, batch, spec)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_a_configuration_that_asks_for_tuples_is_not_obeyed(
    family: str, tiny_folder: TinyFolder, tmp_path: Path
) -> None:
    folder = tiny_models.build(family, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"return_dict": False}))

    assert load_tiny(folder).info.attention.available


def test_weights_saved_in_half_precision_are_run_in_full(
    tiny_folder: TinyFolder, tmp_path: Path
) -> None:
    model_class = transformers.LlamaForCausalLM
    model = model_class.from_pretrained(tiny_folder("llama"), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    tiny_models.build_tokenizer("byte_level").save_pretrained(tmp_path)
    backend = load_tiny(tmp_path, dtype="auto")
    encoding = backend.tokenize(tiny_models.LONG_TEXT)

    captured, _ = capture(backend, Batch.of([encoding]), CaptureSpec(attentions=True))

    assert backend.info.dtype == "float32"
    odd = Odd("LlamaForCausalLM", "LlamaConfig")
    for layer, weights in enumerate(eager(odd, tmp_path, encoding.input_ids, None).attentions):
        np.testing.assert_allclose(captured["attentions", layer][0], weights[0], rtol=0, atol=EXACT)


def test_bart_padded_left_is_captured_as_it_runs(
    tiny_backend: TinyBackend, tiny_folder: TinyFolder
) -> None:
    # it counts positions from the first column, padding or not: what it then does is its own doing
    backend = tiny_backend("bart")
    batch = batch_of(backend, side="left")

    captured, _ = capture(backend, batch, CaptureSpec(attentions=True))

    model: Any = transformers.BartForConditionalGeneration.from_pretrained(
        tiny_folder("bart"), attn_implementation="eager", dtype=torch.float64
    )
    names = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
    with torch.no_grad():
        wanted = model.eval()(
            **{name: torch.tensor(getattr(batch, name)) for name in names}, output_attentions=True
        )
    for (stack, layer), weights in captured.items():
        for row in range(2):
            queries, _ = masks(stack, batch, row)
            np.testing.assert_allclose(
                weights[row][:, queries], wanted[stack][layer][row][:, queries], rtol=0, atol=EXACT
            )


def test_an_embedding_read_from_the_decoder_is_not_that_of_a_target(
    tiny_backend: TinyBackend,
) -> None:
    backend = tiny_backend("bart")

    with pytest.raises(EmbeddingUnavailable, match="holds the target"):
        backend.inspect(batch_of(backend), CaptureSpec(pooled=True))


def test_a_model_without_an_output_matrix_has_no_logits(tiny_backend: TinyBackend) -> None:
    with pytest.raises(CapabilityMissing, match="BertModel gives no logits"):
        capture(tiny_backend("bert"), batch_of(tiny_backend("bert")), CaptureSpec(logits=True))
