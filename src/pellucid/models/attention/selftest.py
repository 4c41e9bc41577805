"""Which layers' attention can be had, found out and proved when a model is loaded.

The captured weights are compared with the model's own eager ones on a probe. In float32 with a
whole eager pass; in half precision, where two right passes drift apart, each layer with its
family's eager function on the very same queries and keys, lifted to float32, and the edges that
are seen at all with those of a whole eager pass. A family for which the registered function turns
out wrong is run by its own eager attention from then on.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pellucid.models.attention.function import IMPLEMENTATION, AttentionCall
from pellucid.models.attention.sites import (
    AttentionSite,
    SiteKey,
    SiteSearch,
    SitesUnclear,
    name_sites,
)
from pellucid.models.backend import AttentionName, AttentionSupport, Batch
from pellucid.models.probe import Probe, last_hidden_state

EXACT = 1e-4  # largest difference of a weight that counts as equal, float32
# Drift between two passes in half precision never takes such a weight to 0; a mask does.
_SURELY_SEEN = 1e-3
# Softmax rows rounded to bfloat16 (8 bits of fraction, 13 keys) miss 1 by at most 13 * 2^-9.
_ROW_SUM_TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionFindings:
    """The sites of a model and whether they can be trusted."""

    support: AttentionSupport
    sites: tuple[AttentionSite, ...] = ()
    num_heads: Mapping[AttentionName, int] = field(default_factory=dict)  # the fewest of a layer


@dataclass(slots=True)
class _Record:
    """Calls of one pass, kept whole: the probe is small."""

    calls: list[AttentionCall] = field(default_factory=list)

    def attend(self, call: AttentionCall) -> Tensor:
        self.calls.append(call)
        return call.output()


class _Differs(Exception):
    """The self-test failed; the message is the reason."""


def find_attention(probe: Probe) -> AttentionFindings:
    """The model's attention sites, proved."""
    if probe.loaded.implementation != IMPLEMENTATION:
        return _find_eager(probe)
    search = SiteSearch()
    probe.run(probe.padded, observer=search)
    if not search.calls:
        return _find_eager(probe)
    try:
        sites = name_sites(
            probe.loaded.model,
            search.calls,
            num_layers=probe.num_layers,
            encoder_len=probe.encoder_len,
        )
        max_error = max(_largest_error(probe, sites, b) for b in (probe.padded, probe.single))
    except SitesUnclear as problem:
        return _unavailable(str(problem))
    except _Differs as problem:
        # what differs here would differ in every output: nothing may run with it
        probe.loaded.model.set_attn_implementation("eager")
        return _find_eager(probe, reason=str(problem))
    layers = _layers_by_name(sites)
    support = AttentionSupport(
        available=True,
        layers=layers,
        reason=_layers_without(probe, layers),
        method="registered",
        max_error=max_error,
    )
    num_heads: dict[AttentionName, int] = {}
    for site in sites:
        num_heads[site.name] = min(site.num_heads, num_heads.get(site.name, site.num_heads))
    return AttentionFindings(support=support, sites=sites, num_heads=num_heads)


def _largest_error(probe: Probe, sites: tuple[AttentionSite, ...], batch: Batch) -> float:
    """Between captured and eager weights, over all sites. Raises _Differs."""
    record = _Record()
    outputs = probe.run(batch, observer=record, output_hidden_states=True)
    if len(record.calls) != len(sites):
        raise _Differs(f"its {len(sites)} attentions do not run in every pass")
    eager = _eager_outputs(probe, batch)
    expected = _by_site(eager, sites)
    is_float32 = probe.loaded.dtype == torch.float32
    largest = 0.0
    for site, call in zip(sites, record.calls, strict=True):
        captured = call.weights()
        weights = expected[site.key] if is_float32 else _own_eager_weights(call)
        if weights is None or weights.shape != captured.shape:
            raise _Differs(f"layer {site.layer} shows no weights to compare with")
        rows = _real_queries(batch, site.name).to(captured.device)
        error = float((captured - weights.float()).abs().amax(dim=(1, 3))[rows].amax())
        if not error <= EXACT:
            unknown = "".join(f", it also takes {name}" for name in site.unknown_options)
            raise _Differs(
                f"in a self-test the {site.name} of layer {site.layer} differed from the model's "
                f"eager ones by {error:.1e} (allowed: {EXACT:.0e}){unknown}"
            )
        largest = max(largest, error)
        if not is_float32 and not _see_the_same(captured, expected[site.key], rows):
            raise _Differs(
                f"in a self-test the {site.name} of layer {site.layer} saw other tokens than the "
                "model's eager ones"
            )
    if is_float32:
        _require_equal_outputs(outputs, eager, batch, kind=probe.loaded.kind)
    return largest


