"""An engine that answers what a test tells it to, without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pellucid.inference.engine import (
    EmbeddingQuery,
    Embeddings,
    Inspection,
    InspectionQuery,
    ModelState,
    ModelStatus,
    SizeEstimate,
    Tensor,
    Token,
)
from pellucid.models.backend import AttentionSupport, ModelInfo, ModelRef

STUB_INFO = ModelInfo(
    model_id="stub/model",
    revision="0" * 40,
    architecture="StubModel",
    model_type="stub",
    kind="encoder",
    num_layers=2,
    num_heads=3,
    num_decoder_layers=None,
    num_decoder_heads=None,
    hidden_size=8,
    vocab_size=100,
    max_tokens=64,
    max_embedding_tokens=64,
    dimensions=8,
    matryoshka_dimensions=(),
    pooling="mean",
    prompts={},
    device="cpu",
    dtype="float32",
    attention_implementation="stub",
    num_parameters=1000,
    memory_bytes=4000,
    attention=AttentionSupport(available=True, layers={"attentions": (0, 1)}, method="registered"),
)


@dataclass(slots=True)
class StubEngine:
    """Implements ``Engine``. Words are tokens; all values come from a seed."""

    error: BaseException | None = None  # raised by embed, inspect and load
    hold: asyncio.Event | None = None  # embed and inspect wait for it
    state: ModelState = "loaded"
    nan: bool = False
    tensors: Mapping[str, Tensor] | None = None
    info: ModelInfo = STUB_INFO
    answer: Mapping[str, Any] = field(default_factory=dict)  # of embed, instead of the usual
    seen: list[Any] = field(default_factory=list)
    cancelled: int = 0
    closed: bool = False
    healthy: bool = True
    drained_s: float | None = None  # the timeout that ``drain`` was given

    async def embed(self, query: EmbeddingQuery) -> Embeddings:
        await self._work(query)
        vectors = np.random.default_rng(0).normal(size=(len(query.inputs), 8)).astype(np.float32)
        if self.nan:
            vectors[0, 0] = np.nan
        usual = Embeddings(
            vectors=vectors,
            truncated=(False,) * len(query.inputs),
            num_tokens=(3,) * len(query.inputs),
            model=self.info,
            timing={"queue_ms": 1.0, "forward_ms": 2.0, "total_ms": 3.0},
        )
        return replace(usual, **self.answer)

    async def inspect(self, query: InspectionQuery) -> Inspection:
        await self._work(query)
        words = (query.text or "a b c").split()
        return Inspection(
            model=self.info,
            tokens=tuple(
                Token(id=i, text=word, start=0, end=len(word), special=False)
                for i, word in enumerate(words)
            ),
            target_tokens=None,
            target_generated=False,
            truncated=False,
            num_tokens_untruncated=len(words),
            layers=(0, 1),
            heads=(0, 1, 2),
            tensors=self.tensors if self.tensors is not None else self._tensors(len(words)),
            statistics={"attentions": {"entropy": np.ones((2, 3), dtype=np.float32)}},
            timing={"forward_ms": 2.0, "total_ms": 3.0},
        )

    async def load(self, ref: ModelRef | None = None) -> ModelInfo:
        await self._work(ref)
        self.state = "loaded"
        return self.info

    async def unload(self, ref: ModelRef | None = None) -> int:
        await self._work(ref)
        self.state = "available"
        return 4000

    async def estimate(self, ref: ModelRef) -> SizeEstimate:
        await self._work(ref)
        return SizeEstimate(
            model_id=ref.model_id,
            revision="0" * 40,
            weights_bytes=10,
            download_bytes=0,
            memory_bytes=20,
            num_parameters=5,
            source="cache",
            fits=True,
            limit_bytes=100,
        )

    async def memory_budget_bytes(self) -> int:
        return 1_000_000

    def list_models(self) -> list[ModelStatus]:
        return [self.default_status()]

    def default_status(self) -> ModelStatus:
        loaded = self.state == "loaded"
        return ModelStatus(
            model_id=self.info.model_id,
            revision=self.info.revision if loaded else None,
            state=self.state,
            is_default=True,
            memory_bytes=self.info.memory_bytes if loaded else None,
            info=self.info if loaded else None,
            embedding=self.info.embedding if loaded else None,
            healthy=self.healthy,
        )

    async def drain(self, *, timeout_s: float) -> None:
        self.drained_s = timeout_s

    async def close(self) -> None:
        self.closed = True

    async def _work(self, query: Any) -> None:
        self.seen.append(query)
        try:
            if self.hold is not None:
                await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error

    def _tensors(self, length: int) -> dict[str, Tensor]:
        weights = np.random.default_rng(1).dirichlet(np.ones(length), size=(2, 3, length))
        if self.nan:
            weights[0, 0, 0, 0] = np.nan
        return {
            "attentions": Tensor(
                values=weights.astype(np.float32),
                axes=("layer", "head", "query_position", "key_position"),
            )
        }


def with_info(engine: StubEngine, **changes: Any) -> StubEngine:
    return replace(engine, info=replace(engine.info, **changes))
