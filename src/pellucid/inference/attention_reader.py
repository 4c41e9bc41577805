"""What is read off each layer's attention the moment it has been computed.

The float32 weights of one layer are dropped before the next layer comes; only what was asked for
stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import CaptureIncomplete, NonFiniteValues
from pellucid.inference.attention_tensors import ATTENTION_AXES, LayerArrays, float_tensor
from pellucid.inference.engine import Tensor
from pellucid.inference.knockouts import visible_keys
from pellucid.inference.plan import InspectionPlan, Stack
from pellucid.introspection.attention_stats import (
    HeadStatistics,
    TokenStatistics,
    head_statistics,
    token_statistics,
)
from pellucid.introspection.head_patterns import (
    HeadPatterns,
    PatternCells,
    head_patterns,
    pattern_cells,
)
from pellucid.introspection.norm_weighted import norm_weighted_attention
from pellucid.introspection.rollout import Rollout
from pellucid.models.backend import AttentionName, Bool, Encoding, Float32

_DIGITS = 7  # of plain numbers: as many as float32 has, where float64 would write 17


class AttentionReader:
    """The sink of one inspection: takes attention in, gives tensors, statistics and patterns."""

    def __init__(self, plan: InspectionPlan, *, source: Encoding, target: Encoding | None) -> None:
        self._readers: dict[AttentionName, StackReader] = {}
        for stack in plan.stacks if plan.reads_attention else ():
            queries = source if stack.name in ("attentions", "encoder_attentions") else target
            keys = target if stack.name == "decoder_attentions" else source
            if queries is not None and keys is not None:
                self._readers[stack.name] = StackReader(plan, stack, queries=queries, keys=keys)

    def __call__(self, name: AttentionName, layer: int, weights: Float32) -> None:
        self._readers[name].take(layer, weights[0])

    def check_complete(self) -> None:
        """Raises CaptureIncomplete when a layer that was asked for never came."""
        for reader in self._readers.values():
            reader.check_complete()

    def tensors(
        self, value_norms: Mapping[tuple[AttentionName, int], Float32]
    ) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for reader in self._readers.values():
            tensors |= reader.tensors(value_norms)
        return tensors

    def statistics(self) -> dict[str, Any]:
        """By attention name, then quantity: [num_layers][num_heads], or [num_layers][tokens] (the
        mean over heads) for ``received``, ``received_relative`` and ``given``."""
        return {name: reader.statistics() for name, reader in self._readers.items()}

    def patterns(self) -> dict[str, Any]:
        """By attention name: scores and the dominant pattern, [num_layers][num_heads]. Cross
        attention has none: its queries and keys are different texts."""
        return {
            name: reader.patterns()
            for name, reader in self._readers.items()
            if not reader.stack.is_cross
        }


class StackReader:
    """One attention of the model, layer by layer."""

    def __init__(
        self, plan: InspectionPlan, stack: Stack, *, queries: Encoding, keys: Encoding
    ) -> None:
        self.stack = stack
        self._plan = plan
        self._queries = queries
        self._special = keys.special
        self._layers = plan.kept_layers(stack)
        self._kept = LayerArrays(self._layers, dtype=plan.query.dtype)
        self._exact = LayerArrays(self._layers, dtype="float32")  # waits for the value norms
        self._rollout = Rollout()
        self._heads: dict[int, HeadStatistics] = {}
        self._tokens: dict[int, TokenStatistics] = {}
        self._patterns: dict[int, HeadPatterns] = {}
        self._cells: dict[bool, PatternCells] = {}
        self._taken: set[int] = set()

    def take(self, layer: int, weights: Float32) -> None:
        """One layer, [num_heads, query_len, key_len] float32. Raises NonFiniteValues."""
        plan = self._plan
        if not np.isfinite(weights.sum(dtype=np.float64)):
            where = f"{self.stack.name} of layer {layer}"
            raise NonFiniteValues(model_id=plan.info.model_id, where=where)
        self._taken.add(layer)
        if plan.includes("rollout") and not self.stack.is_cross:
            if layer != self._rollout.num_layers:  # out of order the product would be another
                raise CaptureIncomplete(model_id=plan.info.model_id, layers=[layer - 1])
            self._rollout.add(weights)
        if layer not in self._layers:
            return
        if plan.captures_everything and plan.heads is not None:
            weights = np.ascontiguousarray(weights[list(plan.heads)])
        if plan.includes("attentions"):
            self._kept.add(layer, weights)
        if plan.includes("norm_weighted"):
            self._exact.add(layer, weights)
        if plan.includes("statistics", "patterns"):
            self._read(layer, weights)

    def _read(self, layer: int, weights: Float32) -> None:
        is_cross = self.stack.is_cross
        back, ahead = _reach(weights)
        causal = not is_cross and ahead == 0
        if self._plan.includes("statistics"):
            special = self._special
            self._heads[layer] = head_statistics(weights, special=special, cross=is_cross)
            self._tokens[layer] = token_statistics(
                weights,
                special=special,
                causal=causal,
                cross=is_cross,
                visible=self._visible(layer, weights.shape, back=back, ahead=ahead),
            )
        if self._plan.includes("patterns") and not is_cross:
            if causal not in self._cells:
                ids = self._queries.input_ids
                self._cells[causal] = pattern_cells(ids, special=self._special, causal=causal)
            self._patterns[layer] = head_patterns(weights, self._cells[causal])

    def _visible(self, layer: int, shape: tuple[int, ...], *, back: int, ahead: int) -> Bool | None:
        """Which keys each query can see, where that is neither all nor all before it."""
        num_heads, query_len, key_len = shape
        cuts = [cut for cut in self._plan.query.knockouts if cut.attention == self.stack.name]
        is_band = not self.stack.is_cross and (back < query_len - 1 or 0 < ahead < key_len - 1)
        if not cuts and not is_band:
            return None
        distance = np.arange(query_len)[:, None] - np.arange(key_len)[None, :]
        band = (distance <= back) & (distance >= -ahead)
        if self.stack.is_cross:
            band = np.ones((query_len, key_len), dtype=np.bool_)
        heads = self._plan.kept_heads(self.stack)[:num_heads]
        return np.stack(
            [visible_keys(cuts, layer=layer, head=head, visible=band) for head in heads]
        )

    def check_complete(self) -> None:
        stack, plan = self.stack, self._plan
        wanted = stack.available_layers if plan.captures_everything else self._layers
        if missing := sorted(set(wanted) - self._taken):
            raise CaptureIncomplete(model_id=plan.info.model_id, layers=missing)

    # ------------------------------------------------------------------------------ the results

    def tensors(
        self, value_norms: Mapping[tuple[AttentionName, int], Float32]
    ) -> dict[str, Tensor]:
        plan, stack, tensors = self._plan, self.stack, dict[str, Tensor]()
        if plan.includes("attentions"):
            tensors |= self._kept.tensors(stack.name)
        if plan.includes("rollout") and not stack.is_cross:
            tensors[f"{stack.prefix}rollout"] = float_tensor(
                self._rollout.result(), axes=ATTENTION_AXES[2:], dtype=plan.query.dtype
            )
        if plan.includes("norm_weighted"):
            self._weigh(value_norms)
            for name, tensor in self._exact.tensors(f"{stack.prefix}norm_weighted").items():
                tensors[name] = float_tensor(
                    tensor.values, axes=tensor.axes, dtype=plan.query.dtype
                )
        return tensors

    def _weigh(self, value_norms: Mapping[tuple[AttentionName, int], Float32]) -> None:
        """Raw weights become norm-weighted ones, in place."""
        missing = [layer for layer in self._layers if (self.stack.name, layer) not in value_norms]
        if missing:
            raise CaptureIncomplete(model_id=self._plan.info.model_id, layers=missing)
        for layer in self._layers:
            weights, norms = self._exact.layer(layer), value_norms[self.stack.name, layer][0]
            if len(norms) != len(weights):  # of all heads, where rollout had all captured
                norms = norms[list(self._plan.kept_heads(self.stack))]
            weights[...] = norm_weighted_attention(weights, norms)

    def statistics(self) -> dict[str, Any]:
        heads = [self._heads[layer] for layer in self._layers]
        tokens = [self._tokens[layer] for layer in self._layers]
        found: dict[str, Any] = {}
        for field in fields(HeadStatistics):
            values = [getattr(layer, field.name) for layer in heads]
            found[field.name] = _listed(values)
        for field in fields(TokenStatistics):
            found[field.name] = _listed(
                [getattr(layer, field.name).mean(axis=0) for layer in tokens]
            )
        return found

    def patterns(self) -> dict[str, Any]:
        layers = [self._patterns[layer] for layer in self._layers]
        if not layers:
            return {}
        first = layers[0]
        return {
            "scores": {
                name: _listed([layer.scores[name] for layer in layers]) for name in first.scores
            },
            "support": dict(first.support),
            "chance": {name: float(f"{value:.{_DIGITS}g}") for name, value in first.chance.items()},
            "dominant": [list(layer.dominant) for layer in layers],
        }


def listed(values: NDArray[Any]) -> list[Any]:
    """Plain numbers, ready for JSON, floats in as many digits as they have meaning."""
    if values.dtype.kind != "f":
        return list(values.tolist())
    exact = values.astype(np.float64)
    magnitude = np.floor(np.log10(np.abs(exact), where=exact != 0, out=np.zeros_like(exact)))
    scale = 10.0 ** np.clip(_DIGITS - 1 - magnitude, -300, 300)
    return list((np.round(exact * scale) / scale).tolist())


def _listed(layers: list[Any]) -> Any:
    """One entry per layer; None when the quantity has no meaning here."""
    if any(values is None for values in layers):
        return None
    return [values if isinstance(values, bool) else listed(values) for values in layers]


def _reach(weights: Float32) -> tuple[int, int]:
    """How far back and ahead of itself any query of any head gave any weight.

    Tells causal masks and windows apart without knowing the family: beyond a mask weights are
    exactly 0 for every head.
    """
    some = weights.max(axis=0) > 0
    rows = np.flatnonzero(some.any(axis=1))
    if not rows.size:
        return 0, 0
    some = some[rows]
    first = some.argmax(axis=1)
    last = some.shape[1] - 1 - some[:, ::-1].argmax(axis=1)
    return max(0, int((rows - first).max())), max(0, int((last - rows).max()))