def _eager_outputs(probe: Probe, batch: Batch) -> Any:
    """The same pass by the model's own eager attention. Loading has the model to itself."""
    model = probe.loaded.model
    model.set_attn_implementation("eager")
    try:
        return probe.run(batch, output_attentions=True, output_hidden_states=True)
    finally:
        model.set_attn_implementation(IMPLEMENTATION)


def _by_site(outputs: Any, sites: tuple[AttentionSite, ...]) -> dict[SiteKey, Tensor]:
    """Eager weights of each site: they come in the order in which the layers run."""
    found: dict[SiteKey, Tensor] = {}
    for name in dict.fromkeys(site.name for site in sites):
        of_stack = [site for site in sites if site.name == name]
        weights = [layer for layer in outputs.get(name) or () if layer is not None]
        if len(weights) != len(of_stack):
            raise _Differs(
                f"its eager pass gives the {name} of {len(weights)} layers, "
                f"{len(of_stack)} layers asked for attention"
            )
        found.update({site.key: layer for site, layer in zip(of_stack, weights, strict=True)})
    return found


def _see_the_same(captured: Tensor, eager: Tensor, rows: Tensor) -> bool:
    """Whether no edge is hidden in the one and clearly seen in the other, on real queries."""
    hidden_here = (captured == 0) & (eager > _SURELY_SEEN)
    hidden_there = (eager == 0) & (captured > _SURELY_SEEN)
    return not bool((hidden_here | hidden_there).any(dim=3).any(dim=1)[rows].any())


def _own_eager_weights(call: AttentionCall) -> Tensor | None:
    """What the family's eager function makes of the same arguments in float32."""
    eager = getattr(sys.modules[type(call.module).__module__], "eager_attention_forward", None)
    if eager is None:
        return None
    options = {
        name: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in call.options.items()
    }
    with torch.inference_mode():
        _, weights = eager(
            call.module,
            call.query.float(),
            call.key.float(),
            call.value.float(),
            _additive_mask(call),
            **options,
        )
    assert weights is None or isinstance(weights, Tensor)
    return weights


def _additive_mask(call: AttentionCall) -> Tensor | None:
    """The mask as eager attention wants it: 0, or the smallest number where nothing is seen."""
    mask = call.attention_mask
    query_len, key_len = call.query.shape[2], call.key.shape[2]
    if mask is None:
        if not call.is_causal:
            return None
        mask = torch.ones(query_len, key_len, dtype=torch.bool, device=call.query.device).tril()
        mask = mask[None, None]
    if mask.dtype != torch.bool:
        return mask.float()
    zeros = torch.zeros(mask.shape, device=mask.device)
    return zeros.masked_fill(~mask, torch.finfo(torch.float32).min)


def _require_equal_outputs(outputs: Any, eager: Any, batch: Batch, *, kind: str) -> None:
    served, expected = _end(outputs).float(), _end(eager).float()
    name: AttentionName = "decoder_attentions" if kind == "encoder-decoder" else "attentions"
    rows = _real_queries(batch, name).to(served.device)
    scale = max(1.0, float(expected[rows].abs().amax()))
    error = float((served - expected)[rows].abs().amax()) / scale
    if not error <= EXACT:
        raise _Differs(
            f"in a self-test its outputs differed from the eager ones by {error:.1e} "
            f"of their size (allowed: {EXACT:.0e})"
        )


def _end(outputs: Any) -> Tensor:
    """What comes out last, [batch, seq_len, ...]: the logits, else the last hidden state."""
    logits = outputs.get("logits")
    return last_hidden_state(outputs) if logits is None else logits


