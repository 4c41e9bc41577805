"""The seam between the product and whoever runs models: ``Engine`` and the values that cross it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from pellucid.errors import PellucidError
from pellucid.models.backend import (
    EmbeddingRuntime,
    Float32,
    InputType,
    Knockout,
    ModelInfo,
    ModelRef,
    Truncation,
)

TensorDtype = Literal["float32", "float16", "uint8"]
Include = Literal[
    "hidden_states",
    "attentions",
    "statistics",
    "patterns",
    "projection",
    "rollout",
    "norm_weighted",
    "logit_lens",
]
AnswerFormat = Literal["json", "safetensors"]
Priority = Literal["interactive", "bulk"]
EmbeddingTruncation = Literal["error", "end", "start", "chunk"]
ModelState = Literal["available", "loading", "loaded", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingQuery:
    """Texts (or token ids) to embed with one model."""

    inputs: Sequence[str | Sequence[int]]
    model: ModelRef | None = None  # None = the default model
    normalize: bool = True  # L2
    dimensions: int | None = None
    input_type: InputType | None = None  # chooses the model's query or document prompt
    prompt_name: str | None = None
    truncate: EmbeddingTruncation = "end"
    """A text that is too long: refused, cut at an end, or read in pieces whose vectors are
    averaged, each weighing as many as its tokens (special tokens and prompt not counted)."""
    priority: Priority | None = None  # None = interactive for a few texts, bulk for many
    on_error: Literal["fail", "report"] = "fail"  # one bad input: the request fails, or it alone
    input_name: str = "inputs[{index}]"  # what errors call an input: the caller's own word

    def name_of(self, index: int) -> str:
        return self.input_name.format(index=index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """One vector per input, in the order sent."""

    vectors: Float32  # [n, dimensions], finite; zeros for inputs in ``errors``
    truncated: tuple[bool, ...]
    num_tokens: tuple[int, ...]  # read by the model, special tokens counted
    model: ModelInfo
    timing: Mapping[str, float]  # milliseconds: tokenize_ms, queue_ms, forward_ms, total_ms
    num_chunks: tuple[int, ...] = ()  # pieces that each input was read in; empty = one each
    errors: Mapping[int, PellucidError] = field(default_factory=dict)  # by index, if reported
    lane: Priority = "interactive"  # where it queued


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionQuery:
    method: Literal["pca", "umap"] = "pca"
    dimensions: Literal[2, 3] = 2
    layer: int | Literal["all"] = -1  # index into hidden_states; -1 = the last


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectionQuery:
    """One text to look into. Exactly one of text, input_ids, messages is given."""

    model: ModelRef | None = None
    text: str | None = None
    input_ids: Sequence[int] | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    text_pair: str | None = None
    target_text: str | None = None  # encoder-decoder: None = generated greedily
    include: frozenset[Include] = frozenset({"attentions", "statistics"})
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    hidden_layers: tuple[int, ...] | None = None  # of hidden_states, -1 = the last; None = `layers`
    dtype: TensorDtype = "float32"
    projection: ProjectionQuery = field(default_factory=ProjectionQuery)
    knockouts: tuple[Knockout, ...] = ()
    truncate: Truncation = "error"
    max_tokens: int | None = None
    answer_format: AnswerFormat = "json"  # how it will leave: its size is limited beforehand


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    id: int
    text: str
    start: int  # character offsets into the original text
    end: int
    special: bool
    text_index: int = 0  # 0 = text, 1 = text_pair, -1 = special


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """Values with their meaning. ``value = stored * scale`` where ``scale`` is given (uint8)."""

    values: NDArray[Any]
    axes: tuple[str, ...]
    scale: float | None = None
    note: str | None = None  # e.g. "uint8 was asked for, sent as float16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was seen. Everything besides ``tensors`` is plain data, ready for JSON."""

    model: ModelInfo
    tokens: tuple[Token, ...]
    target_tokens: tuple[Token, ...] | None
    target_generated: bool
    truncated: bool
    num_tokens_untruncated: int
    layers: tuple[int, ...]  # what index i of a layer axis stands for
    heads: tuple[int, ...]
    tensors: Mapping[str, Tensor]
    statistics: Mapping[str, Any] | None = None  # by attention name; see introspection
    patterns: Mapping[str, Any] | None = None
    projection: Mapping[str, Any] | None = None
    logit_lens: Mapping[str, Any] | None = None
    change: Mapping[str, Any] | None = None  # what the knock-outs changed
    timing: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeEstimate:
    """What loading a model would take, known before anything is downloaded."""

    model_id: str
    revision: str
    weights_bytes: int
    download_bytes: int  # still to fetch; 0 = all on this machine
    memory_bytes: int  # once loaded
    num_parameters: int | None
    source: Literal["default", "local", "cache", "hub"]
    fits: bool
    limit_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What waits in one lane."""

    requests: int = 0
    tokens: int = 0  # of embedding requests

    def __add__(self, other: Waiting) -> Waiting:
        return Waiting(requests=self.requests + other.requests, tokens=self.tokens + other.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """One line of the list of models."""

    model_id: str
    revision: str | None
    state: ModelState
    is_default: bool = False
    in_use: int = 0  # requests that hold it now
    waiting: int = 0
    waiting_by_lane: Mapping[str, Waiting] = field(default_factory=dict)
    memory_bytes: int | None = None
    info: ModelInfo | None = None
    embedding: EmbeddingRuntime | None = None  # None: what embeds it is not loaded
    error: Mapping[str, Any] | None = None  # code and detail of the last failure
    healthy: bool = True  # False: its worker stopped answering and is being replaced


class Engine(Protocol):
    """Runs models. Every method may be called from many tasks at once."""

    async def embed(self, query: EmbeddingQuery) -> Embeddings: ...

    async def inspect(self, query: InspectionQuery) -> Inspection: ...

    async def load(self, ref: ModelRef | None = None) -> ModelInfo:
        """Make a model ready (None = the default); returns at once when it is."""
        ...

    async def unload(self, ref: ModelRef | None = None) -> int:
        """Free one model, or all (None) that are idle; returns the bytes given back.

        Raises ModelNotLoaded, ModelInUse.
        """
        ...

    async def estimate(self, ref: ModelRef) -> SizeEstimate: ...

    async def memory_budget_bytes(self) -> int:
        """For all loaded models together; the device is asked once, which may take a moment."""
        ...

    def list_models(self) -> list[ModelStatus]: ...

    def default_status(self) -> ModelStatus:
        """The default model's state; cheap, for /health and /ready."""
        ...

    async def drain(self, *, timeout_s: float) -> None:
        """Take no new work; come back when all that runs or waits is answered.

        What is not done after ``timeout_s`` is answered with NotReady.
        """
        ...

    async def close(self) -> None: ...
