"""Tiny random transformers of every family, with tokenizers, saved as the Hub holds them.

``build("gpt2", folder)`` writes config, weights and tokenizer and returns the folder. Weights are
seeded and large enough that attention is far from uniform; biases, norms, sinks and relative
position biases are not at their neutral values, so that a formula which forgets one is found out.
Windows are smaller than ``LONG_TEXT``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SENTENCES = (
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "She sells sea shells by the sea shore, and he buys them all.",
    "Attention is a weighted mean of values, where the weights come from a softmax.",
    "In 1969 two people walked on the moon; 600 million watched it on television.",
    "Ein kleines Kätzchen schläft auf dem warmen Ofen, während es draußen schneit.",
    "Le café était déjà fermé, mais la boulangerie vendait encore des croissants.",
    "Why does the model look at the first token? Because it has to look somewhere.",
    "Numbers such as 3.14159 and 2.71828 are split into many small pieces.",
)
SHORT_TEXT = "The fox jumps over the river."
LONG_TEXT = " ".join(SENTENCES[:3])
VOCAB_SIZE = 400
WINDOW = 8

TokenizerKind = Literal["byte_level", "roberta", "wordpiece", "unigram"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How to make one: tokenizer, model class and the configuration beyond the common sizes."""

    tokenizer: TokenizerKind
    model_class: str
    config_class: str
    settings: dict[str, Any] = field(default_factory=dict)
    has_attention: bool = True


_SIZES = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 256}
_ENCODER = {**_SIZES, "num_hidden_layers": 3, "intermediate_size": 48}
_DECODER = {
    **_ENCODER,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,
}


def _kinds(*kinds: str) -> dict[str, Any]:
    """Layer types of a decoder, "sliding" or "full" or "linear"."""
    return {"layer_types": [f"{kind}_attention" for kind in kinds], "num_hidden_layers": len(kinds)}


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        tokenizer="byte_level",
        model_class="GPT2LMHeadModel",
        config_class="GPT2Config",
        settings={"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 256},
    ),
    "bert": Family(
        tokenizer="wordpiece",
        model_class="BertModel",
        config_class="BertConfig",
        settings=_ENCODER,
    ),
    "distilbert": Family(
        tokenizer="wordpiece",
        model_class="DistilBertModel",
        config_class="DistilBertConfig",
        settings={
            "dim": 32, "n_heads": 4, "n_layers": 3, "hidden_dim": 48,
            "max_position_embeddings": 256,
        },
    ),
    "roberta": Family(
        tokenizer="roberta",
        model_class="RobertaModel",
        config_class="RobertaConfig",
        settings={**_ENCODER, "max_position_embeddings": 258, "type_vocab_size": 1},
    ),
    "xlm_roberta": Family(
        tokenizer="unigram",
        model_class="XLMRobertaModel",
        config_class="XLMRobertaConfig",
        settings={**_ENCODER, "max_position_embeddings": 258, "type_vocab_size": 1},
    ),
    "albert": Family(
        tokenizer="unigram",
        model_class="AlbertModel",
        config_class="AlbertConfig",
        settings={**_ENCODER, "embedding_size": 16, "num_hidden_groups": 1},
    ),
    "mpnet": Family(
        tokenizer="roberta",
        model_class="MPNetModel",
        config_class="MPNetConfig",
        settings={**_ENCODER, "max_position_embeddings": 258},
    ),
    "t5": Family(
        tokenizer="unigram",
        model_class="T5ForConditionalGeneration",
        config_class="T5Config",
        settings={
            "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2,
            "num_heads": 4, "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 16, "decoder_start_token_id": 0,
        },
    ),
    "bart": Family(
        tokenizer="roberta",
        model_class="BartForConditionalGeneration",
        config_class="BartConfig",
        settings={
            "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 2,
            "max_position_embeddings": 256, "decoder_start_token_id": 2,
            "forced_eos_token_id": None,
        },
    ),
    "opt": Family(
        tokenizer="roberta",
        model_class="OPTForCausalLM",
        config_class="OPTConfig",
        settings={
            "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 48,
            "max_position_embeddings": 256, "word_embed_proj_dim": 32,
        },
    ),
    "llama": Family(
        tokenizer="byte_level",
        model_class="LlamaForCausalLM",
        config_class="LlamaConfig",
        settings=_DECODER,
    ),
    "qwen3": Family(
        tokenizer="byte_level",
        model_class="Qwen3ForCausalLM",
        config_class="Qwen3Config",
        settings=_DECODER,
    ),
    "granite": Family(
        tokenizer="byte_level",
        model_class="GraniteForCausalLM",
        config_class="GraniteConfig",
        settings={
            **{name: value for name, value in _DECODER.items() if name != "head_dim"},
            "attention_multiplier": 0.2, "logits_scaling": 8.0, "residual_multiplier": 0.6,
            "embedding_multiplier": 3.0,
        },
    ),
    "gemma2": Family(
        tokenizer="byte_level",
        model_class="Gemma2ForCausalLM",
        config_class="Gemma2Config",
        settings={
            **_DECODER, "query_pre_attn_scalar": 12, "sliding_window": WINDOW,
            "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
            **_kinds("sliding", "full", "sliding", "full"),
        },
    ),
    "gemma3": Family(
        tokenizer="byte_level",
        model_class="Gemma3ForCausalLM",
        config_class="Gemma3TextConfig",
        settings={
            **_DECODER, "query_pre_attn_scalar": 12, "sliding_window": WINDOW,
            **_kinds("sliding", "sliding", "full", "sliding"),
        },
    ),
    "mistral": Family(
        tokenizer="byte_level",
        model_class="MistralForCausalLM",
        config_class="MistralConfig",
        settings={**_DECODER, "sliding_window": WINDOW},
    ),
    "gpt_oss": Family(
        tokenizer="byte_level",
        model_class="GptOssForCausalLM",
        config_class="GptOssConfig",
        settings={
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            **_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2,
            "sliding_window": WINDOW, **_kinds("sliding", "full", "sliding"),
        },
    ),
    "qwen3_next": Family(
        tokenizer="byte_level",
        model_class="Qwen3NextForCausalLM",
        config_class="Qwen3NextConfig",
        settings={
            **_DECODER, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
            "linear_num_key_heads": 2, "linear_num_value_heads": 4, "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2,
            **_kinds("linear", "linear", "full", "linear", "full"),
        },
    ),
    "mamba": Family(
        tokenizer="byte_level",
        model_class="MambaForCausalLM",
        config_class="MambaConfig",
        settings={"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        has_attention=False,
    ),
}  # fmt: skip