def _real_queries(batch: Batch, name: AttentionName) -> Tensor:
    """[batch, query_len], True where the query is a token and not padding."""
    of_target = name in ("decoder_attentions", "cross_attentions")
    mask = batch.decoder_attention_mask if of_target else batch.attention_mask
    return torch.as_tensor(mask) == 1


def _find_eager(probe: Probe, *, reason: str | None = None) -> AttentionFindings:
    """For families whose attention does not pass through the registered function, or for the
    ``reason`` not rightly: taken from their own eager pass, which is then what is served."""
    try:
        outputs = probe.run(probe.padded, output_attentions=True)
        layers = {name: _check_eager(probe, name, outputs.get(name)) for name in probe.num_layers}
    except TypeError:  # no such argument
        return _unavailable(_no_attention(probe))
    except _Differs as problem:
        return _unavailable(reason or str(problem))
    because = reason and f"taken from its own eager attention: {reason}"
    return AttentionFindings(
        support=AttentionSupport(available=True, layers=layers, reason=because, method="eager"),
        num_heads={name: min(w.shape[1] for w in outputs[name]) for name in layers},
    )


def _unavailable(reason: str) -> AttentionFindings:
    return AttentionFindings(support=AttentionSupport(available=False, reason=reason))


def _check_eager(probe: Probe, name: AttentionName, weights: Any) -> tuple[int, ...]:
    """Whether these are attention weights. Raises _Differs."""
    num_layers = probe.num_layers[name]
    if not weights or all(layer is None for layer in weights):
        raise _Differs(_no_attention(probe))
    if len(weights) != num_layers or any(layer is None for layer in weights):
        raise _Differs(f"it gives attention for {len(weights)} places but has {num_layers} layers")
    of_target = name in ("decoder_attentions", "cross_attentions")
    keys = probe.padded.decoder_attention_mask if name == "decoder_attentions" else None
    key_mask = torch.as_tensor(probe.padded.attention_mask if keys is None else keys) == 1
    query_len = probe.padded.decoder_input_ids if of_target else probe.padded.input_ids
    assert query_len is not None
    rows = _real_queries(probe.padded, name)
    tolerance = _ROW_SUM_TOLERANCE.get(probe.loaded.dtype, 1e-4)
    for layer, attention in enumerate(weights):
        attention = attention.float().cpu()
        expected = (query_len.shape[0], query_len.shape[1], key_mask.shape[1])
        if attention.ndim != 4 or (attention.shape[0], *attention.shape[2:]) != expected:
            raise _Differs(
                f"the weights of layer {layer} have the shape {tuple(attention.shape)}, "
                "not one number per query and key"
            )
        sums = attention.sum(dim=-1).transpose(1, 2)[rows]
        on_padding = (attention * ~key_mask[:, None, None]).transpose(1, 2)[rows]
        if not bool(((sums - 1).abs() <= tolerance).all()) or bool((on_padding != 0).any()):
            raise _Differs(f"the rows of layer {layer} are not attention over the tokens")
    return tuple(range(num_layers))


def _no_attention(probe: Probe) -> str:
    return f"{type(probe.loaded.model).__name__} has no softmax attention that it shows"


def _layers_by_name(sites: tuple[AttentionSite, ...]) -> dict[AttentionName, tuple[int, ...]]:
    layers: dict[AttentionName, list[int]] = {}
    for site in sites:
        layers.setdefault(site.name, []).append(site.layer)
    return {name: tuple(sorted(found)) for name, found in layers.items()}


def _layers_without(probe: Probe, layers: Mapping[AttentionName, tuple[int, ...]]) -> str | None:
    """Why not all layers, or None if it is all."""
    for name, total in probe.num_layers.items():
        without = sorted(set(range(total)) - set(layers.get(name, ())))
        if without:
            shown = ", ".join(
                f"{layer} ({layer_kind(probe.loaded.config, layer)})" for layer in without
            )
            return f"layers that show no softmax attention: {shown}"
    return None


def layer_kind(config: Any, layer: int) -> str:
    """What the model's configuration calls a layer, e.g. "linear_attention"."""
    kinds = getattr(config.get_text_config(), "layer_types", None)
    return str(kinds[layer]) if kinds and layer < len(kinds) else "without attention to show"
