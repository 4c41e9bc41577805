"""The arithmetic of the fake model: a transformer of random weights in numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pellucid.errors import KnockoutInvalid
from pellucid.models.backend import (
    AttentionName,
    AttentionSink,
    AttentionSupport,
    Batch,
    Bool,
    CaptureSpec,
    Float32,
    Int64,
    Knockout,
    LogitLens,
    ModelInfo,
    ModelKind,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeModel:
    """What a ``FakeBackend`` pretends to be."""

    model_id: str = "fake/tiny"
    revision: str = "f" * 40
    kind: ModelKind = "encoder"
    heads_per_layer: tuple[int, ...] = (2, 2)  # one number per layer
    num_decoder_layers: int = 2
    hidden_size: int = 12
    vocab_size: int = 97
    max_tokens: int | None = 64
    max_embedding_tokens: int | None = 32
    matryoshka_dimensions: tuple[int, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    has_chat_template: bool = False
    memory_bytes: int = 1_000_000
    attention: AttentionSupport | None = None  # None: every layer's attention can be captured
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Layer:
    query: Float32  # [num_heads, hidden_size, head_size]
    key: Float32
    value: Float32
    output: Float32  # [num_heads, head_size, hidden_size]


class FakeTransformer:
    """Weights from a seed, and the forward pass through each stack."""

    def __init__(self, model: FakeModel) -> None:
        self.model = model
        random = np.random.default_rng(model.seed)
        shape = (model.vocab_size, model.hidden_size)
        self.embeddings = random.standard_normal(shape).astype(np.float32)
        decoder_heads = (model.heads_per_layer[0],) * model.num_decoder_layers
        self._stacks: dict[AttentionName, list[_Layer]] = {}
        if model.kind == "encoder-decoder":
            self._stacks["encoder_attentions"] = _layers(model.heads_per_layer, model, random)
            self._stacks["decoder_attentions"] = _layers(decoder_heads, model, random)
            self._stacks["cross_attentions"] = _layers(decoder_heads, model, random)
        else:
            self._stacks["attentions"] = _layers(model.heads_per_layer, model, random)
        self.info = _info_of(model, {name: len(stack) for name, stack in self._stacks.items()})

    def encoder_states(
        self,
        batch: Batch,
        spec: CaptureSpec,
        sink: AttentionSink | None,
        norms: dict[tuple[AttentionName, int], Float32],
    ) -> Float32:
        """[num_layers + 1, batch, seq_len, hidden_size]."""
        name: AttentionName = (
            "encoder_attentions" if self.model.kind == "encoder-decoder" else "attentions"
        )
        mask = batch.attention_mask.astype(bool)
        visible = _visible(mask, mask.shape[1], causal=self.model.kind == "decoder")
        states = [self._embed(batch.input_ids, mask)]
        for index, layer in enumerate(self._stacks[name]):
            call = _Call(name, index, spec, sink, norms, self.info)
            mixed = _attend(layer, states[-1], states[-1], visible, call)
            states.append(np.tanh(states[-1] + mixed).astype(np.float32))
        return np.stack(states)

    def decoder_states(
        self,
        batch: Batch,
        encoded: Float32,
        spec: CaptureSpec,
        sink: AttentionSink | None,
        norms: dict[tuple[AttentionName, int], Float32],
    ) -> Float32:
        """[num_decoder_layers + 1, batch, target_len, hidden_size]."""
        assert batch.decoder_input_ids is not None
        given = batch.decoder_attention_mask
        mask = np.ones(batch.decoder_input_ids.shape, bool) if given is None else given.astype(bool)
        target_len = mask.shape[1]
        own = _visible(mask, target_len, causal=True)
        cross = _visible(batch.attention_mask.astype(bool), target_len, causal=False)
        states = [self._embed(batch.decoder_input_ids, mask)]
        for index in range(self.model.num_decoder_layers):
            call = _Call("decoder_attentions", index, spec, sink, norms, self.info)
            layer = self._stacks["decoder_attentions"][index]
            mixed = states[-1] + _attend(layer, states[-1], states[-1], own, call)
            call = _Call("cross_attentions", index, spec, sink, norms, self.info)
            layer = self._stacks["cross_attentions"][index]
            states.append(np.tanh(mixed + _attend(layer, mixed, encoded, cross, call)))
        return np.stack(states).astype(np.float32)

    def _embed(self, input_ids: Int64, mask: Bool) -> Float32:
        positions = np.clip(np.cumsum(mask, axis=1) - 1, 0, None)[..., None]
        waves = np.sin(positions * (1.0 + np.arange(self.model.hidden_size)))
        return np.asarray(self.embeddings[input_ids] + waves, dtype=np.float32)

    def logit_lens(self, states: Float32, top_k: int) -> LogitLens:
        logits = (states @ self.embeddings.T).astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        probabilities = np.exp(logits)
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
        ids = np.argsort(-probabilities, axis=-1, kind="stable")[..., :top_k]
        entropy = -(probabilities * np.log(probabilities + 1e-300)).sum(axis=-1)
        return LogitLens(
            token_ids=ids.astype(np.int64),
            probabilities=np.take_along_axis(probabilities, ids, axis=-1).astype(np.float32),
            entropy=entropy.astype(np.float32),
        )


@dataclass(frozen=True, slots=True)
class _Call:
    """One attention call of one forward pass, and what is to be kept of it."""

    name: AttentionName
    layer: int
    spec: CaptureSpec
    sink: AttentionSink | None
    norms: dict[tuple[AttentionName, int], Float32]
    info: ModelInfo

    def is_asked(self) -> bool:
        asked = self.spec.layers is None or self.layer in self.spec.layers
        return asked and self.layer in self.info.attention.layers.get(self.name, ())

    def heads_of(self, values: Float32) -> Float32:
        return values if self.spec.heads is None else values[:, list(self.spec.heads)]


def _layers(heads: Sequence[int], model: FakeModel, random: np.random.Generator) -> list[_Layer]:
    layers = []
    for num_heads in heads:
        head_size = max(1, model.hidden_size // num_heads)
        into, out = (num_heads, model.hidden_size, head_size), (num_heads, head_size)
        query, key, value = random.standard_normal((3, *into)).astype(np.float32)
        output = random.standard_normal((*out, model.hidden_size)).astype(np.float32)
        layers.append(_Layer(query, key, value, output / np.float32(model.hidden_size)))
    return layers


def _visible(key_mask: Bool, query_len: int, *, causal: bool) -> Bool:
    """Which keys each query may see: [batch, 1, query_len, key_len]."""
    visible = np.repeat(key_mask[:, None, None, :], query_len, axis=2)
    return visible & np.tri(query_len, dtype=bool) if causal else visible


def _attend(layer: _Layer, queries: Float32, keys: Float32, visible: Bool, call: _Call) -> Float32:
    """Softmax attention; what the call asks for goes to its sink: [batch, query_len, hidden]."""
    query, key, value = (
        np.einsum("btd,hdk->bhtk", states, weights, optimize=True)
        for states, weights in ((queries, layer.query), (keys, layer.key), (keys, layer.value))
    )
    seen = _without_cut(np.repeat(visible, query.shape[1], axis=1), call)
    scores = np.where(seen, query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1]), -np.inf)
    peak = np.where(np.isfinite(peak := scores.max(axis=-1, keepdims=True)), peak, 0)
    weights = np.exp(scores - peak)
    weights = (weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)).astype(np.float32)
    if call.is_asked():
        if call.spec.attentions and call.sink is not None:
            call.sink(call.name, call.layer, call.heads_of(weights).copy())
        if call.spec.value_norms:
            norms = np.linalg.norm(np.einsum("bhtk,hkd->bhtd", value, layer.output), axis=-1)
            call.norms[call.name, call.layer] = call.heads_of(norms.astype(np.float32))
    mixed = np.einsum("bhtk,hkd->btd", weights @ value, layer.output, optimize=True)
    return np.asarray(mixed, dtype=np.float32)


def _without_cut(visible: Bool, call: _Call) -> Bool:
    """``visible`` [batch, num_heads, query_len, key_len] less the edges that knock-outs cut."""
    seen = visible.copy()
    for index, knockout in enumerate(call.spec.knockouts):
        if knockout.attention != call.name:
            continue
        if knockout.layers is not None and call.layer not in knockout.layers:
            continue
        seen[np.ix_(range(seen.shape[0]), *_cut_axes(knockout, seen.shape[1:]))] = False
        if (visible.any(axis=-1) & ~seen.any(axis=-1)).any():
            raise KnockoutInvalid(index=index, reason="it leaves a query without keys")
    return seen


def _cut_axes(knockout: Knockout, shape: tuple[int, ...]) -> list[Sequence[int]]:
    named = (knockout.heads, knockout.query_positions, knockout.key_positions)
    return [range(n) if axis is None else axis for axis, n in zip(named, shape, strict=True)]


def mean_of_real_tokens(
    states: Float32, attention_mask: Int64, prompt_tokens: Int64 | None
) -> Float32:
    """[batch, seq_len, hidden] -> [batch, hidden]; the first ``prompt_tokens`` are left out."""
    weights = attention_mask.astype(np.float32)
    if prompt_tokens is not None:
        weights = weights * (np.arange(weights.shape[1]) >= prompt_tokens[:, None])
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    return np.asarray((states * weights[..., None]).sum(axis=1) / total, dtype=np.float32)


def _info_of(model: FakeModel, num_layers: Mapping[AttentionName, int]) -> ModelInfo:
    has_decoder = model.kind == "encoder-decoder"
    every_layer = AttentionSupport(
        available=True,
        layers={name: tuple(range(count)) for name, count in num_layers.items()},
        method="registered",
        max_error=0.0,
    )
    return ModelInfo(
        model_id=model.model_id,
        revision=model.revision,
        architecture="FakeModel",
        model_type="fake",
        kind=model.kind,
        num_layers=len(model.heads_per_layer),
        num_heads=max(model.heads_per_layer),
        num_decoder_layers=model.num_decoder_layers if has_decoder else None,
        num_decoder_heads=model.heads_per_layer[0] if has_decoder else None,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        max_tokens=model.max_tokens,
        max_embedding_tokens=model.max_embedding_tokens,
        dimensions=model.hidden_size,
        matryoshka_dimensions=model.matryoshka_dimensions,
        pooling="mean",
        prompts=model.prompts,
        device="cpu",
        dtype="float32",
        attention_implementation="fake",
        num_parameters=model.vocab_size * model.hidden_size,
        memory_bytes=model.memory_bytes,
        attention=model.attention or every_layer,
    )
