"""One inspection: from text to what the model showed, and from there to ``Inspection``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pellucid.errors import (
    CapabilityMissing,
    InternalError,
    NonFiniteValues,
)
from pellucid.inference.admission import inspection_cost
from pellucid.inference.attention_reader import AttentionReader
from pellucid.inference.attention_tensors import float_tensor
from pellucid.inference.engine import Inspection, InspectionQuery, Tensor, Token
from pellucid.inference.plan import InspectionPlan, plan_inspection
from pellucid.inference.readings import read_change, read_logit_lens, read_projection
from pellucid.inference.source_text import SourceText, read_text
from pellucid.inference.worker import StillWanted
from pellucid.models.backend import (
    AttentionName,
    Backend,
    Batch,
    CaptureSpec,
    Encoding,
    Float32,
    ModelOutputs,
)
from pellucid.settings import Settings

_HIDDEN_AXES = ("layer", "position", "hidden")
_ALL_HIDDEN_NOTE = "index 0 is the embedding layer, index l + 1 the output of layer l"
_SOME_HIDDEN_NOTE = "outputs of the layers named in `layers`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An inspection that needs its model no more.

    UMAP is left to do, wherever nobody waits for the thread: it takes seconds, and the first one of
    a process several more.
    """

    inspection: Inspection
    umap: Callable[[], dict[str, Any]] | None = None  # makes the projection

    def completed(self) -> Inspection:
        """With the projection, where one is left to do. Raises TooFewTokens."""
        if self.umap is None:
            return self.inspection
        started = time.perf_counter()
        projection, timing = self.umap(), dict(self.inspection.timing)
        timing["introspection_ms"] += (time.perf_counter() - started) * 1000
        return replace(self.inspection, projection=projection, timing=timing)


