"""The seam between Pellucid and a model: ``Backend`` and the values that cross it.

Only numpy crosses: whoever stands behind the seam (torch, OpenVINO, a fake) is free. Arrays that
belong to a batch have the batch first; positions of padding are told by ``attention_mask``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

ModelKind = Literal["encoder", "decoder", "encoder-decoder"]
Pooling = Literal["cls", "mean", "max", "mean_sqrt_len", "weighted_mean", "last_token"]
Truncation = Literal["error", "end", "start"]
Runtime = Literal["torch", "openvino"]
Quantization = Literal["none", "int8"]
InputType = Literal["query", "document"]

# "attentions" for models with one stack; the other three for encoder-decoder models.
AttentionName = Literal[
    "attentions", "encoder_attentions", "decoder_attentions", "cross_attentions"
]
# "hidden_states" for models with one stack; the other two for encoder-decoder models.
HiddenStatesName = Literal["hidden_states", "encoder_hidden_states", "decoder_hidden_states"]

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A model by name and, once resolved, by commit."""

    model_id: str
    revision: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSupport:
    """Which layers' attention can be captured exactly, and how that is known."""

    available: bool
    layers: Mapping[AttentionName, tuple[int, ...]] = field(default_factory=dict)
    reason: str | None = None  # why not, or why not all layers
    method: Literal["registered", "eager"] | None = None  # beside SDPA, or the model's eager path
    max_error: float | None = None  # largest difference from eager in the self-test at load


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How near the embeddings of a runtime are to torch's in float32, measured at load."""

    mean_cosine: float
    min_cosine: float
    threshold: float  # the least that ``min_cosine`` may be
    num_texts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRuntime:
    """What computes a model's embeddings, and how that is known to be right."""

    runtime: Runtime = "torch"
    precision: str = "float32"  # of the matrix products: float32, bfloat16, float16, int8
    quantization: Quantization = "none"
    parity: Parity | None = None  # None: torch itself
    reason: str | None = None  # why not a faster one


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a loaded model is."""

    model_id: str
    revision: str  # commit on the Hub; "local-<fingerprint>" for a folder
    architecture: str  # class of the loaded model, e.g. "BertModel"
    model_type: str  # transformers' family name, e.g. "bert"
    kind: ModelKind
    num_layers: int  # of the encoder for encoder-decoder models
    num_heads: int
    num_decoder_layers: int | None
    num_decoder_heads: int | None
    hidden_size: int
    vocab_size: int
    max_tokens: int | None  # longest input, special tokens counted; None = no limit of its own
    max_embedding_tokens: int | None  # where embeddings are cut (max_seq_length)
    dimensions: int  # width of an embedding
    matryoshka_dimensions: tuple[int, ...]  # shorter widths the model was trained for
    pooling: str
    prompts: Mapping[str, str]
    device: str
    dtype: str
    attention_implementation: str
    num_parameters: int
    memory_bytes: int
    attention: AttentionSupport
    default_prompt_name: str | None = None  # used for embeddings when no prompt is asked for
    embedding: EmbeddingRuntime = field(default_factory=EmbeddingRuntime)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """One text (or pair of texts) as the model reads it."""

    input_ids: Int64  # [seq_len]
    tokens: tuple[str, ...]  # readable pieces, one per id
    offsets: Int64  # [seq_len, 2] characters in the original text; (0, 0) for special tokens
    special: Bool  # [seq_len]
    text_index: Int64  # [seq_len] 0 = text, 1 = text_pair, -1 = special
    token_type_ids: Int64 | None  # [seq_len], where the model has segments
    truncated: bool
    num_tokens_untruncated: int
    num_prompt_tokens: int = 0  # leading tokens that the embedding leaves out of its pooling


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingInput:
    """One text as the embedding pipeline reads it: ids alone, for nobody asks for more here."""

    input_ids: Int64  # [seq_len], special tokens and prompt included
    num_tokens_untruncated: int
    token_type_ids: Int64 | None = None  # [seq_len], None = all zero or no segments
    num_prompt_tokens: int = 0  # leading tokens that the embedding leaves out of its pooling
    num_added_tokens: int = 0  # special tokens and prompt, of a piece of a text that was cut up

    @property
    def truncated(self) -> bool:
        return self.input_ids.size < self.num_tokens_untruncated


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Encodings side by side. Padding may stand left or right; ``attention_mask`` tells."""

    input_ids: Int64  # [batch, seq_len]
    attention_mask: Int64  # [batch, seq_len], 1 = real token
    token_type_ids: Int64 | None = None  # [batch, seq_len]
    decoder_input_ids: Int64 | None = None  # [batch, target_len], encoder-decoder models only
    decoder_attention_mask: Int64 | None = None  # [batch, target_len]
    num_prompt_tokens: Int64 | None = None  # [batch], where the embedding leaves the prompt out

    @classmethod
    def of(cls, encodings: Sequence[Encoding | EmbeddingInput], *, pad_id: int = 0) -> Batch:
        """Encodings padded right to the longest."""
        longest = max(encoding.input_ids.size for encoding in encodings)
        input_ids = np.full((len(encodings), longest), pad_id, dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        has_segments = any(encoding.token_type_ids is not None for encoding in encodings)
        token_type_ids = np.zeros_like(input_ids) if has_segments else None
        for row, encoding in enumerate(encodings):
            length = encoding.input_ids.size
            input_ids[row, :length] = encoding.input_ids
            attention_mask[row, :length] = 1
            if token_type_ids is not None and encoding.token_type_ids is not None:
                token_type_ids[row, :length] = encoding.token_type_ids
        num_prompt_tokens = np.array([e.num_prompt_tokens for e in encodings], dtype=np.int64)
        return cls(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            num_prompt_tokens=num_prompt_tokens if num_prompt_tokens.any() else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Knockout:
    """Edges cut before the softmax. ``None`` means all of that kind.

    An edge is cut when its layer, head, query position and key position are all named
    (Geva et al. 2023, "Dissecting Recall of Factual Associations", attention knock-out).
    """

    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    query_positions: tuple[int, ...] | None = None
    key_positions: tuple[int, ...] | None = None
    attention: AttentionName = "attentions"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSpec:
    """What to keep of one forward pass. Nothing else is computed or stored."""

    attentions: bool = False
    hidden_states: bool = False
    value_norms: bool = False  # for norm-weighted attention
    logits: bool = False  # all positions; CapabilityMissing where the model gives none
    logit_lens_top_k: int | None = None  # causal models
    pooled: bool = False  # the embedding, before normalisation
    layers: tuple[int, ...] | None = None  # None = all; index in encoder and decoder alike
    heads: tuple[int, ...] | None = None
    hidden_layers: tuple[int, ...] | None = None
    """Indices into the whole ``hidden_states`` (0 = embeddings): just these are kept, in this
    order, whatever ``layers`` says of them. None = as ``layers`` says."""
    knockouts: tuple[Knockout, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitLens:
    """Most likely next tokens as each layer's hidden state would have them."""

    token_ids: Int64  # [num_layers + 1, batch, seq_len, top_k], index 0 = embedding layer
    probabilities: Float32  # the same shape
    entropy: Float32  # [num_layers + 1, batch, seq_len], nats


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOutputs:
    """What one forward pass gave. Attentions went to ``AttentionSink`` as they were computed."""

    hidden_states: Mapping[HiddenStatesName, Float32] = field(default_factory=dict)
    """[num_layers + 1, batch, seq_len, hidden_size]; with ``layers`` given, [len(layers), ...]:
    layer ``l`` then means its output, ``hidden_states[l + 1]`` of the whole."""
    value_norms: Mapping[tuple[AttentionName, int], Float32] = field(default_factory=dict)
    """Per attention and layer [batch, num_heads, key_len]: norm of each token's value vector after
    the output projection of that head (Kobayashi et al. 2020, ``||f(x)||``)."""
    logits: Float32 | None = None  # [batch, seq_len or target_len, vocab_size]
    logit_lens: LogitLens | None = None
    pooled: Float32 | None = None  # [batch, dimensions]
    forward_ms: float = 0.0


AttentionSink = Callable[[AttentionName, int, Float32], None]
"""Receives (name, layer, weights [batch, num_heads, query_len, key_len] float32) layer by layer,
so that a whole model's attention never has to be in memory as float32. The array is the
receiver's to keep."""


class Backend(Protocol):
    """One loaded model. Calls come from one thread at a time, but for those that say otherwise."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def pad_id(self) -> int: ...

    def tokenize(
        self,
        text: str,
        *,
        text_pair: str | None = None,
        max_tokens: int | None = None,
        truncation: Truncation = "error",
        target: bool = False,
    ) -> Encoding:
        """Text as the model reads it, special tokens included.

        ``max_tokens`` None means the model's own limit. ``target`` tokenises for the decoder of an
        encoder-decoder model (the decoder start token first, so that ids are decoder inputs).
        Raises EmptyText, InvalidText, TooManyTokens, PairUnsupported.
        """
        ...

    def tokenize_messages(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int | None = None,
        truncation: Truncation = "error",
    ) -> Encoding:
        """Chat messages through the model's chat template. Raises ChatTemplateMissing."""
        ...

    def encoding_of(self, input_ids: Sequence[int], *, target: bool = False) -> Encoding:
        """Given ids, taken as they are (no special tokens added). Raises InvalidInputIds."""
        ...

    def tokenize_for_embedding(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        truncation: Truncation = "end",
    ) -> list[EmbeddingInput]:
        """Texts as the embedding pipeline reads them, each cut at ``max_embedding_tokens``.

        Thread-safe, also beside a running ``encode``: each thread has a tokenizer of its own.
        Raises EmptyText, InvalidText, TooManyTokens, InvalidRequest, EmbeddingUnavailable.
        """
        ...

    def chunk_for_embedding(
        self, texts: Sequence[str], *, prompt: str | None = None
    ) -> list[list[EmbeddingInput]]:
        """Each text as consecutive pieces within ``max_embedding_tokens``, nothing left out; each
        piece has the prompt and the special tokens of a text of its own. Thread-safe, raises as
        ``tokenize_for_embedding``."""
        ...

    def ids_for_embedding(self, input_ids: Sequence[int]) -> EmbeddingInput:
        """Given ids, taken as they are. Thread-safe. Raises EmptyText, InvalidInputIds,
        TooManyTokens, EmbeddingUnavailable."""
        ...

    def encode(self, batch: Batch, *, exact: bool = False) -> Float32:
        """Embeddings [batch, dimensions]: pooled, Dense layers applied, not normalised unless the
        model's own pipeline ends in Normalize. Prompts are left out of pooling as
        ``batch.num_prompt_tokens`` says. Rows may hold NaN: the caller looks. ``exact`` computes
        in float32 with float32 weights, whatever the backend is otherwise set to.

        Raises ForwardOutOfMemory.
        """
        ...

    def inspect(
        self, batch: Batch, spec: CaptureSpec, *, sink: AttentionSink | None = None
    ) -> ModelOutputs:
        """One forward pass, keeping what ``spec`` names.

        Raises AttentionUnavailable, NormWeightedUnavailable, LogitLensUnavailable,
        LayerOutOfRange, HeadOutOfRange, KnockoutInvalid, CaptureIncomplete, NonFiniteValues.
        """
        ...

    def generate_greedily(self, encoding: Encoding, *, max_new_tokens: int) -> Int64:
        """Greedy continuation [num_new]; for encoder-decoder models the decoder input ids that the
        input leads to, start token first. Raises GenerationUnavailable."""
        ...

    def close(self) -> None:
        """Give the memory back: tensors to CPU, references dropped, device cache emptied."""
        ...
