"""The backend on torch and transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.errors import (
    EmbeddingUnavailable,
    ForwardOutOfMemory,
    GenerationUnavailable,
    ModelLoadFailed,
    ModelNotLoaded,
)
from pellucid.models import memory
from pellucid.models.backend import (
    AttentionSink,
    Batch,
    CaptureSpec,
    EmbeddingInput,
    Encoding,
    Float32,
    Int64,
    ModelInfo,
    ModelOutputs,
    Truncation,
)
from pellucid.models.capabilities import Capabilities
from pellucid.models.embedding.pipeline import EmbeddingPipeline
from pellucid.models.embedding.text_encoder import embedding_encoder, text_encoder
from pellucid.models.exact_precision import in_float32
from pellucid.models.greedy_generation import GreedyGenerator
from pellucid.models.inspector import Inspector
from pellucid.models.loading import LoadedTransformer, load_transformer
from pellucid.models.model_info import describe
from pellucid.models.model_inputs import ModelInputs
from pellucid.models.probe import Probe
from pellucid.models.sources.source import ModelSource
from pellucid.models.text.tokenization import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """Everything that holds the model; dropped as one when it is closed."""

    loaded: LoadedTransformer
    inspector: Inspector
    generator: GreedyGenerator | None
    embedding_encoder: nn.Module
    inputs: ModelInputs  # of the embedding encoder
    pipeline: EmbeddingPipeline | EmbeddingUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingParts:
    """What computes a model's embeddings, for whoever makes something else of it."""

    encoder: nn.Module
    pipeline: EmbeddingPipeline
    takes_use_cache: bool
    takes_token_types: bool