def inspect(
    backend: Backend,
    query: InspectionQuery,
    *,
    settings: Settings,
    still_wanted: StillWanted = lambda: None,
) -> Seen:
    """``prepare`` and ``run`` at once, for who shares the memory with nobody."""
    return run(backend, prepare(backend, query, settings=settings), still_wanted=still_wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An inspection whose text is tokenised, and that may be afforded."""

    plan: InspectionPlan
    source_text: SourceText
    working_bytes: int  # of its run
    tokenize_ms: float


def prepare(backend: Backend, query: InspectionQuery, *, settings: Settings) -> Prepared:
    """Tokenise and admit; in the thread that owns the model.

    Raises errors under InvalidInput and CapabilityMissing.
    """
    started = time.perf_counter()
    plan = plan_inspection(backend.info, query)
    text = read_text(backend, plan, settings=settings)
    cost = inspection_cost(plan, seq_len=text.source_len, target_len=text.target_len)
    return Prepared(
        plan=plan,
        source_text=text,
        working_bytes=cost.working_bytes,
        tokenize_ms=(time.perf_counter() - started) * 1000,
    )


def run(backend: Backend, prepared: Prepared, *, still_wanted: StillWanted = lambda: None) -> Seen:
    """The forward pass, and what is read of it; in the thread that owns the model.

    Raises errors under InvalidInput, CapabilityMissing and InternalError.
    """
    started = time.perf_counter()
    still_wanted()
    plan, source_text = prepared.plan, prepared.source_text
    results = _run(backend, plan, source_text, still_wanted=still_wanted)
    timing = {
        "tokenize_ms": prepared.tokenize_ms,
        "forward_ms": results.forward_ms,
        "introspection_ms": (time.perf_counter() - started) * 1000 - results.forward_ms,
    }
    source, target = source_text.source, source_text.target
    inspection = Inspection(
        model=backend.info,
        tokens=_tokens(source),
        target_tokens=None if target is None else _tokens(target),
        target_generated=source_text.target_generated,
        truncated=source.truncated,
        num_tokens_untruncated=source.num_tokens_untruncated,
        layers=plan.answered_layers,
        heads=plan.answered_heads,
        tensors=results.tensors,
        statistics=results.statistics,
        patterns=results.patterns,
        projection=results.projection,
        logit_lens=results.logit_lens,
        change=results.change,
        timing=timing,
    )
    return Seen(inspection=inspection, umap=results.umap)


def _tokens(encoding: Encoding) -> tuple[Token, ...]:
    return tuple(
        Token(id=int(token_id), text=text, start=start, end=end, special=special, text_index=index)
        for token_id, text, (start, end), special, index in zip(
            encoding.input_ids.tolist(),
            encoding.tokens,
            encoding.offsets.tolist(),
            encoding.special.tolist(),
            encoding.text_index.tolist(),
            strict=True,
        )
    )


# ------------------------------------------------------------------------------------- the run


@dataclass(slots=True, kw_only=True)
class _Results:
    tensors: dict[str, Tensor]
    forward_ms: float = 0.0
    statistics: dict[str, Any] | None = None
    patterns: dict[str, Any] | None = None
    projection: dict[str, Any] | None = None
    umap: Callable[[], dict[str, Any]] | None = None
    logit_lens: dict[str, Any] | None = None
    change: dict[str, Any] | None = None


class _TimedSink:
    """Hands attention on, and knows how long that took: it is no part of the forward pass."""

    def __init__(self, reader: AttentionReader) -> None:
        self._reader = reader
        self.elapsed_ms = 0.0

    def __call__(self, name: AttentionName, layer: int, weights: Float32) -> None:
        started = time.perf_counter()
        self._reader(name, layer, weights)
        self.elapsed_ms += (time.perf_counter() - started) * 1000


def _run(
    backend: Backend, plan: InspectionPlan, source_text: SourceText, *, still_wanted: StillWanted
) -> _Results:
    results = _Results(tensors={})
    if not plan.needs_forward:
        return results
    batch, spec = source_text.batch(backend), plan.spec()
    before = None
    if plan.query.knockouts:
        before, spec = _uncut_run(backend, batch, spec)
        results.forward_ms += before.forward_ms
        still_wanted()
    reader = AttentionReader(plan, source=source_text.source, target=source_text.target)
    sink = _TimedSink(reader)
    started = time.perf_counter()
    outputs = backend.inspect(batch, spec, sink=sink)
    results.forward_ms += (time.perf_counter() - started) * 1000 - sink.elapsed_ms
    reader.check_complete()
    still_wanted()
    _read_attention(plan, reader, outputs, results)
    _read_hidden_states(plan, outputs, results)
    if outputs.logit_lens is not None:
        results.logit_lens = read_logit_lens(backend, outputs.logit_lens)
    if before is not None:
        results.change = read_change(backend, before=before, after=outputs)
    return results


def _uncut_run(
    backend: Backend, batch: Batch, spec: CaptureSpec
) -> tuple[ModelOutputs, CaptureSpec]:
    """The run that the cut one is compared with, and the cut run's spec with the same in it."""
    if backend.info.kind != "encoder":
        try:
            return backend.inspect(batch, CaptureSpec(logits=True)), replace(spec, logits=True)
        except CapabilityMissing:  # a decoder without its output matrix still gives an embedding
            pass
    return backend.inspect(batch, CaptureSpec(pooled=True)), replace(spec, pooled=True)


def _read_attention(
    plan: InspectionPlan, reader: AttentionReader, outputs: ModelOutputs, results: _Results
) -> None:
    results.tensors |= reader.tensors(outputs.value_norms)
    for name, tensor in results.tensors.items():
        _require_finite(plan, tensor.values, where=name)
    if plan.includes("statistics"):
        results.statistics = reader.statistics()
    if plan.includes("patterns"):
        results.patterns = reader.patterns()


def _read_hidden_states(plan: InspectionPlan, outputs: ModelOutputs, results: _Results) -> None:
    for name, states in outputs.hidden_states.items():
        _require_finite(plan, states, where=name)
        of_decoder = name == "decoder_hidden_states"
        num_layers = (plan.info.num_decoder_layers if of_decoder else plan.info.num_layers) or 0
        kept = plan.hidden_indices or tuple(range(num_layers + 1))
        if len(states) != len(kept):
            raise InternalError() from ValueError(f"{len(states)} {name}, {len(kept)} were asked")
        if plan.includes("hidden_states"):
            results.tensors[name] = _hidden_tensor(
                plan, states[:, 0], kept=kept, num_layers=num_layers
            )
        if plan.includes("projection") and not of_decoder:
            index = plan.projected_index
            chosen = states[:, 0] if index is None else states[kept.index(index), 0][None]
            if plan.query.projection.method == "umap":
                results.umap = partial(read_projection, plan, chosen, name=name)
            else:
                results.projection = read_projection(plan, chosen, name=name)


def _hidden_tensor(
    plan: InspectionPlan, states: Float32, *, kept: tuple[int, ...], num_layers: int
) -> Tensor:
    note = _ALL_HIDDEN_NOTE
    answered = plan.answered_hidden(num_layers)
    if answered is not None:
        by_layer = plan.query.hidden_layers is None
        note = _SOME_HIDDEN_NOTE if by_layer else f"{_ALL_HIDDEN_NOTE}: here {list(answered)}"
        states = states[[kept.index(index) for index in answered]]
    tensor = float_tensor(states, axes=_HIDDEN_AXES, dtype=plan.query.dtype)
    return replace(tensor, note=note if tensor.note is None else f"{note}; {tensor.note}")


def _require_finite(plan: InspectionPlan, values: Any, *, where: str) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise NonFiniteValues(model_id=plan.info.model_id, where=where)
