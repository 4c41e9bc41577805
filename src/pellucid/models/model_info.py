"""A loaded model, described."""

from __future__ import annotations

import torch

from pellucid.errors import EmbeddingUnavailable
from pellucid.models import memory
from pellucid.models.attention.function import IMPLEMENTATION
from pellucid.models.backend import AttentionName, EmbeddingRuntime, ModelInfo
from pellucid.models.capabilities import Capabilities
from pellucid.models.embedding.pipeline import EmbeddingPipeline
from pellucid.models.loading import LoadedTransformer
from pellucid.models.sources.source import ModelSource
from pellucid.models.text.tokenization import Tokenizer


def describe(
    source: ModelSource,
    loaded: LoadedTransformer,
    capabilities: Capabilities,
    *,
    tokenizer: Tokenizer,
    pipeline: EmbeddingPipeline | EmbeddingUnavailable,
) -> ModelInfo:
    """Everything that is told about a model."""
    has_two_stacks = loaded.kind == "encoder-decoder"
    first: AttentionName = "encoder_attentions" if has_two_stacks else "attentions"
    heads = capabilities.attention.num_heads
    text_config = loaded.config.get_text_config()
    embedding = pipeline if isinstance(pipeline, EmbeddingPipeline) else None
    return ModelInfo(
        model_id=source.model_id,
        revision=source.revision,
        architecture=type(loaded.model).__name__,
        model_type=str(loaded.config.model_type),
        kind=loaded.kind,
        num_layers=capabilities.num_layers[first],
        num_heads=heads.get(first) or getattr(text_config, "num_attention_heads", None) or 0,
        num_decoder_layers=capabilities.num_layers.get("decoder_attentions"),
        num_decoder_heads=heads.get("decoder_attentions") if has_two_stacks else None,
        hidden_size=capabilities.hidden_size,
        vocab_size=tokenizer.vocab_size,
        max_tokens=tokenizer.max_tokens,
        max_embedding_tokens=embedding.max_tokens if embedding else None,
        dimensions=embedding.dimensions if embedding else capabilities.hidden_size,
        matryoshka_dimensions=embedding.matryoshka_dimensions if embedding else (),
        pooling=embedding.pooling if embedding else "none",
        prompts=embedding.prompts if embedding else {},
        default_prompt_name=embedding.default_prompt_name if embedding else None,
        device=loaded.device.type,
        dtype=_name_of(loaded.dtype),
        attention_implementation=_served_by(loaded, capabilities),
        num_parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        memory_bytes=memory.memory_bytes(loaded.model),
        attention=capabilities.attention.support,
        embedding=EmbeddingRuntime(runtime="torch", precision=_name_of(loaded.dtype)),
    )


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _served_by(loaded: LoadedTransformer, capabilities: Capabilities) -> str:
    """What computes the outputs: the registered function hands on to SDPA, but for soft caps and
    sinks, which it computes itself."""
    if loaded.implementation != IMPLEMENTATION:
        return loaded.implementation
    if loaded.model.config._attn_implementation != IMPLEMENTATION:
        return "eager"  # the self-test found the registered function wrong for it
    if any(site.beyond_sdpa for site in capabilities.attention.sites):
        return IMPLEMENTATION
    return "sdpa"