def build(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Write one model of this family, with its tokenizer, into ``folder``."""
    made = FAMILIES[family]
    tokenizer = build_tokenizer(made.tokenizer)
    ids = {
        name: getattr(tokenizer, name)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id")
        if getattr(tokenizer, name) is not None
    }
    config_class = getattr(transformers, made.config_class)
    config = config_class(vocab_size=len(tokenizer), **ids, **made.settings)
    torch.manual_seed(seed)
    model = getattr(transformers, made.model_class)(config)
    model.eval()
    _liven(model)
    if getattr(model, "generation_config", None) is not None:
        # some families would bring end tokens of their own published vocabulary
        model.generation_config.update(**ids)
    folder.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _liven(model: torch.nn.Module) -> None:
    """Move every weight away from the values at which a mistake would not show."""
    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if "relative_attention_bias" in name or leaf == "sinks":
            _draw(parameter, 1.0)
        elif "Attention.q." in name:
            _draw(parameter, 0.12)  # T5 does not divide its scores by the root of the head's size
        elif "q_norm" in name:
            parameter.data.add_(1.0 + 0.2 * torch.randn_like(parameter))  # sharper attention
        elif leaf in ("A_log", "D", "dt_bias") or "linear_attn" in name:
            continue  # recurrences have ranges of their own, and multiply every rounding
        elif parameter.ndim == 1 and leaf == "weight":  # of a norm
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
        elif parameter.ndim == 1:
            _draw(parameter, 0.2)
        elif "embed" in name or name.endswith(("wte.weight", "wpe.weight", "shared.weight")):
            _draw(parameter, 0.7)
        else:
            _draw(parameter, 0.3)


def _draw(parameter: torch.nn.Parameter, std: float) -> None:
    parameter.data.normal_(0.0, std)


def build_tokenizer(kind: TokenizerKind) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer trained on ``SENTENCES``, with the special tokens of its kind."""
    makers: dict[str, Callable[[], tuple[Tokenizer, dict[str, str]]]] = {
        "byte_level": _byte_level,
        "roberta": _roberta,
        "wordpiece": _wordpiece,
        "unigram": _unigram,
    }
    tokenizer, special_tokens = makers[kind]()
    fast = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, model_max_length=256, **special_tokens
    )
    if kind == "byte_level":
        fast.chat_template = CHAT_TEMPLATE
    return fast


def _byte_level() -> tuple[Tokenizer, dict[str, str]]:
    """GPT-2's and Llama's way: bytes, a beginning-of-text token in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B", special_tokens=[("<|begin|>", 0)]
    )
    return tokenizer, {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}


def _roberta() -> tuple[Tokenizer, dict[str, str]]:
    """RoBERTa's and BART's way: bytes between <s> and </s>, padding id 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer, {
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
        "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>",
    }  # fmt: skip


def _wordpiece() -> tuple[Tokenizer, dict[str, str]]:
    """BERT's way: lower case, word pieces between [CLS] and [SEP].

    The vocabulary is put together, not trained: WordPiece training breaks ties at random.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer(lowercase=True)
    words, letters = _words_and_letters(normalizer, pre_tokenizers.BertPreTokenizer())
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer, {
        "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }  # fmt: skip


def _unigram() -> tuple[Tokenizer, dict[str, str]]:
    """T5's way: pieces with a visible space, </s> at the end. Put together, not trained."""
    special = ["<pad>", "</s>", "<unk>"]
    normalizer = normalizers.NFKC()
    words, letters = _words_and_letters(normalizer, pre_tokenizers.Metaspace())
    pieces = list(dict.fromkeys([*special, *letters, *words]))
    scores = [0.0 if piece in special else -8.0 + 0.01 * len(piece) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), 2, False))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer, {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def _words_and_letters(
    normalizer: normalizers.Normalizer, pre_tokenizer: pre_tokenizers.PreTokenizer
) -> tuple[list[str], list[str]]:
    """Every letter of ``SENTENCES`` and the words of every second one, so that some are split."""
    words: list[str] = []
    letters: set[str] = set()
    for index, sentence in enumerate(SENTENCES):
        pieces = [p for p, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(sentence))]
        letters.update(*pieces)
        if index % 2 == 0:
            words.extend(pieces)
    return words, sorted(letters)