class TransformersBackend:
    """One loaded model. Calls come from one thread at a time; other backends may run meanwhile."""

    def __init__(self, *, parts: _Parts, tokenizer: Tokenizer, info: ModelInfo) -> None:
        self._open_parts: _Parts | None = parts
        self._tokenizer = tokenizer
        self._info = info

    @classmethod
    def load(
        cls,
        source: ModelSource,
        *,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        num_threads: int | None = None,
    ) -> TransformersBackend:
        """Load a model and prove on a probe what it can show.

        ``num_threads`` is for the whole process. Raises ModelLoadFailed, RemoteCodeRequired.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        loaded = load_transformer(
            source, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
        tokenizer = Tokenizer.load(
            source.folder,
            config=loaded.config,
            model_kind=loaded.kind,
            model_id=source.model_id,
            trust_remote_code=trust_remote_code,
        )
        inputs = ModelInputs(loaded.model, device=loaded.device)
        probe = Probe(loaded, inputs, tokenizer.pad_id)
        capabilities = _prove(source, probe)
        pipeline = _load_pipeline(source, loaded, tokenizer, capabilities)
        encoder = embedding_encoder(loaded, trial_ids=probe.single.input_ids)
        parts = _Parts(
            loaded=loaded,
            inspector=Inspector(loaded, capabilities, model_id=source.model_id),
            generator=GreedyGenerator.of(loaded, pad_id=tokenizer.pad_id),
            embedding_encoder=encoder,
            inputs=ModelInputs(encoder, device=loaded.device),
            pipeline=pipeline,
        )
        info = describe(source, loaded, capabilities, tokenizer=tokenizer, pipeline=pipeline)
        return cls(parts=parts, tokenizer=tokenizer, info=info)

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def pad_id(self) -> int:
        return self._tokenizer.pad_id

    @property
    def embedding_parts(self) -> EmbeddingParts:
        """Raises EmbeddingUnavailable."""
        parameters = signature(self._parts.embedding_encoder.forward).parameters
        return EmbeddingParts(
            encoder=self._parts.embedding_encoder,
            pipeline=self._pipeline,
            takes_use_cache="use_cache" in parameters,
            takes_token_types="token_type_ids" in parameters,
        )

    def tokenize(
        self,
        text: str,
        *,
        text_pair: str | None = None,
        max_tokens: int | None = None,
        truncation: Truncation = "error",
        target: bool = False,
    ) -> Encoding:
        return self._tokenizer.tokenize(
            text,
            text_pair=text_pair,
            max_tokens=max_tokens,
            truncation=truncation,
            target=target,
            field="target_text" if target else "text",
        )

    def tokenize_messages(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int | None = None,
        truncation: Truncation = "error",
    ) -> Encoding:
        return self._tokenizer.tokenize_messages(
            messages, max_tokens=max_tokens, truncation=truncation
        )

    def encoding_of(self, input_ids: Sequence[int], *, target: bool = False) -> Encoding:
        return self._tokenizer.encoding_of(input_ids, target=target)

    def tokenize_for_embedding(
        self, texts: Sequence[str], *, prompt: str | None = None, truncation: Truncation = "end"
    ) -> list[EmbeddingInput]:
        return self._pipeline.tokenize_for_embedding(texts, prompt=prompt, truncation=truncation)

    def chunk_for_embedding(
        self, texts: Sequence[str], *, prompt: str | None = None
    ) -> list[list[EmbeddingInput]]:
        return self._pipeline.chunk_for_embedding(texts, prompt=prompt)

    def ids_for_embedding(self, input_ids: Sequence[int]) -> EmbeddingInput:
        if self._pipeline.tokenizer is not None:
            return self._pipeline.tokenizer.checked_ids(input_ids)
        encoding = self._tokenizer.encoding_of(input_ids)
        return EmbeddingInput(
            input_ids=encoding.input_ids,
            num_tokens_untruncated=encoding.num_tokens_untruncated,
            token_type_ids=encoding.token_type_ids,
        )

    def encode(self, batch: Batch, *, exact: bool = False) -> Float32:
        try:
            return self._encoded(batch, exact=exact)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
        # Out here, for the error's own frames hold what the batch had computed.
        memory.give_back(self._parts.loaded.device)
        raise ForwardOutOfMemory(
            model_id=self._info.model_id,
            inputs=len(batch.input_ids),
            tokens=int(batch.attention_mask.sum()),
        )

    def _encoded(self, batch: Batch, *, exact: bool) -> Float32:
        parts, pipeline = self._parts, self._pipeline
        precision = in_float32(parts.embedding_encoder) if exact else nullcontext()
        with precision, torch.inference_mode():
            outputs = parts.embedding_encoder(**parts.inputs.of_encoder(batch))
            pooled = _pool(pipeline, outputs.last_hidden_state, batch, batch.num_prompt_tokens)
        vectors: Float32 = pooled.to(torch.float32).numpy(force=True)
        return vectors

    def inspect(
        self, batch: Batch, spec: CaptureSpec, *, sink: AttentionSink | None = None
    ) -> ModelOutputs:
        pipeline = self._pipeline if spec.pooled else None
        if pipeline is not None and self._parts.embedding_encoder is not text_encoder(
            self._parts.loaded
        ):
            raise EmbeddingUnavailable(
                model_id=self._info.model_id,
                reason="it is read from the decoder, which in an inspection holds the target",
            )

        def pool(state: Tensor, batch: Batch) -> Tensor:
            assert pipeline is not None
            return _pool(pipeline, state, batch, batch.num_prompt_tokens)

        return self._parts.inspector.inspect(batch, spec, sink=sink, pool=pool)

    def generate_greedily(self, encoding: Encoding, *, max_new_tokens: int) -> Int64:
        generator = self._parts.generator
        if generator is None:
            raise GenerationUnavailable(
                model_id=self._info.model_id,
                reason=f"{self._info.architecture} predicts no next token",
            )
        return generator.generate(encoding.input_ids, max_new_tokens=max_new_tokens)

    def close(self) -> None:
        if self._open_parts is None:
            return
        loaded = self._open_parts.loaded
        memory.empty(loaded.model)
        self._open_parts = None
        memory.give_back(loaded.device)

    @property
    def _parts(self) -> _Parts:
        if self._open_parts is None:
            raise ModelNotLoaded(model_id=self._info.model_id)
        return self._open_parts

    @property
    def _pipeline(self) -> EmbeddingPipeline:
        pipeline = self._parts.pipeline
        if isinstance(pipeline, EmbeddingUnavailable):
            raise pipeline
        return pipeline


def _prove(source: ModelSource, probe: Probe) -> Capabilities:
    try:
        return Capabilities.prove(probe)
    except Exception as error:  # a model of images, say, fails in a way of its own
        kind, text = type(probe.loaded.model).__name__, (str(error) or repr(error)).splitlines()[0]
        raise ModelLoadFailed(
            model_id=source.model_id,
            reason=f"{kind} could not be run on a few tokens of text ({text.rstrip('.')})",
        ) from error


def _load_pipeline(
    source: ModelSource,
    loaded: LoadedTransformer,
    tokenizer: Tokenizer,
    capabilities: Capabilities,
) -> EmbeddingPipeline | EmbeddingUnavailable:
    """The pipeline, or why there is none: such a model can still be inspected."""
    options: dict[str, Any] = {
        "config": loaded.config,
        "hidden_size": capabilities.hidden_size,
        "model_kind": loaded.kind,
        "tokenizer": tokenizer,
        "model_id": source.model_id,
        "device": loaded.device,
    }
    try:
        return EmbeddingPipeline.load(source.folder, **options)
    except EmbeddingUnavailable as unavailable:
        return unavailable


def _pool(
    pipeline: EmbeddingPipeline, state: Tensor, batch: Batch, prompts: Int64 | None
) -> Tensor:
    attention_mask = torch.as_tensor(batch.attention_mask, device=state.device)
    prompt_tokens = None if prompts is None else torch.as_tensor(prompts, device=state.device)
    return pipeline.pool(state, attention_mask, prompt_tokens=prompt_tokens)
