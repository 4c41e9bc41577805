"""From what a request asks for to what the forward pass must do, refused where it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pellucid.errors import (
    AttentionUnavailable,
    CapabilityMissing,
    HeadOutOfRange,
    KnockoutInvalid,
    LayerOutOfRange,
    NormWeightedUnavailable,
    PositionOutOfRange,
)
from pellucid.models.attention.function import Cut
from pellucid.models.attention.output_projection import OutputProjection, ProjectionFindings
from pellucid.models.attention.selftest import AttentionFindings, layer_kind
from pellucid.models.attention.sites import SiteKey
from pellucid.models.backend import AttentionName, Batch, CaptureSpec, Knockout


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturePlan:
    """What one forward pass shall do, by site."""

    wanted: tuple[SiteKey, ...] = ()
    cuts: Mapping[SiteKey, Sequence[Cut]] = field(default_factory=dict)
    projections: Mapping[SiteKey, OutputProjection] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturePlanner:
    """Knows what one model can show."""

    model_id: str
    config: Any
    num_layers: Mapping[AttentionName, int]
    attention: AttentionFindings
    projections: ProjectionFindings

    def plan(self, spec: CaptureSpec, batch: Batch) -> CapturePlan:
        """Raises LayerOutOfRange, HeadOutOfRange, PositionOutOfRange, KnockoutInvalid,
        AttentionUnavailable, NormWeightedUnavailable."""
        self._check_layers(spec.layers)
        needed = spec.attentions or spec.value_norms
        wanted = self._sites(spec.layers) if needed else ()
        if needed:
            self._check_heads(spec.heads, {name for name, _ in wanted})
        return CapturePlan(
            wanted=wanted if spec.attentions else (),
            cuts=self._cuts(spec.knockouts, batch),
            projections=self._projections_of(wanted) if spec.value_norms else {},
        )

    def _check_layers(
        self, layers: Sequence[int] | None, name: AttentionName | None = None
    ) -> None:
        count = max(self.num_layers.values()) if name is None else self.num_layers[name]
        for layer in layers or ():
            if not 0 <= layer < count:
                raise LayerOutOfRange(layer=layer, model_id=self.model_id, last_layer=count - 1)

    def _check_heads(self, heads: Sequence[int] | None, names: set[AttentionName]) -> None:
        counts = [
            self.attention.num_heads[name] for name in names & self.attention.num_heads.keys()
        ]
        for head in heads or ():
            if counts and not 0 <= head < min(counts):
                raise HeadOutOfRange(head=head, model_id=self.model_id, last_head=min(counts) - 1)

    def _sites(self, layers: Sequence[int] | None) -> tuple[SiteKey, ...]:
        """The sites of some layers (None = all that have attention), in every stack."""
        support = self.attention.support
        if not support.available:
            raise AttentionUnavailable(model_id=self.model_id, where="", reason=support.reason)
        sites: list[SiteKey] = []
        for name, count in self.num_layers.items():
            shown = support.layers.get(name, ())
            asked = shown if layers is None else sorted({n for n in layers if n < count})
            for layer in asked:
                if layer not in shown:
                    raise AttentionUnavailable(
                        model_id=self.model_id,
                        where=f" for layer {layer}",
                        reason=self._without_attention(layer, shown),
                    )
                sites.append((name, layer))
        return tuple(sites)

    def _without_attention(self, layer: int, shown: Sequence[int]) -> str:
        others = ", ".join(map(str, shown))
        return (
            f"it is of the kind {layer_kind(self.config, layer)}; layers with attention: {others}"
        )

    def _projections_of(self, sites: Sequence[SiteKey]) -> Mapping[SiteKey, OutputProjection]:
        if self.attention.support.method != "registered":
            raise NormWeightedUnavailable(
                model_id=self.model_id, reason="its attention does not show its value vectors"
            )
        for site in sites:
            if reason := self.projections.reasons.get(site):
                raise NormWeightedUnavailable(model_id=self.model_id, reason=reason)
        return {site: self.projections.projections[site] for site in sites}

    def _cuts(self, knockouts: Sequence[Knockout], batch: Batch) -> dict[SiteKey, list[Cut]]:
        cuts: dict[SiteKey, list[Cut]] = {}
        for index, knockout in enumerate(knockouts):
            layers = self._layers_to_cut(knockout, index)
            self._check_heads(knockout.heads, {knockout.attention})
            _check_positions(knockout, batch)
            cut = Cut(
                index=index,
                heads=knockout.heads,
                query_positions=knockout.query_positions,
                key_positions=knockout.key_positions,
            )
            for layer in layers:
                cuts.setdefault((knockout.attention, layer), []).append(cut)
        return cuts

    def _layers_to_cut(self, knockout: Knockout, index: int) -> Sequence[int]:
        support = self.attention.support
        if support.method != "registered":
            reason = support.reason or "its attention is computed by its own code"
            raise CapabilityMissing(
                model_id=self.model_id, reason=f"edges cannot be knocked out of it: {reason}"
            )
        if knockout.attention not in self.num_layers:
            names = ", ".join(self.num_layers)
            raise KnockoutInvalid(
                index=index, reason=f"the model has no {knockout.attention}, it has {names}"
            )
        self._check_layers(knockout.layers, knockout.attention)
        shown = support.layers.get(knockout.attention, ())
        if knockout.layers is None:
            return shown
        for layer in knockout.layers:
            if layer not in shown:
                reason = f"layer {layer} cannot be cut, {self._without_attention(layer, shown)}"
                raise KnockoutInvalid(index=index, reason=reason)
        return sorted(set(knockout.layers))


def _check_positions(knockout: Knockout, batch: Batch) -> None:
    source_len = batch.input_ids.shape[1]
    target = batch.decoder_input_ids
    target_len = source_len if target is None else target.shape[1]
    by_target = knockout.attention in ("decoder_attentions", "cross_attentions")
    _check_range(
        "query_positions", knockout.query_positions, target_len if by_target else source_len
    )
    keys_in_target = knockout.attention == "decoder_attentions"
    _check_range(
        "key_positions", knockout.key_positions, target_len if keys_in_target else source_len
    )


def _check_range(name: str, positions: Sequence[int] | None, length: int) -> None:
    for position in positions or ():
        if not 0 <= position < length:
            raise PositionOutOfRange(field=name, position=position, last_position=length - 1)
